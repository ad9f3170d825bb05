"""`recipe=evaluate`: the same evaluators on whatever holds the weights, row by row."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import SHORT, short_run
from transformers import AutoModelForCausalLM

import gemma_tune
from gemma_tune import UserError
from gemma_tune.chat import Rendered
from gemma_tune.cli.compose import compose_config
from gemma_tune.data.loading import load_held_out
from gemma_tune.data.reading import read_tests
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.evals.kl import kl_and_agreement
from gemma_tune.evals.samples import prompt_ids
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_model
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import ASSETS

# The same rows as those of `short_run`, and more answers.
MEASURED = [
    "model.dtype=float32", "tracker=none", "data.max_eval_samples=8", "eval.max_samples=12",
    "eval.max_new_tokens=24", "eval.num_samples=2",
]  # fmt: skip
DATA = os.environ.get("GEMMA_TUNE_TEST_DATA", "")
BFCL = [
    f"eval.tool_calls.questions_file={DATA}/bfcl/simple_python.jsonl",
    f"eval.tool_calls.answers_file={DATA}/bfcl/simple_python_answers.jsonl",
]


def evaluate(model: Path | str, folder: Path, *words: str) -> gemma_tune.RunResult:
    return gemma_tune.run("evaluate", [f"model.model_name_or_path={model}", f"output_dir={folder}", *MEASURED, *words])


def stored(folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((folder / "eval" / "after.json").read_text("utf-8"))
    return tree


@pytest.fixture(scope="session")
def trained(once: Any) -> Path:
    words = [w for w in MEASURED if not w.startswith(tuple(s.split("=")[0] for s in SHORT))]
    more = [
        "eval.before=false",
        "eval.evaluators=[held_out_loss,answers]",
        "export.dtype=float32",
        "train.learning_rate=8e-3",
    ]
    more += ["data.max_eval_samples=8", "eval.max_new_tokens=24"]
    folder: Path = once("evaluated", lambda path: short_run("lora_sft", path, *words, *more, steps=12))[0]
    return folder


@pytest.mark.slow
def test_an_adapter_its_merged_weights_and_the_run(trained: Path, tmp_path: Path) -> None:
    """Row by row the same scores and answers; losses to float32's rounding."""
    merged = trained / "export" / "merged"
    found = {"run": stored(trained)}
    for name, path in (("folder", trained), ("adapter", trained / "adapter"), ("merged", merged)):
        result = evaluate(path, tmp_path / name)
        assert result.headline["name"] == "test_exact_match" and not result.failures
        found[name] = stored(tmp_path / name)
    first = found["run"]
    assert first["figures"]["test_rows"] == 12 and len(first["rows"]["held_out_loss"]) == 8
    for name, other in found.items():
        assert other["figures"].keys() == first["figures"].keys(), name
        for figure in ("test_exact_match", "new_phrasings_exact_match"):
            assert other["rows"][figure] == first["rows"][figure], name
        for a, b in zip(other["rows"]["held_out_loss"], first["rows"]["held_out_loss"], strict=True):
            assert a["id"] == b["id"] and a["score"] == pytest.approx(b["score"], rel=1e-5), name


