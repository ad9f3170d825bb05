"""The settings of a checkpoint's processors, as its files hold them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from gemma_tune.errors import UserError, first_line
from gemma_tune.untrusted import parse_json, read_bytes

# Of `model.images_kwargs`, what Transformers reads in a processor's file: it takes Pan & Scan from a call alone
IN_FILES = ("max_soft_tokens",)
# All in one, and the older form: images and sound side by side
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


class ProcessorFiles:
    """Reads them when they are first needed.

    Args:
        folder: Gives the folder, which may be fetched from the Hub first.
    """

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._folder = folder

    @cached_property
    def folder(self) -> Path:
        """Where they are."""
        return self._folder()

    def of(self, name: str) -> dict[str, Any]:
        """The settings of one processor; in older folders images and sound share theirs, and videos have none.

        Args:
            name: `image_processor`, `feature_extractor` or `video_processor`.
        """
        whole, flat = self._contents
        own = whole.get(name, {} if name == "video_processor" else flat)
        return own if isinstance(own, dict) else {}

    def tokens(self, name: str, default: int) -> int:
        """A number of tokens of the whole processor.

        Raises:
            UserError: It is not one.
        """
        value = self._contents[0].get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 1 << 16:
            raise UserError(f"{self.folder / PROCESSOR_FILES[0]}: {name} is not a number of tokens.")
        return value

    def digest(self, *more: Any) -> str:
        """A digest of all settings, 32 hex digits.

        Args:
            more: What else is to be in it.
        """
        said = json.dumps([*more, self._contents], sort_keys=True, default=str)
        return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()

    @cached_property
    def _contents(self) -> list[dict[str, Any]]:
        found = []
        for name in PROCESSOR_FILES:
            file = self.folder / name
            try:
                content = parse_json(read_bytes(file)) if file.is_file() else {}
            except (OSError, ValueError) as error:
                raise UserError(f"{file}: it can't be read as JSON ({first_line(error)}).") from error
            if not isinstance(content, dict):
                raise UserError(f"{file}: it holds no settings.")
            found.append(content)
        return found


def only_in_calls(images_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `model.images_kwargs` that no file beside a model can hold with effect."""
    return {name: value for name, value in images_kwargs.items() if name not in IN_FILES}


def with_images_kwargs(content: Mapping[str, Any], images_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a processor's file with the settings that a model was trained with.

    Args:
        content: Of one of `PROCESSOR_FILES`: settings of images by themselves, or beside those of sound.
        images_kwargs: `model.images_kwargs`.
    """
    kept = {name: value for name, value in images_kwargs.items() if name in IN_FILES}
    nested = content.get("image_processor")
    if isinstance(nested, dict):
        return {**content, "image_processor": {**nested, **kept}}
    return {**content, **{name: value for name, value in kept.items() if name in content}}
