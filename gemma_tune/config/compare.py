"""`compare.…`: the models that `recipe=compare` compares."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import option


@dataclass
class CompareConfig:
    """Two or more models; the first is the baseline."""

    models: list[str] = option(
        [],
        "Run folders, adapters, merged folders or names on the Hub; the first is the baseline. The results of a "
        "run are read from its eval/ folder; any other model is loaded and measured now, with `eval=…` on "
        "`data=…`.",
        path="model",
    )
    names: list[str] = option(
        [], "Their names in tables and charts, in the same order; empty: the names of their folders."
    )
    level: float = option(0.95, "Confidence level of the intervals.", above=0.5, at_most=0.999)
