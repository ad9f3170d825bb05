"""`compare.…`: what `recipe=compare` holds side by side."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import option


@dataclass
class CompareConfig:
    """Two or more models; each is compared with the first one, the baseline."""

    models: list[str] = option(
        [],
        "Run folders, adapters, merged folders or names of the Hub. What a run has measured is taken from its eval/ "
        "folder; any other model is loaded and measured now, with `eval=…` on `data=…`.",
        path="model",
    )
    names: list[str] = option([], "What they are called, in the same order; empty: their folders' names.")
    level: float = option(0.95, "Level of the intervals.", above=0.5, at_most=0.999)
