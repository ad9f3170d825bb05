"""Where the processes of `launch=local` are, from the configuration, the environment and this machine."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from gemma_tune.config import Config
from gemma_tune.config.launch import LaunchConfig
from gemma_tune.errors import UserError

_PORT = 29500  # torchrun's


@dataclass(frozen=True)
class Place:
    """Where the processes are and where they meet.

    Attributes:
        processes: On each machine.
        nodes: Machines.
        node_rank: The number of this machine.
        address: Name of the first machine.
        port: Its port where all meet; 0: any free one, on one machine only.
        minutes: How long the machines wait for one another.
    """

    processes: int
    nodes: int
    node_rank: int
    address: str
    port: int
    minutes: float


def place_of(launch: LaunchConfig) -> Place:
    """The place that a checked configuration and the environment say (validation/processes.py checks both)."""
    nodes, given = launch.num_nodes or 1, os.environ
    return Place(
        processes=launch.num_processes or 1,
        nodes=nodes,
        node_rank=int(given.get("NODE_RANK") or 0) if nodes > 1 else 0,
        address=given["MASTER_ADDR"] if nodes > 1 else "localhost",
        port=int(given.get("MASTER_PORT") or (_PORT if nodes > 1 else 0)),
        minutes=launch.timeout_minutes,
    )


def refuse_place(cfg: Config) -> Place:
    """The place, after what only this machine can tell.

    Raises:
        UserError: More processes than GPUs, a port in use, a name that is no machine's, tasks of Slurm without a part.
    """
    place = place_of(cfg.launch)
    if problems := [*too_few_gpus(cfg), *_of_network(place), *_of_slurm(place)]:
        raise UserError(*problems)
    return place


def too_few_gpus(cfg: Config) -> Iterator[str]:
    """What to say where this machine has fewer GPUs than processes."""
    processes = cfg.launch.num_processes or 1
    if cfg.model.device == "cpu":
        return
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = "CUDA_VISIBLE_DEVICES isn't set" if visible is None else f"CUDA_VISIBLE_DEVICES={visible}"
        yield (
            f"launch.num_processes={processes}: this machine has {gpus} GPU{'s' * (gpus > 1)} for it ({seen}), "
            f"and each process needs one of its own; set launch.num_processes={gpus}."
        )


def _of_network(place: Place) -> Iterator[str]:
    if place.nodes > 1:
        try:
            socket.getaddrinfo(place.address, place.port)
        except (OSError, UnicodeError) as error:
            yield f"MASTER_ADDR={place.address}: no machine has this name ({error}); name the first machine."
            return
    if place.port and place.node_rank == 0:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("", place.port))
            except OSError as error:
                why = "in use" if error.errno == errno.EADDRINUSE else f"not to be had ({error.strerror})"
                where = "MASTER_PORT" if os.environ.get("MASTER_PORT") else "MASTER_PORT isn't set, so"
                given = f"{where}={place.port}: this port" if where == "MASTER_PORT" else f"{where} port {place.port}"
                fix = "set another one, on all machines" if place.nodes > 1 else "set another one, or leave it out"
                yield f"{given} is {why} on this machine; {fix}."


def _of_slurm(place: Place) -> Iterator[str]:
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    if tasks.isdigit() and int(tasks) > place.nodes:
        yield (
            f"srun has started {tasks} tasks of this command, and launch.num_nodes={place.nodes}: start one on each "
            "machine (--ntasks-per-node=1) with launch.num_processes and launch.num_nodes, or take launch=slurm."
        )
