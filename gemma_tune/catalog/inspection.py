"""What is in a model: family, template, sizes, types, licence, and what is wrong. No weight is loaded."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from gemma_tune.chat import form_of
from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models.estimate.memory import in_unit
from gemma_tune.models.estimate.size import size_of
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.folders import read_adapter_config
from gemma_tune.models.foreign import safetensors_header
from gemma_tune.models.gguf_header import read_gguf_header
from gemma_tune.models.language_part import check_files
from gemma_tune.models.load import family_of, load_config, load_tokenizer
from gemma_tune.models.published import licence_of
from gemma_tune.models.source import Source, find_source
from gemma_tune.plan.tables import parameters


def inspect(name: str, revision: str | None) -> tuple[dict[str, str], list[str]]:
    """Looks at a model.

    Args:
        name: A folder, a run, an adapter, a GGUF file, or a name on the Hub.
        revision: Of the Hub.

    Returns:
        What it is, by name, and what is wrong with it.

    Raises:
        UserError: There is no such model.
    """
    model = ModelConfig(model_name_or_path=name, revision=revision, dtype="bfloat16")
    facts, problems = {"model": name}, list[str]()
    with _noted(problems):
        source = find_source(model)
        facts |= {"weights": source.remark} if source.remark else {}
    if problems:
        raise UserError(*problems)
    parts: list[Callable[[], Iterator[tuple[str, str]]]] = [lambda: _family(source), lambda: _tokenizer(source, model)]
    if source.gguf is not None:
        parts.insert(0, lambda: _gguf(source.gguf or Path()))
    else:
        parts += [lambda: _sizes(source), lambda: _files(source), lambda: _adapter(source)]
    for part in parts:
        with _noted(problems):
            facts.update(part())
    if source.folder is not None:
        with _noted(problems):
            check_files(model, source, load_config(source), packed=True)
    problems = list(dict.fromkeys(problems))
    if source.folder is None and source.gguf is None and "family" not in facts:  # of the Hub, and not here
        raise UserError(*problems)
    return facts, problems


@contextlib.contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Adds what is wrong to the problems, under the key that the user has set."""
    try:
        yield
    except UserError as error:
        problems += [one.replace("model.model_name_or_path", "models.inspect") for one in error.problems]


def _gguf(file: Path) -> Iterator[tuple[str, str]]:
    header = read_gguf_header(file)
    yield "kind", f"GGUF file for llama.cpp, architecture {header.architecture}, {header.width} wide"
    yield "on disk", in_unit(file.stat().st_size / 2**30)
    yield "weights", "float32" if header.float32 else "quantized or 16 bit"


def _family(source: Source) -> Iterator[tuple[str, str]]:
    family = family_of(source)
    yield "family", family.name
    yield "licence", f"{licence_of(source.base, family.licence)}, as Google publishes it"


def _tokenizer(source: Source, model: ModelConfig) -> Iterator[tuple[str, str]]:
    tokenizer = load_tokenizer(source, model.chat_template)
    yield "template", f"{form_of(tokenizer).name} (model.chat_template)"
    yield "vocabulary", f"{len(tokenizer):,} tokens in the tokenizer"


def _sizes(source: Source) -> Iterator[tuple[str, str]]:
    config = load_config(source)
    text, size = config.get_text_config(), size_of(config)
    yield "class", FAMILIES[config.model_type].language_class
    yield "parameters", f"{parameters(size.parameters)} ({size.parameters:,})"
    yield (
        "sizes",
        f"{size.num_hidden_layers} layers, {size.hidden_size} wide, {size.vocab_size:,} embedding rows",
    )
    yield "context", f"{text.max_position_embeddings:,} tokens"
    if stored := getattr(config, "quantization_config", None):
        yield "quantization", str(stored.get("quant_method", stored) if isinstance(stored, dict) else stored)


def _files(source: Source) -> Iterator[tuple[str, str]]:
    """The weights in the files, by type, and those of towers; from the headers."""
    if source.folder is None:
        return
    family = FAMILIES[load_config(source).model_type]
    files = sorted(source.folder.glob("*.safetensors"))
    types: Counter[str] = Counter()
    towers = 0
    for file in files:
        for name, tensor in safetensors_header(file)[0].items():
            if name != "__metadata__":
                number = 1
                for length in tensor["shape"]:
                    number *= length
                types[tensor["dtype"]] += number
                towers += number if family.is_tower(name) else 0
    yield "on disk", f"{in_unit(sum(f.stat().st_size for f in files) / 2**30)} in {len(files)} file(s)"
    yield "types", ", ".join(f"{kind} {parameters(number)}" for kind, number in types.most_common())
    used = "for images or audio, loaded for rows with media (model.train_towers trains them)"
    yield "towers", f"{parameters(towers)} {used}" if towers else "none"


def _adapter(source: Source) -> Iterator[tuple[str, str]]:
    if source.adapter is None:
        yield "kind", "a checkpoint, no adapter"
        return
    stored = read_adapter_config(source.adapter)
    kind, r, alpha = (stored.get(key) for key in ("peft_type", "r", "lora_alpha"))
    yield "kind", f"{kind} adapter, r={r}, lora_alpha={alpha}"
    yield "base", source.base
