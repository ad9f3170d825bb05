"""The model card that is sent: README.md of the artifact, as the run wrote it and perhaps the user changed it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from gemma_tune.errors import UserError
from gemma_tune.sharing.lineage import licence_of_base, relation

CARD = "README.md"
_MOST = 1 << 20


def with_base(file: Path, name: str, base: str | None, trained: bool) -> str:
    """The text of a card, with the base that the user names in its front matter.

    Args:
        file: README.md.
        name: The artifact.
        base: owner/name; None: the card stays as it is.
        trained: Whether the run has trained it.

    Raises:
        UserError: Its front matter can't be read.
    """
    try:
        text = file.read_bytes()[:_MOST].decode("utf-8")
        card = ModelCard(text)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: its front matter can't be read ({' '.join(str(error).split())}).") from error
    if base is None or card.data.base_model == base:
        return text
    card.data.base_model = base
    card.data.base_model_relation = card.data.get("base_model_relation") or relation(name, trained)
    card.data.license = card.data.license or licence_of_base(base)
    return str(card)


def combined(cards: Sequence[str]) -> str:
    """One card of several files: the front matter of the first, and the text of each."""
    first, *others = cards
    return "\n\n".join([first.rstrip("\n"), *(ModelCard(text).text.strip() for text in others)]) + "\n"
