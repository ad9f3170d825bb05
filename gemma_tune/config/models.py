"""`models.…`: what `recipe=models` fetches or looks at."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import option


@dataclass
class ModelsConfig:
    """The known models; without a key: a list of them."""

    fetch: str | None = option(
        None, "Download a model: an option of `model` (gemma3_1b_it), or its name on the Hub (owner/name)."
    )
    inspect: str | None = option(
        None,
        "Look at a model without loading it: an option of `model`, a name on the Hub, a model folder, an adapter, a "
        "run folder, or a GGUF file.",
        path="model",
    )
    revision: str | None = option(None, "Branch, tag or commit of the Hub to fetch or look at.")
