"""`launch=sky`: the file of a SkyPilot task in the run folder, and its launch. Imports neither torch nor SkyPilot."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gemma_tune.config import Config
from gemma_tune.launching.job import job_command, run_tool, write_job
from gemma_tune.run.identity import folder_of
from gemma_tune.run.paths import TASK_FILE
from gemma_tune.run.result import RunResult

# Keys that a run may need; their values go from this environment to the machines and never into the file
_KEYS = ("HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "COMET_API_KEY")


class _Dumper(yaml.SafeDumper):
    """Writes scripts line by line."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def submit_to_sky(cfg: Config, words: Sequence[str]) -> RunResult:
    """Writes the SkyPilot task of a run and launches it; with `dry_run=true` only writes it.

    Args:
        cfg: The configuration.
        words: The words of the command.

    Raises:
        UserError: The file can't be written, SkyPilot isn't installed, or it refused the task.
    """
    folder = folder_of(cfg).absolute()
    task = sky_task(cfg, words)
    text = (
        "# Written by gemma_tune. Launched again, the run goes on where it was, if its folder is still there.\n"
        + yaml.dump(task, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    )
    file = write_job(cfg, TASK_FILE, text, cfg.launch.sky.setup, words)
    name = str(task["name"])
    secrets = [word for key in task.get("secrets", {}) for word in ("--secret", key)]
    command = ["sky", "launch", "--yes", "--detach-run", "--cluster", name, *secrets, str(file)]
    if cfg.dry_run:
        print(f"{text}\nWritten to {file}. Without dry_run=true it is launched by\n  {shlex.join(command)}")
        return RunResult(cfg.recipe, status="dry_run", folder=folder)
    run_tool(command, file, "pip install skypilot in an environment of its own, and put its `sky` on the PATH.")
    print(f"Launched on the cluster {name}: {file}\nIts output: sky logs {name}; to end it: sky down {name}")
    return RunResult(cfg.recipe, status="submitted", folder=folder)


def sky_task(cfg: Config, words: Sequence[str]) -> dict[str, Any]:
    """The task, as SkyPilot's YAML has it.

    Args:
        cfg: The configuration.
        words: The words of the command.
    """
    sky, relative = cfg.launch.sky, os.path.relpath(folder_of(cfg).absolute())
    folder = Path(relative) if not relative.startswith("..") else folder_of(cfg).absolute()
    resources = {"accelerators": sky.accelerators, "infra": sky.infra, "use_spot": sky.use_spot or None}
    secrets = {key: None for key in _KEYS if os.environ.get(key)}
    run = [
        'export NODE_RANK="$SKYPILOT_NODE_RANK"',
        'export MASTER_ADDR="$(echo "$SKYPILOT_NODE_IPS" | head -n 1)"',
        job_command(cfg, words, folder, "python"),
    ]
    task: dict[str, Any] = {
        "name": f"gemma-tune-{re.sub(r'[^a-zA-Z0-9]+', '-', folder_of(cfg).name).strip('-').lower()}",
        "resources": {key: value for key, value in resources.items() if value is not None},
        "num_nodes": cfg.launch.num_nodes,
        "workdir": str(Path.cwd()),
        "secrets": secrets,
        "setup": "\n".join(sky.setup),
        "run": "\n".join(run),
    }
    return {key: value for key, value in task.items() if value not in ({}, "")}
