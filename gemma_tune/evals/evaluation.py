"""What is measured before and after training: the evaluators of `eval=…`, together."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma_tune.config import Config
from gemma_tune.data.dataset import Rows
from gemma_tune.evals.held_out import held_out_loss
from gemma_tune.evals.samples import sample_answers


@dataclass(frozen=True)
class Evaluation:
    """Figures by name, and greedy answers as `prompt`, `wanted`, `answer` and `stopped`."""

    figures: dict[str, float] = field(default_factory=dict)
    answers: list[dict[str, str]] = field(default_factory=list)

    def save(self, folder: Path, when: str) -> None:
        """Writes `eval/<when>.json`."""
        folder.mkdir(exist_ok=True)
        text = json.dumps(vars(self), indent=2, ensure_ascii=False)
        (folder / f"{when}.json").write_text(text + "\n", encoding="utf-8")


def evaluate(cfg: Config, model: Any, tokenizer: Any, held_out: Rows) -> Evaluation:
    """Runs the evaluators on the held-out rows; leaves model and random state as they were.

    Args:
        cfg: `eval`, and the batch size.
        model: The model, or a PeftModel around it.
        tokenizer: Its tokenizer.
        held_out: Held-out rows, perhaps none.
    """
    figures: dict[str, float] = {}
    if cfg.eval.held_out_loss and held_out.rendered:
        batch_size = cfg.train.per_device_eval_batch_size
        figures = held_out_loss(model, held_out.rendered, tokenizer.pad_token_id, batch_size)
    asked = held_out.records[: cfg.eval.num_samples]
    return Evaluation(figures, sample_answers(model, tokenizer, asked, cfg.eval.max_new_tokens))
