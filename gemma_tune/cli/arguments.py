"""The arguments of the command line, apart: `key=value` words, folders of configurations, Hydra's flags."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from gemma_tune.errors import UserError
from gemma_tune.validation.schema import FIELDS, GROUPS, full_key
from gemma_tune.validation.suggest import OTHER_TOOLS, did_you_mean

_FLAGS = {
    "--help": "-h", "--multirun": "-m", "--config-dir": "-cd", "--cfg": "-c", "--resolve": None,
    "--package": "-p", "--hydra-help": None, "--info": "-i", "--version": None,
}  # fmt: skip


def parse(argv: Sequence[str]) -> tuple[list[str], list[Path], list[str]]:
    """The `key=value` words, the `--config-dir` folders, and the names of Hydra's own flags.

    Raises:
        UserError: An unknown flag, or a key that is written as one.
    """
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
    flags = [w for w in rest if w.startswith("-")]
    after = dict(itertools.pairwise(rest))
    if problems := [problem for flag in flags if (problem := _flag_problem(flag, after.get(flag, "")))]:
        raise UserError(*problems)
    flags += [f"--{name}" for name in ("cfg", "package", "info") if getattr(known, name)]
    return [w for w in rest if not w.startswith("-")], [Path(d) for d in known.config_dir], flags


def _flag_problem(flag: str, after: str) -> str | None:
    """What is wrong with a flag, or None; `after` is the next word, which may be meant as its value."""
    name, _, value = flag.partition("=")
    plain = name.strip("-").replace("-", "_")
    key = full_key(OTHER_TOOLS.get(plain, plain))
    allowed = {*_FLAGS, *(s for s in _FLAGS.values() if s)}
    if name in ("--config-name", "-cn", "--config-path", "-cp"):
        return f"command line: {name} isn't used here; keep your files with --config-dir FOLDER."
    if value and name in allowed:
        return f"command line: {flag}: {name} takes no value."
    if value:
        return f"command line: {flag}: keys stand without dashes: {key}={value}"
    if name not in allowed and key in {*FIELDS, *GROUPS}:
        usual = "true" if key in FIELDS and FIELDS[key][1] is bool else "VALUE"
        given = after if after and "=" not in after and not after.startswith("--") else usual
        return f"command line: {flag}: keys stand without dashes: {key}={given}"
    if name not in allowed:
        return f"command line: there is no flag {name}.{did_you_mean(name, _FLAGS)} See --help."
    return None
