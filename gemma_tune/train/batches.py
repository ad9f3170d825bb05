"""Batches of rows with images, sounds and videos, padded or packed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from trl import pack_dataset

from gemma_tune.chat import Rendered
from gemma_tune.data.storage import MEDIUM
from gemma_tune.models.towers.image_cache import IMAGES, ImageCache

MEDIA = "media"  # the column of a data set, and the key of a batch
FILES = "media_files"  # the key of a batch with what the rows say of their media
_NUMBER = "medium"


class WithMedia:
    """A collator that adds the tensors of the rows' media to the batch of another one; a batch without has no such key.

    Files are opened and decoded here, for this batch alone.

    Args:
        collate: TRL's collator.
        processor: `tokenizer.media`.
        times: How often the media of all rows stand in the batch: it holds both answers of pairs, one after the other.
        named: Whether the batch says of which files they are, too (`FILES`).
        cache: Of features of images, where the towers are frozen; an image whose features are there isn't opened.
    """

    def __init__(
        self,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        processor: Any,
        times: int = 1,
        named: bool = False,
        cache: ImageCache | None = None,
    ) -> None:
        self._collate, self._processor, self._times, self._named = collate, processor, times, named
        self._cache = cache

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch; its media stand in the order of the rows."""
        media = [medium for row in rows for medium in row.get(MEDIA) or ()]
        batch = self._collate([{name: value for name, value in row.items() if name != MEDIA} for row in rows])
        if not media:
            return batch
        files, images = ({FILES: media * self._times} if self._named else {}), []
        # Beside a video Transformers takes no features of images
        if self._cache is not None and not any(medium["kind"] == "video" for medium in media):
            images = [self._image(medium, self._cache) for medium in media if medium["kind"] == "image"]
            media = [medium for medium in media if medium["kind"] != "image"]
        inputs = self._processor.pixel_inputs(media)
        made = {name: torch.cat([tensor] * self._times) for name, tensor in inputs.items()}
        return {**batch, **files, MEDIA: made | ({IMAGES: images * self._times} if images else {})}

    def _image(self, medium: dict[str, Any], cache: ImageCache) -> tuple[str, dict[str, Any] | None]:
        """The file of an image's features, and the image where they aren't there yet."""
        place = cache.place(medium["path"])
        return str(place), None if place.is_file() else self._processor.pixel_inputs([medium])


def rows_with_media(
    rows: Sequence[Rendered], media: Sequence[dict[str, Any]], soft_ids: Collection[int]
) -> list[Rendered]:
    """The rows of a batch, each with those of the batch's media whose soft tokens it has.

    Args:
        rows: Token ids and labels.
        media: Of all rows, in the order of their soft tokens.
        soft_ids: The ids of soft tokens.

    Raises:
        RuntimeError: There are soft tokens without a medium, or media without their tokens.
    """
    left, found = iter(media), []
    for row in rows:
        soft, own = sum(i in soft_ids for i in row.input_ids), list[dict[str, Any]]()
        while soft > 0 and (medium := next(left, None)):
            own.append(medium)
            soft -= medium["tokens"]
        if soft:
            raise RuntimeError("the soft tokens of a batch aren't those of its media")
        found.append(replace(row, media=own))
    if next(left, None):
        raise RuntimeError("the soft tokens of a batch aren't those of its media")
    return found


def has_media(dataset: Any) -> bool:
    """Whether rows of a data set may have media."""
    return MEDIA in (dataset.column_names or ())


def packed(dataset: Dataset, length: int) -> Dataset:
    """The rows packed as TRL packs text, each with its media.

    TRL packs columns that have an entry for each token. So the number of a medium stands at its first soft token, and
    the rows are looked up by these numbers afterwards.

    Args:
        dataset: `input_ids`, `labels` and `media`.
        length: Tokens of a packed row, at most; no row is longer.
    """
    media: list[dict[str, Any]] = []

    def numbered(row: dict[str, Any]) -> dict[str, Any]:
        numbers = [-1] * len(row["input_ids"])
        for medium in row[MEDIA]:
            numbers[medium["at"]] = len(media)
            media.append(medium)
        return {_NUMBER: numbers}

    # `media` grows by side effect: a cached result would leave it empty
    found = dataset.map(numbered, remove_columns=[MEDIA], load_from_cache_file=False, desc="media of each row")
    found = pack_dataset(found, length, "bfd", {"desc": "Packing rows with media"})

    def looked_up(row: dict[str, Any]) -> dict[str, Any]:
        return {MEDIA: [media[number] for number in row[_NUMBER] if number >= 0]}

    features = found.features.copy()
    del features[_NUMBER]
    features[MEDIA] = [MEDIUM]
    return found.map(
        looked_up, remove_columns=[_NUMBER], features=features, load_from_cache_file=False, desc="their files"
    )
