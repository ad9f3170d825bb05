"""`launch=slurm`: an sbatch file in the run folder, and its submission. Imports no torch."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from gemma_tune.config import Config
from gemma_tune.errors import UserError
from gemma_tune.launching.job import job_command, run_tool, write_job
from gemma_tune.run.identity import folder_of
from gemma_tune.run.paths import JOB_FILE
from gemma_tune.run.result import RunResult

_CORES = ("--cpus-per-task", "-c", "--cpus-per-gpu")
_UNQUOTABLE = re.compile(r'["\\\n\r]')


def submit_to_slurm(cfg: Config, words: Sequence[str]) -> RunResult:
    """Writes the sbatch file of a run and submits it; with `dry_run=true` only writes it.

    Args:
        cfg: The configuration.
        words: The words of the command.

    Raises:
        UserError: The file can't be written, there is no sbatch here, or it refused the file.
    """
    folder = folder_of(cfg).absolute()
    if _UNQUOTABLE.search(str(folder)):
        raise UserError(
            f"output_dir={folder}: sbatch reads no path with a quotation mark, a backslash or a line break; name "
            "another folder."
        )
    text = sbatch_file(cfg, words, folder)
    file = write_job(cfg, JOB_FILE, text, cfg.launch.slurm.setup, words)
    command = ["sbatch", "--parsable", str(file)]
    if cfg.dry_run:
        print(f"{text}\nWritten to {file}. Without dry_run=true it is submitted by\n  {shlex.join(command)}")
        return RunResult(cfg.recipe, status="dry_run", folder=folder)
    printed = run_tool(command, file, "give this command on a machine of the cluster, or submit the file there.")
    job = printed.strip().partition(";")[0]
    print(
        f"Submitted as job {job}: {file}\nIts output: {folder / f'slurm-{job}.out'}; its state: squeue -j {job}; "
        f"to end it with a checkpoint: scancel --signal=USR1 {job}"
    )
    return RunResult(cfg.recipe, status="submitted", folder=folder)


def sbatch_file(cfg: Config, words: Sequence[str], folder: Path) -> str:
    """The sbatch file of a run.

    Args:
        cfg: The configuration.
        words: The words of the command.
        folder: The run folder, an absolute path.
    """
    python = job_command(cfg, words, folder, sys.executable)
    return "\n".join([
        "#!/bin/bash",
        "# Written by gemma_tune. Submitted again (sbatch FILE, or the same command) the run goes on where it was.",
        *(f"#SBATCH {option}" for option in _options(cfg, folder)),
        "",
        "set -e",
        f"cd {shlex.quote(str(Path.cwd()))}",
        "unset WORLD_SIZE RANK LOCAL_RANK LOCAL_WORLD_SIZE NNODES",
        'export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
        "export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))",
        '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
        *cfg.launch.slurm.setup,
        "srun --kill-on-bad-exit=1 --wait=0 bash -c 'NODE_RANK=\"$SLURM_NODEID\" exec \"$@\"' bash \\",
        f"  {python}",
        "",
    ])  # fmt: skip


def _options(cfg: Config, folder: Path) -> Iterator[str]:
    """The options of sbatch; those of the user stand last, and above ours."""
    launch, slurm = cfg.launch, cfg.launch.slurm
    processes = launch.num_processes or 1
    gpus = processes if slurm.gpus_per_node is None else slurm.gpus_per_node
    name = re.sub(r"[^\w.-]", "-", folder.name)
    yield f"--job-name={name}"
    yield f"--nodes={launch.num_nodes}"
    yield "--ntasks-per-node=1"
    if gpus:
        yield f"--gpus-per-node={gpus}"
    if not any(option.split("=")[0].split()[0] in _CORES for option in slurm.options):
        yield f"--cpus-per-task={processes}"
    for key in ("time", "partition", "account"):
        if value := getattr(slurm, key):
            yield f"--{key}={value}"
    # A path in quotes may hold blanks; a percent sign begins a pattern
    yield f'--output="{str(folder).replace("%", "%%")}/slurm-%j.out"'
    yield "--open-mode=append"
    yield "--requeue"
    yield "--signal=USR1@120"  # seconds before the end of its time: the run saves a checkpoint
    yield from slurm.options
