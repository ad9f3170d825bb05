"""Whether the tokens of an image see each other: by config.json, or by `model.image_attention`. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from gemma_tune.config.model import BIDIRECTIONAL, CAUSAL
from gemma_tune.errors import UserError

# Values of `text_config.use_bidirectional_attention` in config.json of Gemma 4
STORED = {CAUSAL: None, BIDIRECTIONAL: "vision"}
# llama.cpp's for Gemma 4 12B, which Transformers' class of it hasn't: a comparison's alone, nothing is trained with it
IN_WINDOW = "bidirectional in sliding layers, within the window"
_MARK = "_images_in_window"


class ImageAttention(NamedTuple):
    """Where the tokens of an image see each other; text is causal everywhere.

    Attributes:
        in_full_layers: In full layers, too (Gemma 3, and Gemma 4 12B), or only in sliding ones.
        beyond_window: In sliding layers beyond the window (Gemma 4 12B); the others see an image as far as the window
            reaches back.
    """

    in_full_layers: bool
    beyond_window: bool


def image_attention(config: Any) -> ImageAttention | None:
    """Where the tokens of an image see each other, as Transformers' class has it; None: causal everywhere.

    Args:
        config: Of the language part.
    """
    if config.model_type.startswith("gemma3_"):
        return ImageAttention(in_full_layers=True, beyond_window=False)
    if getattr(config, "use_bidirectional_attention", None) != STORED[BIDIRECTIONAL]:
        return None
    unified = _is_unified(config) and not attends_in_window(config)
    return ImageAttention(in_full_layers=unified, beyond_window=unified)


def set_image_attention(config: Any, asked: str | None, base: str) -> None:
    """Puts `model.image_attention` into a checkpoint's configuration.

    Args:
        config: Of the whole checkpoint.
        asked: `model.image_attention`; None: it stays as it is.
        base: The checkpoint, for people.

    Raises:
        UserError: The checkpoint is none of Gemma 4 with an image tower.
    """
    if asked is None:
        return
    if not config.model_type.startswith("gemma4") or getattr(config, "vision_config", None) is None:
        raise UserError(
            f"model.image_attention={asked}: it is a choice of Gemma 4 with an image tower, and {base} is "
            f"{config.model_type}; leave it out."
        )
    config.get_text_config().use_bidirectional_attention = STORED[asked]


def attention_is_open(config: Any) -> bool:
    """Whether a language part attends to images as its config.json says, and not always in one way."""
    return hasattr(config, "use_bidirectional_attention") and str(config.model_type).startswith("gemma4")


def named_attention(config: Any) -> str:
    """The value of `model.image_attention` for what a language part of Gemma 4 does."""
    return CAUSAL if image_attention(config) is None else BIDIRECTIONAL


def other_attentions(config: Any) -> list[str]:
    """What a language part of Gemma 4 may be served with but for its own, for `attending`."""
    other = CAUSAL if named_attention(config) == BIDIRECTIONAL else BIDIRECTIONAL
    if not _is_unified(config):
        return [other]
    return [IN_WINDOW, other]


def attends_in_window(config: Any) -> bool:
    """Whether a language part attends to images as `IN_WINDOW` says, for which its own class has no masks."""
    return getattr(config, _MARK, False)


def _is_unified(config: Any) -> bool:
    return str(config.model_type).startswith("gemma4_unified")


@contextlib.contextmanager
def attending(config: Any, attention: str) -> Iterator[None]:
    """Within it, a language part of Gemma 4 attends to images so, whatever it was trained with.

    Args:
        config: Of the language part.
        attention: As `model.image_attention`, or `IN_WINDOW`.
    """
    kept = config.use_bidirectional_attention
    config.use_bidirectional_attention = STORED[BIDIRECTIONAL if attention == IN_WINDOW else attention]
    if attention == IN_WINDOW:
        setattr(config, _MARK, True)
    try:
        yield
    finally:
        config.use_bidirectional_attention = kept
        if attention == IN_WINDOW:
            delattr(config, _MARK)
