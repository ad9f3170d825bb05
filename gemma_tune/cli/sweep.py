"""Sweeps (`-m`): every combination of the values is a job of its own, and all of them end in one table.

All jobs are composed and checked before the first one starts. A job that fails doesn't stop the others, and a sweep
that was interrupted goes on by the same command, since each job has the run folder that it would have alone.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_tune import validation
from gemma_tune.cli.compose import compose_config
from gemma_tune.cli.runner import check_inputs, failures_of, run_recipe
from gemma_tune.config import Config
from gemma_tune.errors import RunError, UserError
from gemma_tune.processes import world
from gemma_tune.run.existing import check_existing
from gemma_tune.run.identity import folder_of, identity
from gemma_tune.run.paths import RUNS
from gemma_tune.sweep.outcomes import FAILED, INTERRUPTED, JobOutcome

if TYPE_CHECKING:
    from gemma_tune.sweep.table import SweepTable

_MOST = 500  # jobs
_RECIPE = "recipe="
_OF_HYDRA = ("hydra/sweeper", "hydra/launcher", "hydra.sweeper", "hydra.launcher", "hydra.sweep")


@dataclass(frozen=True)
class SweepJob:
    """One combination of the values.

    Attributes:
        words: `key=value` words, as they would be typed for this job alone.
        differs: The keys and groups with several values, each with its value here.
        name: The same as a name; the recipe where nothing differs.
        setting: The name without the seed.
    """

    words: list[str]
    differs: dict[str, Any]
    name: str
    setting: str


def jobs_of(words: Sequence[str]) -> list[SweepJob]:
    """The jobs, in the order in which the last value changes first.

    Args:
        words: Words that were checked.

    Raises:
        UserError: Too many of them, or a sweeper of Hydra is asked for.
    """
    from gemma_tune.compare.names import named, settings

    if theirs := [word for word in words if word.lstrip("+").startswith(_OF_HYDRA)]:
        raise UserError(
            f"command line: `{theirs[0]}`: -m runs every combination, one after the other, and no sweeper or launcher "
            "of Hydra; leave it out."
        )
    choices = [validation.swept(word) or [(word, None)] for word in words]
    several = [i for i, values in enumerate(choices) if len(values) > 1]
    count = 1
    for values in choices:
        count *= len(values)
    if count > _MOST:
        raise UserError(f"command line: -m: {count:,} jobs; a sweep has {_MOST:,} at most.")
    combined = list(itertools.product(*choices))
    keys = {i: words[i].partition("=")[0] for i in several}
    differs = [{keys[i]: one[i][1] for i in several} for one in combined]
    columns = {key: [values[key] for values in differs] for key in keys.values()}
    alone = next((w for w in words if w.startswith(_RECIPE)), "the run").removeprefix(_RECIPE)
    names = [name or alone for name in named(columns, count, whole=True)]
    return [
        SweepJob([word for word, _ in one], values, name, setting)
        for one, values, name, setting in zip(
            combined, differs, names, settings(columns, count, whole=True), strict=True
        )
    ]


def run_sweep(words: Sequence[str], config_dirs: Sequence[Path], argv: Sequence[str]) -> None:
    """Checks all jobs, runs them one after the other, and writes the table.

    Args:
        words: `key=value` words that were checked.
        config_dirs: The folders of `--config-dir`.
        argv: The arguments as they were given, for the table.

    Raises:
        UserError: A mistake in any job, before the first one starts; or all that failed were mistakes.
        RunError: Jobs have failed.
        Stopped: Asked to end; the table of what there is was written.
    """
    if world() > 1:
        raise UserError(
            "command line: --multirun under torchrun or accelerate launch: its jobs start processes of their own; "
            "leave these out, and add launch.num_processes."
        )
    jobs = jobs_of(words)
    configs = _composed(jobs, config_dirs)
    trees = sorted(json.dumps(identity(cfg), sort_keys=True) for cfg in configs)
    name = f"sweep-{hashlib.sha256(json.dumps(trees).encode()).hexdigest()[:8]}"
    if "WANDB_RUN_GROUP" not in os.environ:
        tracked = [replace(cfg.tracker, group=cfg.tracker.group or name) for cfg in configs]
        configs = [replace(cfg, tracker=tracker) for cfg, tracker in zip(configs, tracked, strict=True)]
    keeps = all(cfg.traits.run_folder and not cfg.dry_run for cfg in configs)
    flags = [word for folder in config_dirs for word in ("--config-dir", str(folder))]
    jobs = [replace(job, words=[*job.words, *flags]) for job in jobs]
    _Sweep(name, shlex.join(["python", "-m", "gemma_tune", *argv]), jobs, configs, keeps).run()


def _composed(jobs: Sequence[SweepJob], config_dirs: Sequence[Path]) -> list[Config]:
    """The configurations of all jobs, checked as far as they are before a run loads anything.

    Raises:
        UserError: All problems, each with the jobs that have it.
    """
    found: list[Config] = []
    problems: dict[str, list[str]] = {}
    folders: dict[Path, int] = {}
    for number, job in enumerate(jobs):
        try:
            recipe = next(w for w in reversed(job.words) if w.startswith(_RECIPE)).removeprefix(_RECIPE)
            rest = [w for w in job.words if not w.startswith(_RECIPE)]
            cfg = compose_config(recipe, rest, config_dirs)
            if cfg.traits.run_folder:
                folder = folder_of(cfg)
                if (other := folders.setdefault(folder.absolute(), number)) != number:
                    raise UserError(f"this is the same run as {jobs[other].name} ({folder}); name each value once.")
                check_existing(cfg, folder)
            check_inputs(cfg)
            found.append(cfg)
        except UserError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(job.name)
    if problems:
        raise UserError(*(_said(problem, names, len(jobs)) for problem, names in problems.items()))
    if clashes := validation.problems_of_jobs(found):
        raise UserError(*clashes)
    return found


def _said(problem: str, names: Sequence[str], count: int) -> str:
    if len(names) == count:
        return problem
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}: {problem}"


class _Sweep:
    """The jobs as they run.

    Args:
        name: The sweep's name.
        command: The command that was given.
        jobs: The jobs.
        configs: Their configurations.
        keeps: Whether the sweep has a folder, for its table.
    """

    def __init__(
        self, name: str, command: str, jobs: Sequence[SweepJob], configs: Sequence[Config], keeps: bool
    ) -> None:
        self._name, self._command, self._jobs, self._configs, self._keeps = name, command, jobs, configs, keeps
        self._outcomes = [
            JobOutcome(job.name, job.setting, job.differs, folder_of(cfg) if cfg.traits.run_folder else None)
            for job, cfg in zip(jobs, configs, strict=True)
        ]
        self._mistakes: list[str] = []
        self._failures: list[str] = []

    def run(self) -> None:
        """Runs them all, and ends as `run_sweep` says."""
        place = f" → {Path(RUNS) / self._name}" if self._keeps else ""
        try:
            for number, job in enumerate(self._jobs):
                print(f"\nJob {number + 1} of {len(self._jobs)}{place}: {job.name}", flush=True)
                self._outcomes[number] = self._run_one(number)
                gc.collect()
                if number + 1 < len(self._jobs):
                    self._write(tested=False)
        except KeyboardInterrupt:
            self._end()
            raise
        self._end()
        failed = list(dict.fromkeys([*self._mistakes, *self._failures]))
        if not failed:
            return
        if self._keeps:
            count = sum(job.status == FAILED for job in self._outcomes)
            said = f"{count} of {len(self._jobs)} jobs failed" if count else "not everything was measured"
            failed = [f"{said}; the same command runs what is missing."]
        raise RunError("\n".join(failed)) if self._failures else UserError(*failed)

    def _run_one(self, number: int) -> JobOutcome:
        """One job; its error is printed and noted, and only Ctrl-C and the like go further."""
        outcome = self._outcomes[number]
        try:
            result = run_recipe(self._configs[number], self._jobs[number].words)
        except KeyboardInterrupt:
            self._outcomes[number] = replace(outcome, status=INTERRUPTED)
            raise
        except UserError as error:
            self._mistakes += error.problems
            said = str(error.problems[0])
        except RunError as error:
            self._failures.append(said := str(error))
        except Exception as error:  # a crash, or no memory: of this job alone
            traceback.print_exc()
            first = (str(error).splitlines() or [""])[0]
            self._failures.append(said := f"{type(error).__name__}: {first}")
        else:
            self._failures += failures_of(result)
            return outcome.ended(result) if self._keeps else outcome
        if self._keeps:
            print(f"gemma_tune: {outcome.name}: {said}", file=sys.stderr, flush=True)
        return outcome.failed(said)

    def _write(self, tested: bool) -> SweepTable | None:
        """Writes the table of what there is; the tests between all pairs of jobs are for the end."""
        if not self._keeps:
            return None
        from gemma_tune.sweep.files import write_table
        from gemma_tune.sweep.table import SweepTable

        table = SweepTable.of(self._name, self._command, self._outcomes, tested)
        write_table(table, Path(RUNS) / self._name)
        return table

    def _end(self) -> None:
        if table := self._write(tested=True):
            from rich.console import Console

            print()
            table.show(Console(highlight=False), Path(RUNS) / self._name)
