"""`compare.…`: the models that `recipe=compare` compares."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import option


@dataclass
class CompareConfig:
    """Two or more models, and which of them the others are tested against."""

    models: list[str] = option(
        [],
        "Run folders, adapters, merged folders or names on the Hub. The results of a run are read from its eval/ "
        "folder; any other model is loaded and measured now, with `eval=…` on `data=…`.",
        path="model",
    )
    names: list[str] = option(
        [],
        "Their names in tables and charts, in the same order; empty: what differs between the configurations of runs "
        "(`learning_rate=2e-4, seed=1`), and the names of other folders.",
    )
    baseline: str = option(
        "first",
        "What the others are tested against: first: the first of the models; best: the best one in the first figure, "
        "where p values are corrected for the tests between all pairs of models.",
        choices=("first", "best"),
    )
    level: float = option(0.95, "Confidence level of the intervals.", above=0.5, at_most=0.999)
