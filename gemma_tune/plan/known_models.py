"""The options of `model`, and the sizes of those that are planned for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from gemma_tune.config import ModelConfig
from gemma_tune.models.estimate.size import ModelSize, published_size, size_of
from gemma_tune.models.family import FAMILIES, Family
from gemma_tune.models.load import family_of, load_config
from gemma_tune.models.published import base_of, published
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import CONFIGS

_SHIPPED = "assets://"
_EMBEDDED = f"{_SHIPPED}tiny"


@dataclass(frozen=True)
class PlannedModel:
    """A model to plan for.

    Attributes:
        word: How it is chosen on the command line.
        name: For tables.
        size: Its sizes.
        family: Its family.
    """

    word: str
    name: str
    size: ModelSize
    family: Family


@cache
def options() -> dict[str, str]:
    """Every option of `model` with the name or path that it stands for."""
    found = {}
    for file in sorted((CONFIGS / "model").glob("*.yaml")):
        named = re.search(r"^model_name_or_path: (\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        if named:
            found[file.stem] = named[1]
    return found


def planned_models(model: ModelConfig) -> list[PlannedModel]:
    """The model that is chosen, or every published size where it is the embedded one, which nobody chose.

    Raises:
        UserError: A model that isn't published, and that can't be read.
    """
    name = model.model_name_or_path
    if name == _EMBEDDED:
        # The pretrained and the instruction-tuned checkpoint have the same sizes, as have those tuned from these
        every = [
            _published(option, hub)
            for option, hub in options().items()
            if hub != name and option.endswith("_it") and base_of(hub) is None
        ]
        return sorted(every, key=lambda model: (model.family.name.split()[1], model.size.parameters))
    published_names = options().items() if not name.startswith(_SHIPPED) else ()
    option = next((option for option, hub in published_names if hub == name), None)
    if option:
        return [_published(option, name)]
    if published(name):
        return [_published(f"model.model_name_or_path={name}", name, name)]
    source = find_source(model)
    return [PlannedModel(f"model.model_name_or_path={name}", name, size_of(load_config(source)), family_of(source))]


def _published(option: str, hub: str, name: str | None = None) -> PlannedModel:
    found, size = published(hub), published_size(hub)
    assert found and size, hub
    return PlannedModel(option if name else f"model={option}", name or option, size, FAMILIES[found.model_type])