@pytest.mark.slow
def test_a_run_without_data_keys(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own rows and settings, and the figures of its report, row by row; the first line says which rows."""
    words = [f"model.model_name_or_path={trained}", f"output_dir={tmp_path / 'run'}", "tracker=none"]
    gemma_tune.run("evaluate", words)
    assert stored(tmp_path / "run") == stored(trained)
    assert capsys.readouterr().out.startswith(f"data: test rows of {trained}: test (assets://sample/test.jsonl, ")


@pytest.mark.slow
def test_answers_in_batches_and_one_by_one() -> None:
    """Padding and neighbours change no greedy answer."""
    cfg = compose_config("evaluate", [*MEASURED, "eval.max_samples=40"])
    source = find_source(cfg.model)
    tokenizer = load_tokenizer(source)
    model = load_model(cfg.model, source, tokenizer)
    prompts = [prompt_ids(tokenizer, r) for r in read_tests(cfg.data)["test"]]
    prompts += [prompts[0][:n] for n in (3, 40, 7)]
    assert len({len(p) for p in prompts}) > 10
    one, many = (TransformersEngine(model, tokenizer, batch_size=n).answers(prompts, 32, "") for n in (1, 16))
    assert one == many


@pytest.mark.slow
def test_losses_in_batches_and_one_by_one() -> None:
    cfg = compose_config("evaluate", [*MEASURED, "data.max_eval_samples=30"])
    source = find_source(cfg.model)
    tokenizer = load_tokenizer(source)
    model = load_model(cfg.model, source, tokenizer)
    rows: list[Rendered] = list(load_held_out(cfg.data, tokenizer, 1024, cfg.seed).rendered)
    one, many = (TransformersEngine(model, tokenizer, eval_batch_size=n).losses(rows, "") for n in (1, 7))
    assert one == pytest.approx(many, rel=1e-5)


@pytest.mark.slow
def test_divergence_from_another_model(trained: Path, tmp_path: Path) -> None:
    """Against torch's own KL, over the tokens that the loss counts; from itself it is nothing."""
    words = ["eval.evaluators=[kl]", "eval.num_samples=0"]
    result = evaluate(trained / "export" / "merged", tmp_path / "other", *words, f"eval.kl.reference={ASSETS / 'tiny'}")
    cfg = compose_config("evaluate", MEASURED)
    source = find_source(cfg.model)
    rows = load_held_out(cfg.data, load_tokenizer(source), 1024, cfg.seed).rendered
    models = [
        AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32)
        for p in (ASSETS / "tiny", trained / "export/merged")
    ]
    kl, same = [], []
    for row in rows:
        with torch.no_grad():
            p, q = (m(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1) for m in models)
        where = [i - 1 for i, label in enumerate(row.labels) if label != -100]
        each = torch.nn.functional.kl_div(q[where], p[where], reduction="none", log_target=True).sum(-1)
        kl += each.tolist()
        same += (p[where].argmax(-1) == q[where].argmax(-1)).tolist()
    figures = result.metrics["after"]
    assert figures["kl_tokens"] == len(kl) and figures["mean_kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-4)
    assert figures["mean_kl"] > 0.01 and figures["top1_agreement"] == pytest.approx(sum(same) / len(same))
    itself = evaluate(ASSETS / "tiny", tmp_path / "itself", *words, f"eval.kl.reference={ASSETS / 'tiny'}")
    assert itself.metrics["after"]["mean_kl"] == 0.0 and itself.metrics["after"]["top1_agreement"] == 1.0


def test_tokens_of_no_probability_count_nothing() -> None:
    never = torch.tensor([[0.5, 0.5, 0.0]]).log()
    kl, same = kl_and_agreement(never, torch.tensor([[0.25, 0.5, 0.25]]).log())
    assert kl.item() == pytest.approx(0.5 * torch.tensor(2.0).log().item()) and same.item() is False


@pytest.mark.skipif(not DATA, reason="GEMMA_TUNE_TEST_DATA names no folder with BFCL's files")
def test_tool_calls(tmp_path: Path) -> None:
    words = ["eval=tool_calls", *BFCL, "eval.max_samples=5", "eval.num_samples=1", "eval.max_new_tokens=8"]
    result = evaluate(ASSETS / "tiny", tmp_path / "run", *words)
    assert result.headline == {"name": "tool_calls_accuracy", "after": 0.0} and not result.failures
    rows = stored(tmp_path / "run")["rows"]["tool_calls_accuracy"]
    assert [row["id"] for row in rows] == [f"simple_python_{i}" for i in range(5)]
    assert all(row["error"] and row["wanted"].startswith("→ ") for row in rows)
    assert [row["kind"] for row in rows] == ["wrong_count" if row["stopped"] else "cut_off" for row in rows]


@pytest.mark.slow
def test_long_texts(tmp_path: Path) -> None:
    """8,192 tokens go through the embedded model; that it was made for fewer is counted."""
    words = ["eval=long_context", "eval.long_context.lengths=[1024,8192]", "eval.long_context.num_samples=1"]
    result = evaluate(ASSETS / "tiny", tmp_path / "run", *words, "eval.long_context.max_new_tokens=4")
    assert not result.failures
    figures = result.metrics["after"]
    assert figures["long_context_rows_beyond"] == 3 and 0 <= figures["long_context_stopped"] <= 1
    assert 0 <= figures["needle_1024_accuracy"] <= 1
    assert {n for n in figures if "8192" in n} == {
        "needle_8192_accuracy", "multi_key_8192_accuracy", "variable_tracking_8192_accuracy",
    }  # fmt: skip


def test_an_evaluator_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def words(engine, inputs):\n    return {'vocabulary': len(engine.tokenizer)}\n")
    result = evaluate(ASSETS / "tiny", tmp_path / "run", f"eval.evaluators=[{file}:words]")
    assert result.metrics["after"]["vocabulary"] > 1000
    report = (tmp_path / "run" / "report.md").read_text("utf-8")
    assert "vocabulary" in report


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["adapter=lora"], "adapter has no effect"),
        (["train.learning_rate=1"], "train.learning_rate has no effect with recipe=evaluate"),
        (["eval=none"], "nothing to measure"),
        (["eval.evaluators=[kl]", "eval.kl.reference=nowhere/at/all"], "nowhere/at/all"),
        (["compare.models=[a,b]"], "compare.models has no effect"),
        (["data=auto", "eval.evaluators=[kl]", f"eval.kl.reference={ASSETS / 'tiny'}"], "there are none"),
        (
            ["eval=long_context", "eval.long_context.lengths=[20]"],
            "eval.long_context.lengths: .*take 176 tokens",
        ),
    ],
)
def test_mistakes(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        gemma_tune.run("evaluate", [f"output_dir={tmp_path / 'run'}", "tracker=none", "dry_run=true", *words])
    assert not (tmp_path / "run").exists()
