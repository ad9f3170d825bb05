"""The model card of an artifact: README.md in its folder, with the front matter that the Hugging Face Hub reads.

It says the same at each run of one configuration: no times, no addresses. Of the maker's machine it has the names of
files, without the folders that they lie in, and nothing of what rows hold.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from gemma_tune.config import Config
from gemma_tune.config.data import DataConfig
from gemma_tune.export.engine_lines import same_each_time
from gemma_tune.models.folders import ADAPTER_VLLM
from gemma_tune.nested import leaves
from gemma_tune.page.blocks import Block, Cell, Code, Mono, Section, Table, Text
from gemma_tune.page.markdown import markdown
from gemma_tune.report.change_blocks import change_blocks
from gemma_tune.report.exported import quality_of_file
from gemma_tune.report.figures import changes
from gemma_tune.report.sections import ReportInputs, export_check, pairs, training_facts, verified
from gemma_tune.report.use import python_code, unreadable, use_commands
from gemma_tune.run.inputs import is_digest
from gemma_tune.run.manifest import atomic_write, versions
from gemma_tune.run.paths import resolve, shipped_recipes
from gemma_tune.sharing.lineage import Lineage, base_of, lineage, relation
from gemma_tune.validation.schema import FIELDS

CARD = "README.md"
GEMMA_TERMS = "https://ai.google.dev/gemma/terms"
_KINDS = {
    "adapter": "LoRA adapter",
    "merged": "weights for Transformers and vLLM",
    "w4a16": "int4 weights for vLLM and Transformers",
    "w4a16_transformers": "int4 weights for Transformers, with plain experts",
    "mlx": "int4 weights for mlx-lm",
    ADAPTER_VLLM: "LoRA adapter for vLLM, that of each expert by itself",
    "phone": "weights and activations in Gemma's format for phones, for Transformers",
    "reward_model": "reward model",
}
_LIBRARIES = {"adapter": "peft", ADAPTER_VLLM: "vllm", "mlx": "mlx"}
_LICENCES = {
    "gemma": f"Gemma is provided under and subject to the Gemma Terms of Use found at {GEMMA_TERMS}",
    "apache-2.0": "The base is published under the Apache License 2.0.",
}
# The groups whose settings say how a model was trained, and those of their keys that say where or how carefully.
_SETTINGS = ("model", "adapter", "reward", "train", "quant")
_NOT_SAID = re.compile(
    r"model\.(device|model_name_or_path|tokenizer_name_or_path)"
    r"|train\.(resume_\w+|max_time|save_\w+|logging_steps|eval_steps)|\w+\.\w*(token|key|password|secret)$"
)
_PLAIN = re.compile(r"[\w.+-]{1,40}")


def write_cards(inputs: ReportInputs) -> None:
    """Writes README.md into the folder of each artifact.

    Raises:
        OSError: One can't be written.
    """
    folder = inputs.folder
    for name, path in folder.result.artifacts.items():
        place = folder.path / path
        if place.is_dir() and "/" not in name:  # the stages of a run have written their own
            atomic_write(place / CARD, card(inputs, name, place))


def card(inputs: ReportInputs, name: str, place: Path) -> str:
    """The text of the card.

    Args:
        inputs: Those of the report.
        name: The artifact: `adapter`, `reward_model` or an export format.
        place: Its folder.
    """
    made_from = lineage(inputs.cfg.model.model_name_or_path, inputs.folder.inputs)
    kind = _KINDS.get(name, "GGUF for llama.cpp and Ollama")
    title = f"{(made_from.base or made_from.place).rpartition('/')[2]}, {inputs.cfg.recipe}: {kind}"
    once = not inputs.before.figures
    found = [
        Section("", [Text(_opening(inputs, made_from))]),
        Section("How to use it", list(_use(name, place))),
        Section("How good it is", change_blocks(changes(inputs.before, inputs.after), once)),
        Section("The file against its source", quality_of_file(inputs.metrics.get("exported", {}), name)),
        Section("Data", _data(inputs)),
        Section("How it was trained", _training(inputs)),
        Section("How it was checked", _checks(inputs, name)),
        Section("What it was made from", _made_from(inputs, made_from)),
        Section("Licence", [Text(_LICENCES[made_from.licence])] if made_from.licence else []),
    ]
    lines = markdown(title, [section for section in found if section.blocks])
    front = front_matter(inputs, name, place, made_from).to_yaml()
    return "\n".join(["---", front, "---", "", *lines])


def front_matter(inputs: ReportInputs, name: str, place: Path, made_from: Lineage) -> ModelCardData:
    """What the Hub reads: only what is known, so that no language is said, and no data set that is not there."""
    base, cfg = made_from.base, inputs.cfg
    if name in ("adapter", ADAPTER_VLLM):  # of the very model that it fits
        found = base_of(place, inputs.folder.inputs)
        base = found[0] if found else None
    gguf = name.startswith("gguf")
    shipped = [cfg.recipe] if cfg.recipe in shipped_recipes() and not cfg.recipe_file else []
    return ModelCardData(
        base_model=base,
        base_model_relation=relation(name, cfg.traits.trains) if base else None,
        license=made_from.licence,
        library_name=_LIBRARIES.get(name, "gguf" if gguf else "transformers"),
        pipeline_tag="text-classification" if name == "reward_model" else "text-generation",
        datasets=[cfg.data.dataset_name] if _of_hub(cfg.data) else None,
        tags=["gemma", "gemma_tune", *shipped, *(["gguf"] if gguf else ["lora"] if "adapter" in name else [])],
    )


def _of_hub(data: DataConfig) -> bool:
    return bool(data.dataset_name) and not resolve(str(data.dataset_name)).exists()


def _opening(inputs: ReportInputs, made_from: Lineage) -> str:
    done = "tuned" if inputs.cfg.traits.trains else "exported"
    before = f" after {', '.join(made_from.runs)}" if made_from.runs else ""
    return f"Made from {made_from.said()}: {done} with gemma_tune, recipe={inputs.cfg.recipe}{before}."


def _use(name: str, place: Path) -> Iterator[Block]:
    """Code and commands, as they are given within the folder."""
    yield Text(("In this folder (", Mono("hf download OWNER/NAME --local-dir ."), " fetches it from the Hub):"))
    if code := python_code(name, ".", place):
        yield Code(code, "python")
    if why := unreadable(name, place):
        yield Text(_within(why, place))
    commands = use_commands(name, place) if name != "adapter" else []
    if commands:
        lines = [line for engine, command in commands for line in (f"# {engine}", _within(command, place))]
        yield Code("\n".join(lines), "bash")


def _within(command: str, place: Path) -> str:
    """A command with the folder as `.`, however its name is written there: plain, as JSON, or quoted for a shell."""
    names = (str(place), json.dumps(str(place))[1:-1])
    for name in (*(shlex.quote(n)[1:-1] for n in names if "'" in n), *names):
        command = command.replace(name, ".")
    return command


def _data(inputs: ReportInputs) -> list[Block]:
    """The sets of rows, by the names of their files, and how many rows were used of each."""
    data, counts = inputs.cfg.data, inputs.metrics.get("data", {})
    named = {key: Path(file).name for key, file in data.named().items()}
    train = [name for key, name in named.items() if key.startswith("data.train_file")]
    if data.dataset_name:
        train.append(data.dataset_name if _of_hub(data) else Path(data.dataset_name).name)
    train += [Path(data.generator).name] if data.generator else []
    sets = {"training": ", ".join(train), "held_out": named.get("data.validation_file", "")}
    rows: list[list[Cell]] = [
        [part.replace("held_out", "validation"), Mono(files) if files else "a part of the training set", f"{count:,}"]
        for part, files in sets.items()
        if (count := counts.get(part, {}).get("rows"))
    ]
    for name in data.test_files:
        count = inputs.after.figures.get(f"{name}_rows")
        if f"data.test_files.{name}" in named and count:
            rows.append([f"test: {name}", Mono(named[f"data.test_files.{name}"]), f"{count:,.0f}"])
    return [Table(["", "file", "rows"], rows)] if rows else []


def _training(inputs: ReportInputs) -> list[Block]:
    blocks = training_facts(inputs)
    said = dict(settings(inputs.cfg)) if inputs.cfg.traits.trains else {}
    if said:
        blocks += [Text("Settings that are not the default:"), Code("\n".join(f"{k}={v}" for k, v in said.items()), "")]
    return blocks


def settings(cfg: Config) -> Iterator[tuple[str, str]]:
    """The settings of the training that are not the schema's defaults: numbers and words, no paths and no texts."""
    begun, defaults = asdict(cfg), dict(leaves(asdict(Config())))
    for key, value in leaves({group: begun[group] for group in _SETTINGS}):
        field = next((FIELDS[k][0] for k in _above(key) if k in FIELDS), None)
        if value == defaults.get(key) or _NOT_SAID.search(key) or (field is not None and field.metadata["path"]):
            continue
        if text := _word(value, key.startswith("train.extra.")):
            yield key, text


