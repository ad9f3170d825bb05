"""How each family's processor writes images, sounds and videos into a text, and the settings that a user may change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gemma_tune.errors import UserError, listed, quoted


@dataclass(frozen=True)
class Marks:
    """The text of one medium.

    Attributes:
        placeholder: What the chat template writes in its place.
        before: What the processor writes before the soft tokens.
        soft: The token whose embeddings are replaced by the features.
        after: What it writes behind them.
    """

    placeholder: str
    before: str
    soft: str
    after: str

    @property
    def run(self) -> str:
        """The text with one soft token in place of all."""
        return self.before + self.soft + self.after


_IMAGE4 = Marks("<|image|>", "<|image>", "<|image|>", "<image|>")
_FAMILY4 = {
    "image": _IMAGE4,
    "audio": Marks("<|audio|>", "<|audio>", "<|audio|>", "<audio|>"),
    # One run of soft tokens a frame, with its time before it
    "video": Marks("<|video|>", "<|image>", "<|video|>", "<image|>"),
}
_AFTER = "<end_of_image>\n\n"
# By the model type of config.json. The line breaks belong to what the models were trained with.
MARKS: Mapping[str, Mapping[str, Marks]] = MappingProxyType(
    {
        "gemma3": {"image": Marks("<start_of_image>", "\n\n<start_of_image>", "<image_soft_token>", _AFTER)},
        "gemma3n": {
            "image": Marks("<image_soft_token>", "\n\n<start_of_image>", "<image_soft_token>", _AFTER),
            "audio": Marks(
                "<audio_soft_token>", "\n\n<start_of_audio>", "<audio_soft_token>", "<end_of_audio>\n\n"
            ),
        },
        "gemma4": _FAMILY4,
        "gemma4_unified": _FAMILY4,
    }
)  # fmt: skip

SOFT_TOKENS = (70, 140, 280, 560, 1120)  # that Gemma 4 knows for an image


@dataclass(frozen=True)
class _Allowed:
    said: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(lowest: int, highest: int) -> _Allowed:
    return _Allowed(
        f"a whole number from {lowest} to {highest}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest,
    )


_PAN_AND_SCAN = {
    "do_pan_and_scan": _Allowed("true or false", lambda value: isinstance(value, bool)),
    "pan_and_scan_min_crop_size": _whole(1, 10_000),
    "pan_and_scan_max_num_crops": _whole(2, 64),
    "pan_and_scan_min_ratio_to_activate": _Allowed(
        "a number from 1 to 100", lambda value: _is_number(value) and 1 <= value <= 100
    ),
}
_BUDGET = {"max_soft_tokens": _Allowed(f"one of {listed(SOFT_TOKENS)}", lambda value: value in SOFT_TOKENS)}
ALLOWED: Mapping[str, Mapping[str, _Allowed]] = MappingProxyType(
    {"gemma3": _PAN_AND_SCAN, "gemma3n": {}, "gemma4": _BUDGET, "gemma4_unified": _BUDGET}
)


def checked_images_kwargs(model_type: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """`model.images_kwargs` as the family's image processor takes it, which refuses a whole number as a ratio.

    Raises:
        UserError: A name or a value that the family's image processor doesn't take; it names those that it takes.
    """
    allowed = ALLOWED.get(model_type, {})
    for name, value in given.items():
        if name not in allowed:
            known = "; ".join(f"{key} ({rule.said})" for key, rule in allowed.items())
            takes = f"{model_type} takes {known}" if known else f"{model_type} takes none"
            raise UserError(f"model.images_kwargs.{name}: {takes}.")
        if not allowed[name].fits(value) or isinstance(value, bool) != (name == "do_pan_and_scan"):
            raise UserError(f"model.images_kwargs.{name}={quoted(value)}: it must be {allowed[name].said}.")
    return {name: float(value) if name.endswith("_ratio_to_activate") else value for name, value in given.items()}


def image_limits(most: int) -> tuple[int, int]:
    """The fewest and the most tokens of an image with which llama.cpp scales images nearly as Gemma 4's processor does.

    The processor scales each image up or down to as many as fit into the most, rounding its sides down; llama.cpp
    scales down to the most as the processor does, up to the fewest, rounding up, and leaves what is between
    (`calc_size_preserved_ratio` in tools/mtmd/mtmd-image.cpp). Of 37 random sizes with nine tenths as the fewest all 15
    larger ones had the same tokens; of 22 smaller ones 6, and the others from 14 fewer to 62 more.
    """
    return most * 9 // 10, most


def llama_image_tokens(media: Any) -> tuple[int, int] | None:
    """The fewest and the most tokens of an image that llama.cpp must be told; None where all images have as many.

    Args:
        media: The `MediaProcessor` of training.
    """
    return None if media.model_type in ("gemma3", "gemma3n") else image_limits(media.most_image_tokens)
