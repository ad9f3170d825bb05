"""Which answer a model finds likelier: against log-likelihoods taken by hand, and with an engine of numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemma_tune.chat import Rendered, render_chat, render_prompt
from gemma_tune.cli.compose import compose_config
from gemma_tune.data.loading import load_held_out
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.errors import UserError
from gemma_tune.evals.base import Inputs
from gemma_tune.evals.evaluation import as_text
from gemma_tune.evals.preference import prepare
from gemma_tune.run.paths import ASSETS

PAIRS = [
    ("What is 12 plus 5?", "That makes 17.", "That makes 17, and I could go on and on about it for a while."),
    ("What is the colour of a lemon?", "It is yellow.", "Cellar."),
    ("Where do I cook?", "Nowhere at all, on Friday nobody cooks.", "In the kitchen you can cook."),
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ASSETS / "tiny")


@pytest.fixture
def inputs(tmp_path: Path, tokenizer: Any) -> Inputs:
    file = tmp_path / "pairs.jsonl"
    rows = [json.dumps({"prompt": p, "chosen": c, "rejected": r}) for p, c, r in PAIRS]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    words = ["eval.evaluators=[preference]", "data=preference", f"data.validation_file={file}", "model=tiny"]
    cfg = compose_config("evaluate", words)
    return Inputs(cfg, tokenizer, load_held_out(cfg.data, tokenizer, cfg.train.max_length, 0), {})


def by_hand(model: Any, tokenizer: Any, prompt: str, answer: str) -> tuple[float, int]:
    """Log-likelihood of an answer and its stop token with plain Transformers, and its tokens."""
    asked = [{"role": "user", "content": prompt}]
    begin = len(render_prompt(tokenizer, asked))
    ids = render_chat(tokenizer, [*asked, {"role": "assistant", "content": answer}]).input_ids
    stop = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    ids = ids[: len(ids) - ids[::-1].index(stop)]
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_probs[i - 1, ids[i]].item() for i in range(begin, len(ids))), len(ids) - begin


def test_against_plain_transformers(inputs: Inputs, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny", dtype=torch.float32).eval()
    model.generation_config.eos_token_id = [1]
    outcome = prepare(inputs)(TransformersEngine(model, tokenizer))
    sides = [[by_hand(model, tokenizer, p, answer) for answer in (c, r)] for p, c, r in PAIRS]
    margins = [better - worse for (better, _), (worse, _) in sides]
    per_token = [better / n - worse / m for (better, n), (worse, m) in sides]
    assert [row["score"] for row in outcome.rows["preference_margin"]] == pytest.approx(margins, abs=1e-3)
    for name, expected in (("preference_accuracy", margins), ("preference_accuracy_per_token", per_token)):
        assert [row["score"] for row in outcome.rows[name]] == [float(m > 0) for m in expected]
        assert outcome.figures[name] == pytest.approx(sum(m > 0 for m in expected) / 3)
    assert 0 < outcome.figures["preference_accuracy"] < 1, "pairs of both kinds, or nothing is tested"
    chosen = [side[0] for side in sides]
    loss = -sum(value for value, _ in chosen) / sum(n for _, n in chosen)
    assert outcome.figures["preference_chosen_loss"] == pytest.approx(loss, abs=1e-4)
    assert outcome.figures["preference_pairs"] == 3


def test_length_counts_in_one_figure_only(inputs: Inputs, tokenizer: Any) -> None:
    """With one nat a token the shorter answer wins by its sum, and neither by its mean."""

    def losses(rows: Sequence[Rendered], name: str) -> list[float]:
        return [float(row.trained_tokens) for row in rows]

    engine: Any = SimpleNamespace(losses=losses, tokenizer=tokenizer)
    outcome = prepare(inputs)(engine)
    shorter = [len(tokenizer(c)["input_ids"]) < len(tokenizer(r)["input_ids"]) for _, c, r in PAIRS]
    assert [row["score"] for row in outcome.rows["preference_accuracy"]] == [float(s) for s in shorter]
    assert outcome.figures["preference_accuracy_per_token"] == 0
    assert outcome.figures["preference_chosen_loss"] == 1


def test_no_held_out_pairs_give_no_figure(inputs: Inputs, tokenizer: Any) -> None:
    evaluator = prepare(Inputs(inputs.cfg, tokenizer, TokenizedRows(), {}))
    engine: Any = SimpleNamespace(tokenizer=tokenizer)
    assert evaluator(engine).figures == {}


def test_rows_that_are_no_pairs_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    cfg = compose_config("evaluate", ["eval.evaluators=[preference]", "model=tiny"])  # the sample's chats
    cfg.data.max_eval_samples = 2
    rows = load_held_out(cfg.data, tokenizer, cfg.train.max_length, 0)
    with pytest.raises(UserError, match=r"eval\.evaluators: preference: .*validation\.jsonl:1: this row is not a pair"):
        prepare(Inputs(cfg, tokenizer, rows, {}))


def test_shares_are_said_in_percent() -> None:
    assert as_text("preference_accuracy", 0.5) == as_text("preference_accuracy_per_token", 0.5) == "50.0%"
