"""The evaluations of a run: before training, every N steps, after training, and of each exported file."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

from gemma_tune.config import Config
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.engines.base import Engine
from gemma_tune.engines.open import transformers_engine
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.evals.base import Evaluator
from gemma_tune.evals.evaluation import Evaluation, conditions_of, evaluate, with_samples
from gemma_tune.models.contexts import attention, evaluating
from gemma_tune.models.unwrap import language_part
from gemma_tune.run.result import RunResult
from gemma_tune.run.tracking import Tracker


class RunEvaluator:
    """Evaluates a model at several points of a run; failures are recorded in the run's result.

    Args:
        cfg: `eval`, and the batch size for losses.
        evaluators: The run's evaluators by name, from `prepare`.
        held_out: The held-out rows.
        result: The run's result.
    """

    def __init__(
        self, cfg: Config, evaluators: dict[str, Evaluator], held_out: TokenizedRows, result: RunResult
    ) -> None:
        self._cfg, self._evaluators, self._held_out, self._result = cfg, evaluators, held_out, result

    def at(self, when: str, model: Any, tokenizer: Any) -> Evaluation:
        """Runs `eval.evaluators` on a loaded model, with a few answers to read.

        Args:
            when: `before`, `after`, or the export's name; used in failure messages.
            model: The model, or a PeftModel around it.
            tokenizer: Its tokenizer.
        """
        return self.of(when, transformers_engine(self._cfg, model, tokenizer))

    def of(self, when: str, engine: Engine) -> Evaluation:
        """As `at`, for any engine (`open_engine`).

        Args:
            when: As for `at`.
            engine: The engine to evaluate.
        """
        cfg, loaded = self._cfg, engine.model if isinstance(engine, TransformersEngine) else None
        chosen = {name: self._evaluators[name] for name in cfg.eval.evaluators}
        with contextlib.nullcontext() if loaded is None else evaluating(loaded):
            found = with_samples(evaluate(chosen, engine), engine, cfg, self._held_out)
        self._note(when, found)
        failed = found.failures.keys() - {*found.not_finite}
        conditions = conditions_of(cfg, [n for n in chosen if n not in failed])
        if loaded is None:  # an exported file has its own dtypes
            conditions = {key: value for key, value in conditions.items() if not key.startswith("model.")}
        return replace(found, conditions=conditions)

    def at_step(
        self, model: Any, tokenizer: Any, tracker: Tracker, step: int, kernel: str | None = None
    ) -> dict[str, float]:
        """Evaluates `eval.during_training` and logs the metrics with the tracker.

        Args:
            model: The model in training, or a PeftModel around it.
            tokenizer: Its tokenizer.
            tracker: The tracker that logs the metrics.
            step: Optimizer steps done.
            kernel: The attention kernel used before and after training, if training uses another.

        Returns:
            The metrics; those that aren't finite as NaN.
        """
        chosen = {name: self._evaluators[name] for name in self._cfg.eval.during_training}
        base = language_part(model)
        with attention(base, kernel or base.config._attn_implementation):
            found = evaluate(
                chosen, transformers_engine(self._cfg, model, tokenizer), self._cfg.eval.max_samples_during_training
            )
        self._note(f"step {step}", found)
        tracker.log(found.figures, step, group="eval")
        return found.figures | dict.fromkeys(found.not_finite, math.nan)

    def _note(self, when: str, found: Evaluation) -> None:
        self._result.failures |= {f"{when}: {name}": reason for name, reason in found.failures.items()}
