"""Models that are compared: what is known of each before any weight is loaded, and measuring those that aren't yet."""

from __future__ import annotations

import gc
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from gemma_tune.compare.results import ModelResults
from gemma_tune.compare.stored import stored_results
from gemma_tune.config import Config
from gemma_tune.data.records import Record
from gemma_tune.data.tokenized import TokenizedRows, load_held_out, read_tests
from gemma_tune.errors import RunError, UserError
from gemma_tune.evals.base import Evaluator
from gemma_tune.evals.evaluation import prepare_evaluators
from gemma_tune.evals.schedule import RunEvaluator
from gemma_tune.models.load import check_vocabulary, load_model, load_tokenizer
from gemma_tune.models.source import Source, find_source
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import is_run_with_results


@dataclass(frozen=True)
class Asked:
    """A model that is to be measured, and what that needs beside its weights.

    Attributes:
        cfg: The configuration, with this model as its own.
        name: What it is called.
        source: Where it is.
        tokenizer: Its tokenizer.
        held_out: The held-out rows, as its tokenizer cuts them.
        tests: The test rows by name.
        evaluators: What measures it.
    """

    cfg: Config
    name: str
    source: Source
    tokenizer: Any
    held_out: TokenizedRows
    tests: Mapping[str, Sequence[Record]]
    evaluators: dict[str, Evaluator]


def names_of(cfg: Config) -> list[str]:
    """`compare.names`, or the last parts of the models' paths that tell them apart."""
    models = cfg.compare.models
    parts = [Path(m).expanduser().parts for m in models]
    depth = next(n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(parts))
    return cfg.compare.names or ["/".join(p[-depth:]) for p in parts]


def look_at_all(cfg: Config) -> list[ModelResults | Asked]:
    """What is known of each model without its weights.

    Raises:
        UserError: All that is wrong with them.
    """
    found: list[ModelResults | Asked] = []
    problems: dict[str, None] = {}
    for name, model in zip(names_of(cfg), cfg.compare.models, strict=True):
        try:
            found.append(stored_results(name, model) if is_run_with_results(model) else _look_at(cfg, name, model))
        except UserError as error:
            said = (p.replace("model.model_name_or_path=", "compare.models: ") for p in error.problems)
            problems |= dict.fromkeys(said if not is_run_with_results(model) else error.problems)
    if problems:
        raise UserError(*problems)
    return found


def _look_at(cfg: Config, name: str, model: str) -> Asked:
    own = replace(cfg, model=replace(cfg.model, model_name_or_path=model))
    source = find_source(own.model)
    tokenizer = load_tokenizer(source, own.model.chat_template)
    held_out = load_held_out(own.data, tokenizer, own.train.max_length, own.seed)
    tests = read_tests(own.data) if own.eval.answers_tests else {}
    evaluators = prepare_evaluators(own, tokenizer, held_out, tests)
    return Asked(own, name, source, tokenizer, held_out, tests, evaluators)


def measure(asked: Asked, number: int, folder: RunFolder) -> ModelResults:
    """Loads one model, and measures it as `recipe=evaluate` does.

    Raises:
        RunError: It can't be loaded; what was measured of the models before it is kept.
    """
    cfg, name = asked.cfg, asked.name
    folder.add_inputs(*asked.source.inputs)
    set_seed(cfg.seed)
    try:
        model = load_model(cfg.model, asked.source, asked.tokenizer)
        check_vocabulary(model, [asked.held_out.highest_id])
    except (UserError, torch.OutOfMemoryError) as error:
        kept = f" What was measured before it is kept in {folder.evals}." if number > 1 else ""
        raise RunError(f"{name}: {error}{kept}") from error
    found = RunEvaluator(cfg, asked.evaluators, asked.held_out, folder.result).at(name, model, asked.tokenizer)
    found.save(folder.evals, f"{number}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}")
    del model
    gc.collect()
    return ModelResults(name, found.figures, found.rows, found.lower_is_better, found.conditions)
