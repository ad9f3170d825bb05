"""Loads the user's own recipe, and checks what only rows or a running file can tell, before a model is loaded."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from pathlib import Path
from types import ModuleType

from gemma_tune.config import Config
from gemma_tune.config.own_functions import LOSS, FunctionCall, field_problem
from gemma_tune.data import reading
from gemma_tune.errors import RunError, UserError
from gemma_tune.user_code import in_message, in_user_code, load_function, load_module, split
from gemma_tune.user_source import read_source

# Rows whose fields are looked at before the run reads all of them
_ROWS = 5000


def load_recipe(cfg: Config) -> ModuleType:
    """Runs the file of the user's own recipe.

    Raises:
        UserError: It can't be run, or has no function that can be called as a recipe's.
    """
    said, file = _recipe(cfg)
    recipe = load_module(file, said)
    for name, words in cfg.traits.functions(cfg.dry_run).items():
        function = getattr(recipe, name, None)
        if not callable(function):
            raise UserError(f"{said}: it has no function {name}({', '.join(words)}).")
        if problem := FunctionCall(words).problem(inspect.signature(function)):
            raise UserError(f"{said}: {name}: {problem}.")
    return recipe


def _recipe(cfg: Config) -> tuple[str, Path]:
    """The words that named the user's own recipe, and its file."""
    return f"recipe={cfg.recipe_file}", Path(str(cfg.recipe_file))


def in_own_recipe(cfg: Config) -> AbstractContextManager[None]:
    """Around the calls of a recipe: an exception that one of the user's own raises is a RunError with file and line."""
    if cfg.recipe_file is None:
        return nullcontext()
    return in_user_code(*_recipe(cfg), ending=RunError)


def check_own_code(cfg: Config) -> None:
    """What the configuration alone can't tell: fields of the rows, and a loss once its file was run.

    Raises:
        UserError: A function of the user's own can't be loaded, or called.
    """
    _check_reward_fields(cfg)
    if cfg.train.loss is not None:
        load_function(cfg.train.loss, "train.loss", LOSS)


def _check_reward_fields(cfg: Config) -> None:
    """Refuses a reward that asks by name for a field which no row has, where all rows are few enough to be looked at.

    Raises:
        UserError: As `rl.own_rewards.prepare`, which looks at all rows.
    """
    references = {name: cfg.reward.functions.get(name) for name in cfg.reward.weighted()}
    if not any(references.values()) or cfg.data.generator or cfg.data.dataset_name:
        return
    trained = [reading.training(cfg.data)] if cfg.traits.rewarded else list(reading.tests(cfg.data).values())
    rows = list(islice(chain.from_iterable(trained), _ROWS + 1))
    if len(rows) > _ROWS:
        return
    fields = tuple(dict.fromkeys(name for record in rows for name in record.row))
    for name, reference in references.items():
        file, function = split(reference or "")
        found = read_source(file).names.get(function, []) if reference else []
        signature = found[-1].signature if found else None
        if signature and (problem := field_problem(signature, fields)):
            said = f"reward.functions.{name}={reference}"
            raise UserError(in_message(said, f"{file}:{found[-1].line}: {problem}.", file))
