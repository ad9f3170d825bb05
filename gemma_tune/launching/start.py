"""Whether this process does a run itself, or starts the processes or the job that do. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_tune.config import Config
from gemma_tune.config.methods import Kind
from gemma_tune.errors import UserError
from gemma_tune.launching.place import place_of
from gemma_tune.models.source import find_source
from gemma_tune.processes import was_started
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.result import RunResult


def started(cfg: Config, words: Sequence[str] | None) -> RunResult | None:
    """Starts the processes or the job of a run.

    Args:
        cfg: The checked configuration.
        words: The words of the command, for the job of a cluster; None where the run has no words of its own.

    Returns:
        The result, or what is known of a job that was submitted; None where this process is to do the run itself.

    Raises:
        UserError: What can't be started.
        RunError: A process failed.
        Stopped: The run was asked to end.
    """
    launch = cfg.launch
    here = cfg.dry_run or cfg.processes == 1 or was_started() or not cfg.traits.run_folder  # a plan is for so many
    if launch.by == "local" and here:
        return None
    if _is_done(cfg):
        return None
    if launch.by != "local":
        if words is None:
            raise UserError(f"launch={launch.by}: start the run by recipe=…, since its words stand in the job's file.")
        if launch.by == "slurm":
            from gemma_tune.launching.slurm import submit_to_slurm

            return submit_to_slurm(cfg, words)
        from gemma_tune.launching.sky import submit_to_sky

        return submit_to_sky(cfg, words)
    if cfg.traits.kind is not Kind.COMPARE:
        find_source(cfg.model, continues=cfg.traits.continues)  # raises where there is no such model
    from gemma_tune.launching.local import run_here

    return run_here(cfg)


def _is_done(cfg: Config) -> bool:
    """Whether the run was finished before.

    Raises:
        UserError: The run may not use its folder.
    """
    try:
        return RunFolder.open(cfg).finished
    except UserError:
        if cfg.launch.by == "local" and place_of(cfg.launch).node_rank > 0:
            return False  # the first machine may be writing there already; it has looked, too
        raise
