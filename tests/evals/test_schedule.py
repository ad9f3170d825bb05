"""The evaluations of short real runs: the same arithmetic at every time, and results that outlive a crash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from short_runs import metrics, short_run

from gemma_tune.errors import UserError

# The sum of one row's log-probabilities, to the last bit.
SEEN = """
def f(engine, inputs):
    return {"seen": next(engine.log_probs([list(range(10, 60))], "seen")).double().sum().item()}
"""
STOPS = """
def f(engine, inputs):
    raise KeyboardInterrupt
"""


def own(folder: Path, text: str) -> str:
    (folder / "mine.py").write_text(text, encoding="utf-8")
    return f"{folder / 'mine.py'}:f"


def test_a_step_is_measured_as_it_is_before_and_after(tmp_path: Path) -> None:
    """In bfloat16, where eager attention, which a narrow model is trained with, gives other digits than SDPA."""
    name = own(tmp_path, SEEN)
    words = [
        "model.dtype=bfloat16", "train.learning_rate=1e-30", f"eval.evaluators=[{name}]", "train.eval_steps=1",
        f"eval.during_training=[{name}]", "export=none", "eval.num_samples=0",
    ]  # fmt: skip
    short_run("lora_sft", tmp_path / "run", *words, steps=1)
    before, during_training, after = [line["seen"] for line in metrics(tmp_path / "run") if "seen" in line]
    assert before == during_training == after
    stored = json.loads((tmp_path / "run" / "eval" / "after.json").read_text("utf-8"))
    assert stored["conditions"] == {"model.dtype": "bfloat16", "model.load_in_4bit": False}
    inputs = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))["inputs"]
    assert str(tmp_path / "mine.py") in inputs


@pytest.mark.slow
def test_what_was_measured_before_outlives_the_training(tmp_path: Path) -> None:
    words = [f"eval.during_training=[{own(tmp_path, STOPS)}]", "train.eval_steps=1", "export=none"]
    with pytest.raises(KeyboardInterrupt):
        short_run("lora_sft", tmp_path / "run", *words)
    stored = json.loads((tmp_path / "run" / "eval" / "before.json").read_text("utf-8"))
    assert stored["figures"]["held_out_loss"] > 0 and stored["lower_is_better"] == ["held_out_loss", "perplexity"]
    assert {"train.max_length", "model.dtype"} < set(stored["conditions"])
    assert not (tmp_path / "run" / "eval" / "after.json").exists()


@pytest.mark.parametrize("words", [[], ["data.streaming=true"]])
def test_a_dry_run_looks_at_the_evaluators(words: list[str], tmp_path: Path) -> None:
    wrong = ["eval.evaluators=[kl]", f"eval.kl.reference={tmp_path}", "dry_run=true", *words]
    with pytest.raises(UserError, match=r"eval\.kl\.reference=.*no config\.json"):
        short_run("lora_sft", tmp_path / "run", *wrong)
