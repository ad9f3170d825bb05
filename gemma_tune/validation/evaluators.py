"""Checks of `eval=…`: every evaluator exists and has what it needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gemma_tune.config import Config, EvalConfig
from gemma_tune.config.eval import EVALUATORS, LONG_CONTEXT_KINDS
from gemma_tune.config.model import is_gguf
from gemma_tune.validation.paths import missing_paths
from gemma_tune.validation.suggest import did_you_mean


def evaluator_problems(cfg: Config) -> Iterator[str]:
    """Problems of the evaluators and of their keys."""
    e = cfg.eval
    for key, names in (("evaluators", e.evaluators), ("during_training", e.during_training)):
        for name in names:
            if ":" not in name and name not in EVALUATORS:
                yield (
                    f"eval.{key}: there is no evaluator {name}; there are {', '.join(EVALUATORS)}, and "
                    f"path/to/file.py:function.{did_you_mean(name, EVALUATORS)}"
                )
    used = {*e.evaluators, *(e.during_training if cfg.train.eval_steps else ())}
    for section in (s for s in EVALUATORS if s not in used and hasattr(e, s)):
        value = getattr(e, section)
        for key, default in vars(type(value)()).items():
            if getattr(value, key) != default:
                yield f"eval.{section}.{key} has no effect: add {section} to eval.evaluators, or leave it out."
    yield from _during_training(cfg)
    yield from _answers(e.answers)
    for key in ("questions_file", "answers_file") if "tool_calls" in used else ():
        if not getattr(e.tool_calls, key):
            yield f"eval.tool_calls.{key} is not set: name the leaderboard's file."
    if "kl" in used and not e.kl.reference:
        yield "eval.kl.reference is not set: name the model to compare with (a folder, a run folder, or a Hub name)."
    if e.kl.reference and is_gguf(e.kl.reference):
        yield f"eval.kl.reference={e.kl.reference}: Transformers loads the reference; name a checkpoint, no GGUF file."
    if "lm_eval" in used and not e.lm_eval.tasks:
        yield "eval.lm_eval.tasks is empty: name tasks, for example eval.lm_eval.tasks=[hellaswag]."
    yield from missing_paths(cfg, "eval")
    for kind in e.long_context.kinds:
        if kind not in LONG_CONTEXT_KINDS:
            yield (
                f"eval.long_context.kinds: there is no {kind}; there are {', '.join(LONG_CONTEXT_KINDS)}."
                f"{did_you_mean(kind, LONG_CONTEXT_KINDS)}"
            )


def _during_training(cfg: Config) -> Iterator[str]:
    """Keys of evaluations before and during training that are set where there are no such evaluations."""
    trains = cfg.traits.trains
    keys = ("during_training", "max_samples_during_training", *(() if trains else ("before",)))
    if trains and cfg.train.eval_steps:
        return
    for key in keys:
        measured = not trains and set(cfg.eval.during_training) <= set(cfg.eval.evaluators)
        if key == "during_training" and (cfg.traits.rewarded or measured):  # as configs/eval/rewards.yaml has it
            continue
        if getattr(cfg.eval, key) != getattr(EvalConfig(), key):
            if trains:
                yield f"eval.{key} has no effect without train.eval_steps; set it, too, or leave this out."
            else:
                yield f"eval.{key} has no effect with recipe={cfg.recipe}, which trains nothing; leave it out."


def _answers(answers: Any) -> Iterator[str]:
    if answers.match == "regex" and not answers.regex:
        yield "eval.answers.match=regex: set eval.answers.regex, too."
    elif answers.regex and answers.match != "regex":
        yield "eval.answers.regex has no effect without eval.answers.match=regex; set it, too, or leave this out."
    elif answers.regex:
        try:
            re.compile(answers.regex)
        except re.error as error:
            yield f"eval.answers.regex={answers.regex}: this is no regular expression ({error})."
