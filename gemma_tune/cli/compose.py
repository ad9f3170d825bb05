"""From words to a checked configuration: Hydra composes, `validation` checks, dataclasses come out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gemma_tune import validation
from gemma_tune.cli.defaults import resolve_defaults, without_idle_grid
from gemma_tune.cli.own_recipe import take_own_recipes
from gemma_tune.cli.run_settings import with_settings_of_run
from gemma_tune.cli.user_overrides import UserOverrides, user_overrides
from gemma_tune.config import Config
from gemma_tune.config.path_keys import make_absolute
from gemma_tune.config.renamed import names_a_method, translated
from gemma_tune.errors import UserError
from gemma_tune.run.paths import CONFIGS
from gemma_tune.untrusted import read_yaml
from gemma_tune.validation.schema import DEFAULTS, GROUPS

ConfigStore.instance().store("schema", node=DEFAULTS)  # of Config; a copy of it is made in a fifth of the time

# A rerun repeats a run; only its folder and whether it runs may differ.
RERUN_KEYS = ("output_dir", "overwrite", "dry_run")


def check_words(words: Sequence[str], config_dirs: Sequence[Path], sweeps: bool = False) -> list[str]:
    """Raises UserError with every problem of the words and of the user's files that they choose.

    Args:
        words: `key=value` words as typed.
        config_dirs: Folders named with `--config-dir`.
        sweeps: Whether commas mean several values (`--multirun`).

    Returns:
        The words as Hydra expects them.
    """
    dirs, own = list(config_dirs), take_own_recipes(words, config_dirs, sweeps)
    problems = [*own.problems, *validation.problems_of_words(own.checked, dirs, sweeps)]
    chosen = {g: [v.split(",") for k, _, v in (w.partition("=") for w in own.checked) if k == g] for g in GROUPS}
    problems += validation.problems_of_files({g: [n for v in names for n in v] for g, names in chosen.items()}, dirs)
    if problems:
        raise UserError(*problems)
    return validation.for_hydra(own.ready)


def checked(tree: Any, recipe: str, where: str, named: UserOverrides | None = None) -> Config:
    """The dataclasses for a composed tree, after the checks that need all of it.

    Args:
        tree: What Hydra has composed, or a stored configuration.
        recipe: The recipe's name.
        where: What messages name as the place of a mistake.
        named: What the user has named, above what the run behind the model brings; None: nothing is taken from a run.

    Raises:
        UserError: Unknown keys, wrong values, or values that don't go together.
    """
    written = cast(dict[str, Any], OmegaConf.to_container(tree, resolve=False))
    written.pop("hydra", None)
    if problem := validation.too_many_references(written, where):
        raise UserError(problem)
    try:
        plain = cast(dict[str, Any], OmegaConf.to_container(tree, resolve=True))
    except OmegaConfBaseException as error:
        raise as_user_error(error) from error
    except (ValueError, RecursionError, OverflowError) as error:  # of a resolver
        raise UserError(f"{where}: a reference (`${{…}}`) can't be resolved ({error}).") from error
    plain.pop("hydra", None)
    problems = validation.problems_of_tree(plain, where)
    if problems:
        raise UserError(*problems)
    if named is not None:
        plain["recipe"] = plain.get("recipe") or recipe
        plain = without_idle_grid(with_settings_of_run(plain, named), named)
        if problems := validation.problems_of_tree(plain, "config.yaml of the run behind the model"):
            raise UserError(*problems)
    # Everything is resolved by now: what still looks like an interpolation is a text, a prompt for example.
    merged = OmegaConf.merge(DEFAULTS, validation.literal(plain))
    cfg = cast(Config, OmegaConf.to_object(merged))
    cfg.recipe = cfg.recipe or recipe
    problems = validation.cross_problems(cfg, {*named.groups, *named.keys} if named else ())
    if problems:
        raise UserError(*problems)
    resolve_defaults(cfg)
    make_absolute(cfg)
    return cfg


def as_user_error(error: Exception) -> UserError:
    """A problem that only Hydra saw, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return UserError("configuration: " + " ".join(lines))


def compose_config(
    recipe: str, overrides: Sequence[str] = (), config_dir: str | Path | Sequence[Path] | None = None
) -> Config:
    """Composes and checks one configuration without the command line.

    Args:
        recipe: Name of a recipe, or the file of one's own.
        overrides: `key=value` words, as on the command line.
        config_dir: Folder with the user's own YAML files, or several.

    Raises:
        UserError: Anything wrong in the words, the files or the values.
    """
    dirs = [Path(config_dir)] if isinstance(config_dir, str | Path) else [*(config_dir or ())]
    words = check_words([f"recipe={recipe}", *overrides], dirs)
    search = [f"hydra.searchpath=[{validation.in_quotes(f'file://{d.resolve()}')}]" for d in dirs]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            tree = compose("config", overrides=[*words, *search])
            return checked(tree, recipe, "configuration", user_overrides(words, dirs))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise as_user_error(error) from error


def load_stored(path: Path, words: Sequence[str]) -> Config:
    """The configuration of an earlier run, from its `config.yaml` alone.

    Args:
        path: The file, or the run folder that holds it.
        words: `key=value` words; only those of RERUN_KEYS may stand beside a rerun.

    Raises:
        UserError: No such file, not one of ours, or another key.
    """
    file = path / "config.yaml" if path.is_dir() else path
    problems = [
        f"command line: `{word}`: a rerun repeats a run as it was; beside rerun= only "
        f"{', '.join(RERUN_KEYS)} can be set. To change values, use recipe=…"
        for word in words
        if word.split("=", 1)[0] not in RERUN_KEYS
    ]
    if not file.is_file():
        problems.append(f"rerun={path}: there is no such file; name the config.yaml of a run folder.")
    if problems:
        raise UserError(*problems)
    check_words(words, [])
    try:
        tree = read_yaml(file)
        if not isinstance(tree, dict) or not names_a_method(tree):
            raise UserError(f"rerun={path}: this is not the config.yaml of a run folder (it has no `method`).")
        own = {"output_dir": None, "overwrite": False, "dry_run": False}
        return checked(
            OmegaConf.merge(validation.literal(translated(tree)), own, OmegaConf.from_dotlist(list(words))),
            "",
            str(file),
        )
    except OmegaConfBaseException as error:
        raise as_user_error(error) from error
    except OSError as error:
        raise UserError(f"rerun={path}: the file can't be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"rerun={path}: this is not valid YAML: {' '.join(str(error).split())}") from error
