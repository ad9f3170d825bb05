"""Checks of `eval=…`: evaluators that exist, and have what they need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gemma_tune.config import Config, EvalConfig
from gemma_tune.config.eval import EVALUATORS, LONG_CONTEXT_KINDS
from gemma_tune.config.model import is_gguf
from gemma_tune.run.paths import looks_local, resolve
from gemma_tune.validation.suggest import did_you_mean, missing_path


def evaluator_problems(cfg: Config) -> Iterator[str]:
    """What is wrong with the evaluators, and with what is set of them."""
    e = cfg.eval
    for key, names in (("evaluators", e.evaluators), ("during_training", e.during_training)):
        for name in names:
            file, colon, function = name.rpartition(":")
            if colon and function and not resolve(file).is_file():
                yield missing_path(f"eval.{key}", file, "file")
            elif not colon and name not in EVALUATORS:
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
    if "tool_calls" in used:
        yield from _files(e.tool_calls)
    if "kl" in used and not e.kl.reference:
        yield "eval.kl.reference is not set: name the model to compare with (a folder, a run folder, or a Hub name)."
    if e.kl.reference and is_gguf(e.kl.reference):
        yield f"eval.kl.reference={e.kl.reference}: Transformers loads the reference; name a checkpoint, no GGUF file."
    elif e.kl.reference and looks_local(e.kl.reference) and not resolve(e.kl.reference).is_dir():
        yield missing_path("eval.kl.reference", e.kl.reference, "folder")
    if "lm_eval" in used and not e.lm_eval.tasks:
        yield "eval.lm_eval.tasks is empty: name tasks, for example eval.lm_eval.tasks=[hellaswag]."
    if e.lm_eval.include_path and not resolve(e.lm_eval.include_path).is_dir():
        yield missing_path("eval.lm_eval.include_path", e.lm_eval.include_path, "folder")
    if e.long_context.text_file and not resolve(e.long_context.text_file).is_file():
        yield missing_path("eval.long_context.text_file", e.long_context.text_file, "file")
    for kind in e.long_context.kinds:
        if kind not in LONG_CONTEXT_KINDS:
            yield (
                f"eval.long_context.kinds: there is no {kind}; there are {', '.join(LONG_CONTEXT_KINDS)}."
                f"{did_you_mean(kind, LONG_CONTEXT_KINDS)}"
            )


def _during_training(cfg: Config) -> Iterator[str]:
    """What is set of the evaluations before and while training, where there are none."""
    trains = cfg.traits.trains
    keys = ("during_training", "max_samples_during_training", *(() if trains else ("before",)))
    if trains and cfg.train.eval_steps:
        return
    for key in keys:
        if cfg.traits.rewarded and key == "during_training":  # configs/eval/rewards.yaml names what it would be
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


def _files(files: Any) -> Iterator[str]:
    for key in ("questions_file", "answers_file"):
        name = getattr(files, key)
        if not name:
            yield f"eval.tool_calls.{key} is not set: name the leaderboard's file."
        elif not resolve(name).is_file():
            yield missing_path(f"eval.tool_calls.{key}", name, "file")
