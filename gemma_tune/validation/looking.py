"""Checks of the recipes that neither train nor read data (doctor)."""

from __future__ import annotations

from collections.abc import Iterator

from gemma_tune.config import Config


def looks_only(cfg: Config) -> Iterator[str]:
    """What has no effect on a recipe that looks and does nothing."""
    if cfg.output_dir is not None:
        yield f"output_dir has no effect with recipe={cfg.recipe}, which keeps no run folder; leave it out."
    if cfg.adapter.peft_type != "none":
        yield f"adapter has no effect with recipe={cfg.recipe}, which trains nothing; leave it out."
