"""What the jobs of all clusters share: the words of the command, and the file in the run folder. Imports no torch."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from gemma_tune.config import Config
from gemma_tune.errors import UserError, shortened
from gemma_tune.run.identity import folder_of
from gemma_tune.run.manifest import atomic_write
from gemma_tune.sharing.private import HUB_TOKEN, KEY_NAMES, SHORTEST_KEY
from gemma_tune.validation.schema import is_secret

# Words that say who starts the run; the job's command has its own
_OF_LAUNCHING = re.compile(
    r"\+*(launch|launch\.(by|num_processes|num_nodes)|launch\.(slurm|sky)\..*|dry_run)=.*", re.DOTALL
)
_ASSIGNED = re.compile(r"\b(\w+)=(?!\$)(\S)")


def job_command(cfg: Config, words: Sequence[str], folder: Path, python: str) -> str:
    """The command of one machine of the job, quoted for a shell: the words that were given, started there.

    Args:
        cfg: The configuration, with the number of processes and machines.
        words: The words of the command, with its flags.
        folder: The run folder, as the job sees it.
        python: The interpreter.
    """
    kept = [word for word in words if not _OF_LAUNCHING.fullmatch(word)]
    if not any(word.startswith("output_dir=") for word in kept):
        kept.append(f"output_dir={folder}")
    # `launch.by` stands above a file of the user's that chooses a cluster, too
    numbers = [f"launch.{key}={getattr(cfg.launch, key)}" for key in ("num_processes", "num_nodes")]
    return shlex.join([python, "-m", "gemma_tune", *kept, "launch.by=local", *numbers])


def write_job(cfg: Config, name: str, text: str, setup: Sequence[str], words: Sequence[str]) -> Path:
    """Writes the file of a job into the run folder, which doesn't count as used by it.

    Args:
        cfg: The configuration.
        name: The file's name.
        text: The file.
        setup: The user's lines of shell in it.
        words: The words of the command.

    Raises:
        UserError: A key or a token would stand in it, or the folder can't be written.
    """
    if problems := list(_secrets(text, setup, words, f"launch.{cfg.launch.by}")):
        raise UserError(*problems)
    folder = folder_of(cfg).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / name, text)
    except OSError as error:
        raise UserError(f"output_dir={folder}: the folder can't be written ({error.strerror}).") from error
    return folder / name


def _secrets(text: str, setup: Sequence[str], words: Sequence[str], where: str) -> Iterator[str]:
    """What must not stand in a file that others of the cluster may read."""
    way = "set it in the environment, which goes with the job"
    for word in words:
        if is_secret(word.partition("=")[0].lstrip("+")):
            yield f"{word.partition('=')[0]} is a secret, and the job's file would hold it; leave it out."
    for line in setup:
        for name, _ in _ASSIGNED.findall(line):
            if KEY_NAMES.search(name):
                yield f"{where}.setup: it sets {name}, and the job's file would hold its value; {way}."
    for name, value in os.environ.items():
        if KEY_NAMES.search(name) and len(value) >= SHORTEST_KEY and value in text:
            yield f"{where}: the job's file would hold the value of {name}; {way}."
    if HUB_TOKEN.search(text.encode()):
        yield f"{where}: the job's file would hold a token of the Hub (hf_…); set HF_TOKEN in the environment instead."


def run_tool(command: Sequence[str], file: Path, missing: str) -> str:
    """Runs the program that submits a job. Returns what it printed.

    Args:
        command: The program and its arguments.
        file: The job's file, for messages.
        missing: Where the program is to be had, as the end of a sentence.

    Raises:
        UserError: There is no such program, or it refused the file.
    """
    said = f"launch: {file} was written, and"
    if shutil.which(command[0]) is None:
        raise UserError(f"{said} not submitted: there is no program {command[0]} on this machine; {missing}")
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode:
        why = shortened(" ".join((done.stderr or done.stdout).split()), 600) or f"exit status {done.returncode}"
        raise UserError(f"{said} {command[0]} refused it: {why}")
    return done.stdout
