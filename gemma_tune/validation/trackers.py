"""Checks of `tracker=…`: each tracker exists, and its package is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from gemma_tune.config import Config, TrackerConfig
from gemma_tune.config.tracker import TRACKERS
from gemma_tune.errors import quoted
from gemma_tune.validation.suggest import did_you_mean


def is_installed(package: str) -> bool:
    """Whether a package can be imported; a folder that only has its name can't."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def tracker_problems(cfg: Config) -> Iterator[str]:
    """Problems of the trackers and of their keys."""
    t = cfg.tracker
    known = ", ".join(TRACKERS)
    if not t.report_to or not isinstance(t.report_to, str | list):
        yield f"tracker.report_to must be none, or one or a list of {known}, not {quoted(t.report_to)}."
        return
    named = t.report_to if isinstance(t.report_to, list) else [t.report_to]
    wrong = [name for name in named if not (isinstance(name, str) and name in TRACKERS) and named != ["none"]]
    for name in wrong:
        hint = did_you_mean(name, TRACKERS) if isinstance(name, str) else ""
        yield f"tracker.report_to: {quoted(name)} is none of {known}; none stands alone.{hint}"
    if wrong:
        return
    for name in t.names if cfg.traits.run_folder else ():  # nothing else is tracked
        if not is_installed(TRACKERS[name]):
            yield (
                f"tracker={name}: {TRACKERS[name]} is not installed: pip install 'gemma_tune[trackers]' "
                f"(or pip install {TRACKERS[name]})."
            )
    for key in ("mode", "entity") if t.names and "wandb" not in t.names else ():
        if getattr(t, key) != getattr(TrackerConfig(), key):
            yield f"tracker.{key} has no effect with tracker={t.names[0]}: it is W&B's; leave it out."
