"""The model card of each artifact: what the Hub reads of it, what a person does, and what must not stand in it."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from every_recipe import slow_marked
from huggingface_hub import ModelCard

import gemma_tune
from gemma_tune.config import Config, ModelConfig
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.report.card import card, settings
from gemma_tune.report.sections import ReportInputs
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import ASSETS
from gemma_tune.sharing.lineage import Lineage, hub_name, licence_of_base, lineage, relation

Finished = Callable[[str], tuple[Path, gemma_tune.RunResult]]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Of each artifact: library, and what its card says how to use it
ARTIFACTS = {
    "adapter": ("peft", "AutoPeftModelForCausalLM"),
    "merged": ("transformers", "vllm serve ."),
    "w4a16": ("transformers", "vllm serve ."),
    "gguf": ("gguf", "-f ./Modelfile"),
    "reward_model": ("transformers", "AutoModelForSequenceClassification"),
}
RUNS = {
    "lora_sft": {"adapter", "merged"},
    "reward_model, full": {"reward_model"},
    "qat, lora": set(ARTIFACTS) - {"reward_model"},
}


@pytest.mark.parametrize("name", RUNS)
def test_each_artifact_has_a_card(name: str, finished: Finished) -> None:
    folder, result = finished(name)
    assert set(result.artifacts) == RUNS[name]
    listed = json.loads((folder / "manifest.json").read_text("utf-8"))["artifacts"]
    for artifact, path in result.artifacts.items():
        file, (library, use) = folder / path / "README.md", ARTIFACTS[artifact]
        assert f"{path}/README.md" in listed[artifact]
        found = ModelCard.load(file)
        data = found.data.to_dict()
        assert data["library_name"] == library and data["license"] == "apache-2.0"
        assert "base_model" not in data, "the embedded model has no name on the Hub"
        assert data["pipeline_tag"] == ("text-classification" if artifact == "reward_model" else "text-generation")
        assert use in found.text and "## How good it is" in found.text
        assert result.recipe in data["tags"]
        for name_of_file, rows in (("train" if name == "lora_sft" else "", "training"), ("", "validation")):
            assert f"| {rows} | " in found.text and name_of_file in found.text


def test_before_and_after_stand_there_with_intervals(finished: Finished) -> None:
    folder, result = finished("lora_sft")
    text = (folder / "adapter" / "README.md").read_text("utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| held_out_loss"))
    for when in ("before", "after"):
        assert f"{result.metrics[when]['held_out_loss']:.4g} (" in line
    merged = (folder / "export" / "merged" / "README.md").read_text("utf-8")
    assert f"| export kl | – | {result.metrics['export']['export_kl']:.4g} |" in merged


def test_a_file_has_its_own_checks_and_quality(finished: Finished) -> None:
    folder, result = finished("qat, lora")
    texts = {name: (folder / path / "README.md").read_text("utf-8") for name, path in result.artifacts.items()}
    assert "| w4a16: codes and scales |" in texts["w4a16"] and "gguf:" not in texts["w4a16"]
    assert "| gguf: codes and scales |" in texts["gguf"] and "in llama.cpp" in texts["gguf"]
    assert "llama.cpp" not in texts["merged"].partition("## How it was checked")[2]
    for name in ("gguf", "w4a16", "merged"):
        table = texts[name].partition("## The file against its source")[2].partition("##")[0]
        assert f"| {name} |" in table and "| source |" in table


@pytest.mark.parametrize("name", [*RUNS, *slow_marked(["tune_to_int4"])])
def test_nothing_of_the_maker_in_what_is_handed_over(name: str, finished: Finished) -> None:
    """No folder of this machine, no user's name, no row; but for the base that an adapter was trained on."""
    folder, _ = finished(name)
    for file in sorted(p for part in ("adapter", "export") for p in folder.rglob(f"{part}/**/*") if p.is_file()):
        content = file.read_bytes()
        if file.name == "adapter_config.json":
            content = content.replace(str(ASSETS / "tiny").encode(), b"").replace(str(folder).encode(), b"")
        for secret in (str(folder.parent), str(ASSETS), str(Path.home()), f"/{getpass.getuser()}/"):
            assert secret == "/" or secret.encode() not in content, f"{file}: {secret}"
        if file.suffix in (".md", ".json"):
            for text in _texts(folder.with_name(f"{folder.name}.rows")):
                assert text.encode() not in content, f"{file}: {text}"


def _texts(rows: Path) -> Iterator[str]:
    """What the rows say, those of the sample included."""
    for file in [*rows.glob("*.jsonl"), *(ASSETS / "sample").glob("*.jsonl")]:
        for line in file.read_text("utf-8").splitlines()[:200]:
            row = json.loads(line)
            texts = [m["content"] for m in row.get("messages", ()) if m.get("content")]
            yield from (
                t for t in (*texts, *(row.get(k) for k in ("prompt", "chosen"))) if isinstance(t, str) and " " in t
            )


