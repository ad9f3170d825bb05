"""Checks of `launch.slurm` and `launch.sky`: what would make a file that no cluster reads. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gemma_tune.config.launch import LaunchConfig
from gemma_tune.errors import quoted

# minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds
_TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d\d?(:\d\d){0,2}|UNLIMITED|INFINITE", re.IGNORECASE)
_NAME = re.compile(r"[\w.,@+-]+")
_ACCELERATORS = re.compile(r"[A-Za-z0-9][\w.-]*(:[1-9]\d*)?")
_BREAKS = re.compile(r"[\n\r\0]")


def cluster_problems(launch: LaunchConfig) -> Iterator[str]:
    """What a job of a cluster can't be asked for."""
    if launch.by == "slurm":
        yield from _of_slurm(launch)
    if launch.by == "sky":
        yield from _of_sky(launch)


def _of_slurm(launch: LaunchConfig) -> Iterator[str]:
    slurm = launch.slurm
    for key in ("partition", "account"):
        value = getattr(slurm, key)
        if value is not None and not _NAME.fullmatch(value):
            yield f"launch.slurm.{key}={quoted(value)}: this is no name of Slurm: letters, digits and .,-_@+ only."
    if slurm.time is not None and not _TIME.fullmatch(slurm.time):
        yield (
            f"launch.slurm.time={quoted(slurm.time)}: write hours:minutes:seconds (12:00:00), "
            "days-hours:minutes:seconds (2-00:00:00) or minutes (90); in a YAML file in quotes."
        )
    for option in slurm.options:
        if not option.startswith("-") or option.strip("- ") == "":
            yield f"launch.slurm.options: {quoted(option)} is no option; each begins with a dash, as --qos=high does."
    yield from _broken("launch.slurm.options", slurm.options)
    yield from _broken("launch.slurm.setup", slurm.setup)
    yield from _too_many(launch, slurm.gpus_per_node or 0, f"launch.slurm.gpus_per_node={slurm.gpus_per_node}")


def _of_sky(launch: LaunchConfig) -> Iterator[str]:
    given = launch.sky.accelerators
    yield from _broken("launch.sky.setup", launch.sky.setup)
    if given is not None and not _ACCELERATORS.fullmatch(given):
        yield f"launch.sky.accelerators={quoted(given)}: write the name of a GPU and how many, as H100:8."
    elif given is not None:
        yield from _too_many(launch, int(given.partition(":")[2] or 1), f"launch.sky.accelerators={given}")


def _too_many(launch: LaunchConfig, gpus: int, given: str) -> Iterator[str]:
    if gpus and (launch.num_processes or 1) > gpus:
        yield (
            f"launch.num_processes={launch.num_processes} and {given}: each process needs a GPU of its own; leave "
            "launch.num_processes out, and each GPU has one."
        )


def _broken(key: str, lines: Sequence[str]) -> Iterator[str]:
    """Lines that would be several."""
    for line in lines:
        if _BREAKS.search(line):
            yield f"{key}: {quoted(line)} has a line break; write each line as an entry of its own."
