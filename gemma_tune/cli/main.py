"""The command line: `python -m gemma_tune recipe=NAME group=option key=value`."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from gemma_tune.cli import arguments, compose
from gemma_tune.cli.about import recipe_page, version
from gemma_tune.cli.exit_status import exit_status
from gemma_tune.cli.overview import help_page, overview, recipes
from gemma_tune.cli.own_recipe import without_quotes
from gemma_tune.cli.runner import failures_of, run_recipe
from gemma_tune.cli.sweep import run_sweep
from gemma_tune.cli.user_overrides import user_overrides
from gemma_tune.collector import look_seldom
from gemma_tune.errors import RunError, UserError
from gemma_tune.run.paths import CONFIGS, resolve
from gemma_tune.run.stopping import Stops, listening
from gemma_tune.validation.choices import group_problem, options_of


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit status: 0; 2 after a user's mistake, with a message on stderr and no traceback; 1 after a run that
        failed; 130 after Ctrl-C, 143 after SIGTERM and SIGHUP; 141 where nobody reads the output any more.
    """

    def work() -> None:
        with listening(Stops()):  # a run listens for itself from the moment that it has a folder
            _dispatch(sys.argv[1:] if argv is None else argv)

    look_seldom()
    return exit_status(work)


def _dispatch(argv: Sequence[str]) -> None:
    """Prints the overview or the help, repeats a run, or lets Hydra run jobs."""
    if not argv:
        print(overview())
        return
    if {"-v", "-V", "--version"} & set(argv):
        print(version())
        return
    if {"-h", "--help"} & set(argv):
        print(_help([w for w in argv if w not in ("-h", "--help")]))
        return
    words, config_dirs, flags = arguments.parse(argv)
    sweeps = bool({"-m", "--multirun"} & set(flags))
    reruns = [w for w in words if w.startswith("rerun=")]
    if reruns:
        if flags or config_dirs:
            raise UserError("command line: rerun= repeats a run as it was; leave out --config-dir and other flags.")
        stored = Path(reruns[-1].removeprefix("rerun="))
        if failures := failures_of(run_recipe(compose.load_stored(stored, [w for w in words if w not in reruns]))):
            raise RunError("\n".join(failures))
        return
    if not any(w.startswith("recipe=") for w in words) and "--hydra-help" not in flags:
        compose.check_words(words, config_dirs, sweeps)  # a typo such as `recipee=` gets its own answer
        raise UserError(f"command line: recipe=NAME is missing. Recipes: {', '.join(recipes())}")
    if sweeps and any(w.startswith("output_dir=") and "," not in w for w in words):
        raise UserError("command line: output_dir= with --multirun: every job needs a folder of its own; leave it out.")
    ready = compose.check_words(words, config_dirs, sweeps)
    if sweeps and set(flags) <= {"-m", "--multirun"}:
        run_sweep(words, config_dirs, argv)
        return
    with tempfile.TemporaryDirectory() as scratch:  # a multirun leaves its multirun.yaml there
        rest = [w for w in argv if w not in words]
        sys.argv = [sys.argv[0], *rest, *ready, f"hydra.sweep.dir={scratch}"]
        _run_jobs(config_dirs, None if sweeps else argv)


def _help(argv: Sequence[str]) -> str:
    """The page of the recipe that is named, or the general one."""
    words, config_dirs, _ = arguments.parse(argv)
    if not (recipe := next((w.removeprefix("recipe=") for w in words if w.startswith("recipe=")), None)):
        return help_page()
    recipe = without_quotes(recipe)
    compose.check_words([f"recipe={recipe}"], config_dirs)
    options = options_of("recipe", config_dirs)
    if recipe.lower().endswith(".py"):
        return recipe_page(recipe, resolve(recipe).with_suffix(".yaml"), options)
    if problem := group_problem("recipe", recipe, config_dirs):  # what Hydra reads as another type: null, 3
        raise UserError(problem)
    return recipe_page(recipe, options[recipe], options)


def _run_jobs(config_dirs: Sequence[Path], argv: Sequence[str] | None) -> None:
    """Lets Hydra run one job, or what its own flags ask for, and then reports the mistakes.

    Args:
        config_dirs: The folders of `--config-dir`.
        argv: The words of one job, which a cluster is to repeat; None of several.
    """
    problems: list[str] = []
    failures: list[str] = []

    def job(tree: DictConfig) -> float | None:
        """One job of Hydra: one run. Returns the recipe's headline figure for sweepers."""
        try:
            recipe = HydraConfig.get().runtime.choices["recipe"]
            words: Any = OmegaConf.to_container(HydraConfig.get().overrides.task)  # `${…}` in them as it was typed
            cfg = compose.checked(tree, recipe, "configuration", user_overrides(words, config_dirs))
            result = run_recipe(cfg, argv)
            failures.extend(failures_of(result))
            return result.headline_after
        except UserError as error:
            # Raised from here, Hydra would write a line of its own, and drop the mistakes of all jobs but one
            problems.extend(p for p in error.problems if p not in problems)
            return None
        except RunError as error:
            failures.append(str(error))
            return None

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to main() and not to Hydra's own exit with status 1
    hydra.main(config_path=str(CONFIGS), config_name="config", version_base="1.3")(job)()
    if problems:
        raise UserError(*problems)
    if failures:
        raise RunError("\n".join(failures))