def _above(key: str) -> Iterator[str]:
    """A key, and those that it lies below."""
    while key:
        yield key
        key = key.rpartition(".")[0]


def _word(value: Any, numbers_only: bool) -> str:
    """A setting as it stands on the command line; empty for what could say something of the maker."""
    if isinstance(value, list):
        words = [_word(one, numbers_only) for one in value]
        return f"[{','.join(words)}]" if all(words) and words else ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) and not numbers_only else ""


def _checks(inputs: ReportInputs, name: str) -> list[Block]:
    """What was compared with the trained model before the file was handed over."""
    others = [other for other in inputs.folder.result.artifacts if other != name]
    lines = [line for line in inputs.metrics.get("verify", []) if _is_about(line["name"], name, others)]
    lines = [{**line, "found": same_each_time(line["found"])} for line in lines]
    return verified(lines) or ([] if name == "adapter" else export_check(inputs))


def _is_about(line: str, name: str, others: list[str]) -> bool:
    if any(line.startswith((f"{other}:", f"{other} in ")) for other in others):
        return False
    if name == "adapter" or line.startswith("the adapter"):
        return name == "adapter" and "adapter" in line
    return name.startswith("gguf") or "llama.cpp" not in line


def _made_from(inputs: ReportInputs, made_from: Lineage) -> list[Block]:
    facts: dict[str, str] = {"base": made_from.said()}
    if made_from.runs:
        facts["runs in between"] = " → ".join(made_from.runs)
    facts |= {"seed": str(inputs.cfg.seed), "versions": ", ".join(f"{k} {v}" for k, v in versions().items())}
    return [pairs(facts), *_digests(inputs.folder.inputs)]


def _digests(inputs: Mapping[str, str]) -> list[Block]:
    rows: list[list[Cell]] = [[Mono(Path(name).name), Mono(said)] for name, said in inputs.items() if is_digest(said)]
    return [Table(["input", "SHA-256"], rows)] if rows else []
