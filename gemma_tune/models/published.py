"""The sizes of the published checkpoints, known before anything is downloaded. Imports no torch.

`published.json` has an entry for each size, by the Hub's name without the owner and without -it or -pt. Its sources:

- The language parts: Transformers' conversion scripts (`models/gemma*/convert_*`), which hold one configuration for
  each size, google-deepmind/gemma (`gm/nn`), and copies of the config.json for Gemma 1 and 2. Where a script was fixed
  later, the config.json is right: the 9B's `query_pre_attn_scalar` is 256, the default, not 224 (transformers issue
  31891).
- The towers: counted on Transformers' classes with the vision and audio configurations of the same scripts. Gemma 3n's
  image tower is timm's; its weights are what remains of the Hub's count after all other parts.

Models tuned from one of these have its sizes (`_TUNED_FROM`), as their model cards say of MedGemma and TranslateGemma.

tests/models/test_published.py adds the language part, the towers and what is stored beside them up to the Hub's own
count.
"""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

# MedGemma's text-only checkpoint has no image tower.
_TUNED_FROM = {
    "medgemma-4b": "gemma-3-4b",
    "medgemma-1.5-4b": "gemma-3-4b",
    "medgemma-27b": "gemma-3-27b",
    "medgemma-27b-text": "gemma-3-27b",
    "translategemma-4b": "gemma-3-4b",
    "translategemma-12b": "gemma-3-12b",
    "translategemma-27b": "gemma-3-27b",
}
# Google's checkpoints that were trained for 4 bits are stored in bfloat16 with the same sizes.
_SUFFIX = re.compile(r"(-it|-pt)?(-qat-q4_0-unquantized)?$")


@dataclass(frozen=True)
class Published:
    """What config.json says of one checkpoint, pretrained or instruction-tuned: the two have the same sizes.

    Attributes:
        model_type: Of the language part's configuration.
        text: What that configuration says other than the defaults of its class in Transformers. Token ids are left
            out: they are no sizes, and differ between the pretrained and the instruction-tuned checkpoint.
        tower_parameters: Weights beside the language part: towers for images and audio, and the layers that project
            their output into the language part.
    """

    model_type: str
    text: dict[str, Any]
    tower_parameters: int = 0


@cache
def all_published() -> dict[str, Published]:
    """Every entry, by its name in `published.json`; `same_as` names another entry with the same sizes."""
    stored = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return {name: Published(**stored[entry.get("same_as", name)]) for name, entry in stored.items()}


def published(name: str) -> Published | None:
    """The entry of a checkpoint by its Hub name, such as google/gemma-3-4b-it, or None.

    Owner and letter case are ignored: others offer the same checkpoints under the same name, and the Hub ignores the
    case. A name with anything more at its end is another model: a drafter, a quantized or a tuned one.

    Args:
        name: With or without the owner.

    Returns:
        A copy, since Transformers' configurations write into what they are given.
    """
    wanted, base = _plain_name(name), base_of(name)
    found = next(
        (deepcopy(entry) for known, entry in all_published().items() if known.lower() == (base or wanted)), None
    )
    return replace(found, tower_parameters=0) if found and wanted.endswith("-text") else found


def _plain_name(name: str) -> str:
    return _SUFFIX.sub("", name.rsplit("/", 1)[-1].lower())


def base_of(name: str) -> str | None:
    """The entry whose sizes a model has that was tuned from another, by its Hub name; None for all others."""
    return _TUNED_FROM.get(_plain_name(name))


def licence_of(name: str, family: str) -> str:
    """Under which terms Google publishes a checkpoint.

    Args:
        name: On the Hub.
        family: The terms of its family.
    """
    return "HAI-DEF" if name.rsplit("/", 1)[-1].lower().startswith("medgemma") else family
