"""The evaluations of a run: before, every N steps, at the end, of what it exports; and of any engine."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

from gemma_tune.config import Config
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.engines.open import transformers_engine
from gemma_tune.engines.transformers import Engine, TransformersEngine
from gemma_tune.evals.base import Evaluator
from gemma_tune.evals.evaluation import Evaluation, conditions_of, evaluate, with_samples
from gemma_tune.models.contexts import attention, evaluating
from gemma_tune.models.unwrap import language_part
from gemma_tune.run.folder import RunResult
from gemma_tune.run.tracking import Tracker


class RunEvaluator:
    """Measures a model at one time or another; what fails is noted in the run's result.

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
        """What `eval.evaluators` say, and a few answers to read.

        Args:
            when: before, after, or what is exported; for what is said of failures.
            model: The model, or a PeftModel around it.
            tokenizer: Its tokenizer.
        """
        return self.of(when, transformers_engine(self._cfg, model, tokenizer))

    def of(self, when: str, engine: Engine) -> Evaluation:
        """The same of any engine (`open_engine`).

        Args:
            when: As for `at`.
            engine: What is asked.
        """
        cfg, loaded = self._cfg, engine.model if isinstance(engine, TransformersEngine) else None
        chosen = {name: self._evaluators[name] for name in cfg.eval.evaluators}
        with contextlib.nullcontext() if loaded is None else evaluating(loaded):
            found = with_samples(evaluate(chosen, engine), engine, cfg, self._held_out)
        self._note(when, found)
        failed = found.failures.keys() - {*found.not_finite}
        conditions = conditions_of(cfg, [n for n in chosen if n not in failed])
        if loaded is None:  # a file has its own types
            conditions = {key: value for key, value in conditions.items() if not key.startswith("model.")}
        return replace(found, conditions=conditions)

    def at_step(
        self, model: Any, tokenizer: Any, tracker: Tracker, step: int, kernel: str | None = None
    ) -> dict[str, float]:
        """The figures of `eval.during_training`, which the tracker is told, too.

        Args:
            model: The model in training, or a PeftModel around it.
            tokenizer: Its tokenizer.
            tracker: Where the figures go.
            step: Optimizer steps done.
            kernel: The attention that it is measured with before and after training, where it is trained with another.

        Returns:
            The figures; those that are no number as NaN.
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
