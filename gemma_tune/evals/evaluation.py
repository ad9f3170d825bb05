"""What is measured before and after training: the evaluators of `eval=…`, together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma_tune.config import Config
from gemma_tune.data.dataset import Rows
from gemma_tune.data.records import Record
from gemma_tune.evals.exact_match import exact_match
from gemma_tune.evals.held_out import held_out_loss
from gemma_tune.evals.samples import sample_answers

# The figure that a run is judged by, where there are test rows: the exact match on the first file's rows.
HEADLINE = "exact_match"


@dataclass(frozen=True)
class Evaluation:
    """What was measured at one time.

    Attributes:
        figures: By name.
        answers: A few to read, each with `prompt`, `wanted`, `answer` and `stopped` (and `right` for test rows).
        tests: Every answer to the rows of each test file.
    """

    figures: dict[str, float] = field(default_factory=dict)
    answers: list[dict[str, str]] = field(default_factory=list)
    tests: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    @property
    def headline(self) -> str | None:
        """The name of the first figure to look at: exact match where there are test rows, else the held-out loss."""
        named = [n for n in self.figures if n.endswith(f"_{HEADLINE}")]
        return named[0] if named else next(iter(self.figures), None)

    def save(self, folder: Path, when: str) -> None:
        """Writes `eval/<when>.json`."""
        folder.mkdir(exist_ok=True)
        text = json.dumps(vars(self), indent=2, ensure_ascii=False)
        (folder / f"{when}.json").write_text(text + "\n", encoding="utf-8")


def as_text(name: str, value: float | None) -> str:
    """A figure for people: shares as percent, counts whole, all else with four digits; a dash for what is unknown."""
    if value is None:
        return "–"
    if name.endswith((f"_{HEADLINE}", "_stopped")):
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def evaluate(
    cfg: Config, model: Any, tokenizer: Any, held_out: Rows, tests: Mapping[str, Sequence[Record]]
) -> Evaluation:
    """Runs the evaluators; leaves model and random state as they were.

    Args:
        cfg: `eval`, and the batch size.
        model: The model, or a PeftModel around it.
        tokenizer: Its tokenizer.
        held_out: Held-out rows, perhaps none.
        tests: Test rows by name, perhaps none.
    """
    figures: dict[str, float] = {}
    if cfg.eval.held_out_loss and held_out.rendered:
        batch_size = cfg.train.per_device_eval_batch_size
        figures |= held_out_loss(model, held_out.rendered, tokenizer.pad_token_id, batch_size)
    answered: dict[str, list[dict[str, str]]] = {}
    for name, records in tests.items() if cfg.eval.exact_match else ():
        found, answered[name] = exact_match(
            model, tokenizer, records, cfg.eval.max_new_tokens, cfg.eval.batch_size or 1, name
        )
        figures |= found
    if answered:
        shown = next(iter(answered.values()))[: cfg.eval.num_samples]
    else:
        shown = sample_answers(model, tokenizer, held_out.records[: cfg.eval.num_samples], cfg.eval.max_new_tokens)
    return Evaluation(figures, shown, answered)
