"""The command line: `python -m gemma_tune recipe=NAME group=option key=value`."""

from __future__ import annotations

import importlib
import sys

if sys.modules[__package__ or "gemma_tune"].__file__ is None:
    # The current folder holds a folder named gemma_tune, a clone for example, and `python -m` looks there first: what
    # was imported is that folder, and not the installed package inside it.
    sys.path.pop(0)
    sys.modules.pop("gemma_tune")
    importlib.import_module("gemma_tune")

import argparse
import os
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gemma_tune.cli import compose
from gemma_tune.cli.runner import launch
from gemma_tune.errors import RunError, UserError
from gemma_tune.run.folder import RunResult
from gemma_tune.run.paths import CONFIGS
from gemma_tune.validation.schema import FIELDS, full_key
from gemma_tune.validation.suggest import did_you_mean

EXAMPLES = """\
Examples:
  python -m gemma_tune recipe=qlora_sft
  python -m gemma_tune recipe=lora_sft model=gemma3_1b_it data=messages data.train_file=my.jsonl
  python -m gemma_tune recipe=qlora_sft model=gemma3_4b_it data=columns data.train_file=my.jsonl \\
      data.prompt_column=question data.completion_column=answer dry_run=true"""

HELP = """\
python -m gemma_tune recipe=NAME [group=option …] [key=value …]

  group=option    choose a file of configs/: {groups}
  key=value       set a value, for example train.learning_rate=1e-4 (docs/configuration.md lists all)
  dry_run=true    check settings and rows, count tokens, estimate the memory; train nothing
  rerun=FILE      repeat a run from its config.yaml (with output_dir=… overwrite=… dry_run=…)

  --config-dir FOLDER   look for your own YAML files there, too (FOLDER/recipe/my_run.yaml)
  -m, --multirun        run every combination of comma-separated values
  --cfg job             print the composed configuration, unresolved and unchecked
"""

_FLAGS = {
    "--help": "-h", "--multirun": "-m", "--config-dir": "-cd", "--cfg": "-c", "--resolve": None,
    "--package": "-p", "--hydra-help": None, "--info": "-i", "--version": None,
}  # fmt: skip


def recipes() -> dict[str, str]:
    """The shipped recipes, each with the first line of its YAML's comment."""
    found = {}
    for file in sorted((CONFIGS / "recipe").glob("*.yaml")):
        comments = re.findall(r"^# (?!@package)(.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        found[file.stem] = comments[0] if comments else ""
    return found


def overview() -> str:
    """What `python -m gemma_tune` alone prints."""
    width = max(len(n) for n in recipes())
    lines = [f"  {name.ljust(width)}  {line}" for name, line in recipes().items()]
    return "\n".join(["Recipes (python -m gemma_tune recipe=NAME):", *lines, "", EXAMPLES])


def _split(argv: Sequence[str]) -> tuple[list[str], list[Path], list[str]]:
    """The `key=value` words, the `--config-dir` folders, and Hydra's own flags."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config-dir", "-cd", action="append", default=[])
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--package", "-p")
    parser.add_argument(
        "--info", "-i", nargs="?", choices=("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    )
    try:
        known, rest = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise UserError(f"command line: {error.argument_name}: {error.message}. See --help.") from error
    words = [w for w in rest if not w.startswith("-")]
    flags = [w for w in rest if w.startswith("-")]
    allowed = {*_FLAGS, *(s for s in _FLAGS.values() if s)}
    problems = []
    for flag in flags:
        name, _, value = flag.partition("=")
        key = full_key(name.strip("-"))
        if name in ("--config-name", "-cn", "--config-path", "-cp"):
            problems.append(f"command line: {name} isn't used here; keep your files with --config-dir FOLDER.")
        elif value and name in allowed:
            problems.append(f"command line: {flag}: {name} takes no value.")
        elif value:
            problems.append(f"command line: {flag}: keys stand without dashes: {key}={value}")
        elif name not in allowed and key in FIELDS:
            problems.append(f"command line: {flag}: keys stand without dashes: {key}=VALUE")
        elif name not in allowed:
            problems.append(f"command line: there is no flag {name}.{did_you_mean(name, _FLAGS)} See --help.")
    if problems:
        raise UserError(*problems)
    flags += [f"--{name}" for name in ("cfg", "package", "info") if getattr(known, name)]
    return words, [Path(d) for d in known.config_dir], flags


def _run_jobs() -> None:
    """Lets Hydra run one job, or with --multirun several, and then says the mistakes of all of them."""
    problems: list[str] = []
    failures: list[str] = []

    def job(tree: DictConfig) -> float | None:
        """One job of Hydra: one run. Returns the recipe's headline figure for sweepers."""
        try:
            recipe = HydraConfig.get().runtime.choices["recipe"]
            result = launch(compose.checked(tree, recipe, "configuration"))
            failures.extend(_failures(result))
            return result.headline_after
        except UserError as error:
            # Raised from here, Hydra would write a line of its own, and drop all but one job's mistakes.
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


def _failures(result: RunResult) -> list[str]:
    """What a finished run could not measure: the rest of it stands, and the exit status says so."""
    where = f"{result.folder}: " if result.folder else ""
    return [f"{where}{what} failed: {reason}" for what, reason in result.failures.items()]


def _main(argv: Sequence[str]) -> None:
    if not argv:
        print(overview())
        return
    if {"-h", "--help"} & set(argv):
        groups = " ".join(sorted(p.name for p in CONFIGS.iterdir() if p.is_dir()))
        print(HELP.format(groups=groups) + "\n" + overview())
        return
    words, config_dirs, flags = _split(argv)
    reruns = [w for w in words if w.startswith("rerun=")]
    if reruns:
        if flags or config_dirs:
            raise UserError("command line: rerun= repeats a run as it was; leave out --config-dir and other flags.")
        stored = Path(reruns[-1].removeprefix("rerun="))
        if failures := _failures(launch(compose.load_stored(stored, [w for w in words if w not in reruns]))):
            raise RunError("\n".join(failures))
        return
    if not any(w.startswith("recipe=") for w in words) and not {"--hydra-help", "--version"} & set(flags):
        compose.check_words(words, config_dirs)  # a typo such as `recipee=` gets its own answer
        raise UserError(f"command line: recipe=NAME is missing. Recipes: {', '.join(recipes())}")
    if {"-m", "--multirun"} & set(flags) and any(w.startswith("output_dir=") and "," not in w for w in words):
        raise UserError("command line: output_dir= with --multirun: every job needs a folder of its own; leave it out.")
    ready = compose.check_words(words, config_dirs)
    with tempfile.TemporaryDirectory() as scratch:  # a multirun leaves its multirun.yaml there
        rest = [w for w in argv if w not in words]
        sys.argv = [sys.argv[0], *rest, *ready, f"hydra.sweep.dir={scratch}"]
        _run_jobs()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit status: 0, or 2 after a mistake of the user's (said on stderr, without a traceback).
    """
    try:
        _main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"gemma_tune: {error}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        print(f"gemma_tune: {compose.as_user_error(error)}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"gemma_tune: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"\ngemma_tune: interrupted. {error}".rstrip(), file=sys.stderr)
        return 130
    except BrokenPipeError:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # who read the answers has read enough, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print("gemma_tune: nobody reads the output any more.", file=sys.stderr)
            return 128 + signal.SIGPIPE
        raise
    except PermissionError as error:
        print(f"gemma_tune: {error.filename}: you have no right to read or write this.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
