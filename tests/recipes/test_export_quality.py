"""The table at the end of an export: what `recipe=evaluate` and `recipe=compare` give by hand, and what to do next."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from torch import nn

import gemma_tune
from gemma_tune.cli.compose import compose_config
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.models.source import Source
from gemma_tune.report.exported import exported_headline, files_section, say_exported
from gemma_tune.run.existing import Found
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.identity import as_one_run
from gemma_tune.run.paths import ASSETS
from gemma_tune.steps.advice import advice_on
from gemma_tune.steps.quality import _compared, measure_files, quality_evaluator, why_not_measured

Finished = Callable[[str], tuple[Path, gemma_tune.RunResult]]
QUIET = ["tracker=none", "eval.num_samples=0"]


def export(model: Path, folder: Path, *words: str) -> dict[str, Any]:
    pytest.importorskip("xllamacpp")
    named = [f"model.model_name_or_path={model}", f"output_dir={folder}", *words]
    result = gemma_tune.run("export", [*QUIET, *named])
    assert result.status == "finished" and not result.failures
    exported: dict[str, Any] = result.metrics["exported"]
    assert json.loads((folder / "result.json").read_text("utf-8"))["metrics"]["exported"] == exported
    return exported


def by_hand(models: list[Path], folder: Path, *words: str) -> dict[str, Any]:
    """Each model evaluated without data keys, and those runs compared, as a user would do it."""
    for number, model in enumerate(models):
        named = [f"model.model_name_or_path={model}", f"output_dir={folder / f'm{number}'}"]
        gemma_tune.run("evaluate", [*QUIET, *named, *words])
    runs = ",".join(str(folder / f"m{n}") for n in range(len(models)))
    compared = [f"compare.models=[{runs}]", f"output_dir={folder / 'compared'}", "tracker=none"]
    return gemma_tune.run("compare", compared).metrics


def hold_equal(exported: dict[str, Any], compared: dict[str, Any]) -> None:
    """Every number of every figure: means, intervals, differences, p, rows better and worse, verdicts."""
    names = [file["name"] for file in exported["files"]]
    assert exported["figures"].keys() == compared.keys()
    for figure, models in exported["figures"].items():
        assert [models[name] for name in names] == list(compared[figure].values()), figure
    shown = exported["figures"][exported["metric"]]
    assert all(file["mean"] == shown[file["name"]]["mean"] for file in exported["files"])


@pytest.mark.slow
def test_the_table_is_what_evaluate_and_compare_give(finished: Finished, tmp_path: Path) -> None:
    """Of a LoRA run, which brings its rows and its evaluator: the adapter is the source, as its run measured it."""
    source, _ = finished("lora_sft")
    folder = tmp_path / "run"
    exported = export(source, folder, "export=gguf")
    planned = json.loads((folder / "result.json").read_text("utf-8"))["metrics"]["planned_bits_per_weight"]
    file = next((folder / "export" / "gguf").glob("*.gguf"))
    hold_equal(exported, by_hand([source, file], tmp_path))
    assert exported["metric"] == "held_out_loss" and exported["rows"] == 4
    before = json.loads((source / "eval" / "after.json").read_text("utf-8"))["figures"]["held_out_loss"]
    assert exported["files"][0]["mean"] == pytest.approx(before, rel=1e-6) != exported["files"][1]["mean"]
    gguf = exported["files"][1]
    assert gguf["bytes"] >= file.stat().st_size and gguf["bits_per_weight"] == pytest.approx(planned)
    # bfloat16 weights and a small adapter in float32, each over the weights that it has
    assert 16 < exported["files"][0]["bits_per_weight"] < 18
    assert gguf["speed"]["engine"] == "llama.cpp" and gguf["speed"]["prompt"] > 0 < gguf["speed"]["answer"]
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text("utf-8")
        assert "Quality, size and speed of the files" in text and f"llama-server --jinja -m {file}" in text
        assert "Nothing: the weights were rounded to q4_0 as they are" in text and "data: validation rows of" in text
        assert text.count(f"{planned:.2f}") == 3  # beside the figures, of the int4 file, and among the artifacts


@pytest.mark.slow
def test_a_gguf_lora_file_is_measured_on_its_base(finished: Finished, tmp_path: Path) -> None:
    """As it is served: llama.cpp puts it onto a GGUF file of the base, and the figure is the adapter's."""
    source, _ = finished("lora_sft")
    folder = tmp_path / "run"
    exported = export(source, folder, "export=gguf_lora")
    own, lora = exported["files"]
    before = json.loads((source / "eval" / "before.json").read_text("utf-8"))["figures"]["held_out_loss"]
    assert (lora["name"], exported["metric"], exported["rows"]) == ("gguf_lora", "held_out_loss", 4)
    assert lora["mean"] == pytest.approx(own["mean"], rel=1e-3) and abs(before - own["mean"]) > 1e-2 * before
    assert lora["speed"]["engine"] == "llama.cpp" and lora["bytes"] < own["bytes"] / 4
    assert any("on a float16 GGUF file of its base; its size is the adapter's alone" in n for n in exported["notes"])
    files = [file.name for file in (folder / "export" / "gguf_lora").iterdir()]
    assert sorted(files) == ["README.md", "tiny-lora.gguf"]
    assert "| gguf_lora |" in (folder / "export" / "gguf_lora" / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_every_file_on_the_sample(tmp_path: Path) -> None:
    """The embedded model on all rows of the sample's test sets."""
    folder = tmp_path / "run"
    exported = export(ASSETS / "tiny", folder)
    places = [folder / "export" / name for name in ("w4a16", "merged")]
    file = next((folder / "export" / "gguf").glob("*.gguf"))
    hold_equal(exported, by_hand([ASSETS / "tiny", file, *places], tmp_path, "eval.evaluators=[answers]"))
    assert exported["rows"] == 200 and [f["name"] for f in exported["files"]] == ["source", "gguf", "w4a16", "merged"]


def of_numbers(verdict: str, advice: list[str]) -> dict[str, Any]:
    """A table of two files, from 95 % to 80 % of 200 rows."""
    base = {"mean": 0.95, "low": 0.91, "high": 0.973}
    test = {
        "difference": -0.15, "difference_low": -0.203, "difference_high": -0.097, "p_value": 1e-7, "p_corrected": 2e-7,
        "method": "McNemar's exact test", "wins": 1, "losses": 31, "ties": 168, "verdict": verdict,
    }  # fmt: skip
    speed = {"engine": "Transformers, bfloat16", "prompt": 12345.6, "answer": 98.7}
    files = [
        {"name": "source", "path": "/runs/x", "bytes": 11_200_000, "bits_per_weight": 16.0, "speed": speed, **base},
        {"name": "gguf", "path": "/runs/e/f.gguf", "bytes": 3_400_000, "bits_per_weight": 4.87,
         "speed": {"engine": "llama.cpp", "prompt": 2345.6, "answer": 312.0},
         **base, "mean": 0.8, "low": 0.739, "high": 0.85, **test},
        {"name": "w4a16", "path": "/runs/e/w4a16", "bytes": 3_500_000, "bits_per_weight": 4.9, "speed": None},
    ]  # fmt: skip
    figures = {"test_exact_match": {f["name"]: {"mean": f.get("mean", 0.0)} for f in files}}
    return {
        "metric": "test_exact_match", "rows": 200, "binary": True, "lower_is_better": False, "files": files,
        "figures": figures, "notes": [], "advice": advice,
    }  # fmt: skip


@pytest.mark.slow
def test_the_table_fits_into_80_columns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place = tmp_path / "gguf"
    place.mkdir()
    (place / "model-q4_0.gguf").touch()
    (place / "Modelfile").touch()
    (tmp_path / "w4a16").mkdir()
    exported = of_numbers("worse", ["gguf: worse. Train for int4: python -m gemma_tune recipe=qat"])
    say_exported(exported, {"gguf": place, "w4a16": tmp_path / "w4a16"}, Console(width=80, highlight=False))
    out = capsys.readouterr().out
    table = out.split("With 95%")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert all(text in table for text in ("95.0%", "−15.0", "80.0%", "worse", "4.87", "3.4 MB", "12,346", "312"))
    assert "…" not in table
    assert f"ollama create model-q4_0 -f {place}/Modelfile && ollama run model-q4_0" in out
    assert f"vllm serve {tmp_path / 'w4a16'}" in out and "from transformers import pipeline" in out
    assert out.rstrip().endswith("recipe=qat") and "warning: gguf" in out
    [section] = files_section({"exported": exported})
    assert section.title == "Quality, size and speed of the files"


@pytest.mark.slow
def test_the_headline_names_the_file_and_the_verdict() -> None:
    head = {"name": "test_exact_match", "before": 0.95, "after": 0.8}
    found = exported_headline(of_numbers("not significant", []), head)
    assert found is not None and found.name == "test_exact_match: source → gguf"
    assert [value.line() for value in found.values] == ["95.0% (91.0–97.3)", "80.0% (73.9–85.0)"]
    assert "not significant, p < 0.001, on 200 rows" in found.note and "−15.0" in found.note
    assert exported_headline(of_numbers("worse", []), head | {"name": "mean_kl"}) is None
    assert exported_headline({}, head) is None


def test_what_to_do_on_the_grid_of_a_checkpoint() -> None:
    words = ["model=gemma3_1b_it", "quant=q4_0_checkpoint"]
    [advice] = advice_on(compose_config("export", [*words, "data.test_files.mine=assets://sample/test.jsonl"]),
                         of_numbers("worse", []))  # fmt: skip
    command = shlex.split(advice.partition(" python -m gemma_tune recipe=qat ")[2])
    assert (
        compose_config("qat", [w for w in command if w.startswith(("model", "quant"))]).quant
        == compose_config("qat", words).quant
    )
    [advice] = advice_on(compose_config("qat", words), of_numbers("worse", []))
    assert "a lower train.learning_rate" in advice and "recipe=tune_to_int4" not in advice


@pytest.mark.parametrize(
    "words",
    [
        ["quant=phone", "export=merged", "quant.calibration_samples=0", r"quant.int2_modules=['layers\.(4|5)\.mlp']"],
        ["quant=phone", "export=phone", "quant.embedding=int8_channel", "quant.int8_modules=[v_proj,k_proj]"],
        ["quant=q4_0_embedding"],
    ],
)
def test_the_command_has_the_whole_format(words: list[str]) -> None:
    words = ["model=gemma3_1b_it", "data.test_files.mine=assets://sample/test.jsonl", *words]
    cfg = compose_config("export", words)
    [advice] = advice_on(cfg, of_numbers("worse", []))
    command = shlex.split(advice.partition(" python -m gemma_tune recipe=qat ")[2])
    again = compose_config("qat", [word.replace("YOUR_ROWS.jsonl", "assets://sample/train.jsonl") for word in command])
    assert again.quant == cfg.quant and again.export.formats == cfg.export.formats


@pytest.mark.slow
def test_what_to_do_where_a_file_is_worse(finished: Finished) -> None:
    """A command that can be copied: it is composed, and trains the same model on the rows of its run."""
    run, _ = finished("lora_sft")
    cfg = compose_config("export", [f"model.model_name_or_path={run}", "quant=q4_0_embedding"])
    [advice] = advice_on(cfg, of_numbers("worse", []))
    said, _, command = advice.partition(" python -m gemma_tune recipe=qat ")
    assert said.startswith("gguf: test_exact_match is worse than the source's.")
    embeddings = ["quant.embedding=q4_0", "quant.per_layer_embedding=q4_0"]
    assert shlex.split(command) == [f"model.model_name_or_path={run}", *embeddings]
    assert compose_config("qat", shlex.split(command)).data.train_file == "assets://sample/train.jsonl"
    assert not list(advice_on(cfg, of_numbers("not significant", [])))
    hub = compose_config("export", ["model=gemma3_1b_it", "data.test_files.mine=assets://sample/test.jsonl"])
    [advice] = advice_on(hub, of_numbers("worse", []))
    rows = "data=auto data.train_file=YOUR_ROWS.jsonl data.test_files.mine=assets://sample/test.jsonl"
    assert advice.endswith(f"recipe=qat model.model_name_or_path=google/gemma-3-1b-it {rows}")


@pytest.mark.slow
def test_the_command_reads_the_rows_that_the_files_were_measured_on(tmp_path: Path) -> None:
    """Those that were named in place of the run's, and how they are read; also of a model without a run."""
    rows, theirs = tmp_path / "my rows.csv", tmp_path / "theirs.jsonl"
    rows.write_text("frage,null\nWas?,Das.\n", encoding="utf-8")
    theirs.write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    shutil.copytree(ASSETS / "tiny", tmp_path / "mine")
    shutil.copytree(ASSETS / "tiny", run := tmp_path / "run", dirs_exist_ok=True)
    words = ["data=auto", f"data.train_file={theirs}", f"data.test_files.old={theirs}", "tracker=none"]
    tree = as_one_run(compose_config("full_sft", [*words, "data.format=prompt_completion"]))
    (run / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    (run / "manifest.json").write_text('{"gemma_tune": "1"}', encoding="utf-8")
    for model, own in ((run, []), (tmp_path / "mine", [f"data.train_file={rows}"])):
        said = [f"model.model_name_or_path={model}", "export.formats=[gguf]", "model.chat_template=gemma3"]
        said += ["data.format=columns", "data.prompt_column=frage", "data.completion_column='null'", *own]
        said += [f"data.test_files.mine={rows}", f"model.tokenizer_name_or_path={ASSETS / 'tiny'}"]
        said += ["data.ignore_fields=[a.b,'c d']", "export.max_shard_size=1GB"]
        cfg = compose_config("export", said)
        [advice] = advice_on(cfg, of_numbers("worse", []))
        trained = compose_config("qat", shlex.split(advice.partition("recipe=qat ")[2]))
        assert {**asdict(trained.data), "train_file": ""} == {**asdict(cfg.data), "train_file": ""}, model
        assert trained.data.train_file == str(rows if own else theirs)
        assert trained.export.formats == ["gguf"] and trained.export.max_shard_size == "1GB"
        for key in ("chat_template", "tokenizer_name_or_path"):
            assert getattr(trained.model, key) == getattr(cfg.model, key)


@pytest.mark.slow
def test_files_are_compared_under_the_conditions_of_each() -> None:
    """As `recipe=compare` does it, which notes that the types of the weights differ."""
    rows = {"test_exact_match": [{"id": str(n), "score": float(n % 2)} for n in range(8)]}
    found = {n: Evaluation({}, rows, conditions={"model.dtype": t}) for n, t in (("source", "float32"), ("w4a16", "b"))}
    comparison, _ = _compared(compose_config("export"), found)
    assert comparison is not None
    assert comparison.notes == ["model.dtype wasn't the same: float32 for source and b for w4a16."]


def test_codes_of_single_experts_are_not_measured(tmp_path: Path) -> None:
    """And that is a note, no failure of the run."""
    run = RunFolder(tmp_path / "run", cfg := compose_config("export"), Found.NOTHING, None)
    run.export("w4a16").mkdir(parents=True)
    (run.export("w4a16") / "config.json").write_text('{"text_config": {"enable_moe_block": true}}')
    run.result.artifacts["w4a16"] = "export/w4a16"
    known = Evaluation({}, {"test_exact_match": [{"id": "1", "score": 1.0}]})
    found = measure_files(cfg, run, nn.Linear(1, 1), Source(str(tmp_path), None, None, str(tmp_path)), known)
    assert any(n.startswith("w4a16 was not measured: Transformers has no place") for n in found["notes"])
    assert not run.result.failures


@pytest.mark.slow
def test_which_evaluator() -> None:
    assert quality_evaluator(compose_config("export")) == "answers"
    tests_gone = ["data.test_files.test=null", "data.test_files.new_phrasings=null"]
    assert quality_evaluator(compose_config("export", tests_gone)) == "held_out_loss"
    none = compose_config("export", ["model=gemma3_1b_it"])
    assert quality_evaluator(none) is None and "data.test_files.mine=FILE" in why_not_measured(none)
    assert quality_evaluator(compose_config("export", ["export.quality_samples=0"])) is None
    with pytest.raises(gemma_tune.UserError, match="quality_samples has no effect"):
        compose_config("lora_sft", ["export.quality_samples=3"])


@pytest.mark.slow
def test_a_model_without_rows(tmp_path: Path) -> None:
    """A checkpoint of the user's: exported and checked on a text of ours; quality is not measured, and that is said."""
    pytest.importorskip("xllamacpp")
    shutil.copytree(ASSETS / "tiny", tmp_path / "mine")
    words = [f"model.model_name_or_path={tmp_path / 'mine'}", f"output_dir={tmp_path / 'run'}", "export=w4a16"]
    result = gemma_tune.run("export", ["tracker=none", *words])
    exported = result.metrics["exported"]
    assert result.status == "finished" and exported["metric"] is None and result.metrics["verify"]
    [note] = exported["notes"]
    assert note.startswith("Quality was not measured: there are no rows") and "data.test_files.mine=FILE" in note
    assert note in (tmp_path / "run" / "report.md").read_text("utf-8").replace("\\", "")
    assert RunFolder.open(compose_config("export", ["tracker=none", *words])).finished