def _run(path: Path, recipe: str, model: str, inputs: dict[str, str]) -> Path:
    path.mkdir(parents=True)
    stored = {
        "recipe": recipe,
        "method": "sft",
        "seed": 1,
        "model": {"model_name_or_path": model},
        "data": {},
        "train": {},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(stored), encoding="utf-8")
    (path / "manifest.json").write_text(json.dumps({"gemma_tune": "0", "inputs": inputs}), encoding="utf-8")
    return path


def test_lineage_goes_back_to_the_hub(folder: Path) -> None:
    hub = "google/gemma-3-270m-it"
    first = _run(folder / "runs/first", "lora_sft", hub, {hub: f"commit {COMMIT}"})
    second = _run(folder / "runs/second", "dpo", str(first), {})
    assert lineage(str(second), {}) == Lineage(hub, COMMIT, hub, ("lora_sft", "dpo"))
    assert lineage(str(second / "export" / "merged"), {}).runs == ()  # there is no such folder
    (second / "export" / "merged").mkdir(parents=True)
    assert lineage(str(second / "export" / "merged"), {}).base == hub
    assert lineage(hub, {hub: "commit None"}) == Lineage(hub, None, hub)
    for name in ("loop", "round"):
        _run(folder / name, "dpo", str(folder / ("round" if name == "loop" else "loop")), {})
    assert lineage(str(folder / "loop"), {}).base is None
    assert lineage(str(folder / "somewhere" / "mine"), {}) == Lineage(None, None, "mine")
    assert lineage("assets://tiny", {}).licence == "apache-2.0"


def test_a_snapshot_of_the_cache_has_its_name(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--google--gemma-3-1b-it" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    assert hub_name(str(snapshot)) == ("google/gemma-3-1b-it", COMMIT)
    assert hub_name(str(tmp_path)) is None
    assert lineage(str(snapshot), {}).said() == f"google/gemma-3-1b-it, commit {COMMIT}"


@pytest.mark.parametrize(
    ("name", "licence"),
    [("google/gemma-3-1b-it", "gemma"), ("google/gemma-4-E2B-it", "apache-2.0"), ("me/other", None), (None, None)],
)
def test_a_licence_is_only_said_where_it_is_known(name: str | None, licence: str | None) -> None:
    assert licence_of_base(name) == licence


def test_relations() -> None:
    kinds = {
        name: relation(name, True)
        for name in ("adapter", "adapter_vllm", "merged", "w4a16", "gguf", "gguf_f16", "gguf_bf16")
    }
    assert list(kinds.values()) == ["adapter", "adapter", "finetune", "quantized", "quantized", "finetune", "finetune"]
    assert relation("merged", False) == "quantized"


def test_settings_say_nothing_of_the_maker() -> None:
    cfg = Config(model=ModelConfig("/home/ann/models/x", chat_template="/home/ann/t.jinja", load_in_4bit=True))
    cfg.train.learning_rate, cfg.train.loss = 1e-4, "/home/ann/my.py:loss"
    cfg.train.extra = {"hub_token": "hf_abc", "adam_beta2": 0.9, "logging_dir": "logs"}
    cfg.adapter.target_modules = ["q_proj", "v_proj"]
    found = dict(settings(cfg))
    assert found["train.learning_rate"] == "0.0001" and found["adapter.target_modules"] == "[q_proj,v_proj]"
    assert found["train.extra.adam_beta2"] == "0.9" and found["model.load_in_4bit"] == "true"
    assert not any(word in str(found) for word in ("ann", "hf_abc", "logs"))


def test_front_matter_of_a_base_on_the_hub(folder: Path) -> None:
    """Also from a folder whose name a shell and JSON write in another way; a data set of the Hub is named."""
    run = folder / "it's a rün"
    place = run / "export" / "merged"
    place.mkdir(parents=True)
    cfg = Config(recipe="lora_sft", method="sft", output_dir=str(run))
    cfg.model.model_name_or_path, cfg.data.dataset_name = "google/gemma-3-270m-it", "me/rows"
    made = RunFolder.open(cfg)
    made.result.artifacts["merged"] = "export/merged"
    made.note_inputs({"google/gemma-3-270m-it": f"commit {COMMIT}", "/home/ann/rows.jsonl": "a" * 64})
    text = card(ReportInputs(cfg, made, "x", Evaluation(), Evaluation()), "merged", place)
    data = ModelCard(text).data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("google/gemma-3-270m-it", "finetune")
    assert (data["license"], data["datasets"]) == ("gemma", ["me/rows"])
    assert "ai.google.dev/gemma/terms" in text and COMMIT in text and "`rows.jsonl`" in text
    assert "vllm serve '.'" in text or "vllm serve ." in text
    for secret in (str(folder), "a rün", "/home/ann", json.dumps("a rün")[1:-1]):
        assert secret not in text
