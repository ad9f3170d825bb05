"""Features of frozen towers are computed once an image, and training with them is training without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from media_models import media_folder
from media_rows import media_rows, trained
from short_runs import losses, metrics
from slow import slow_after

from gemma_tune.models.towers.image_cache import ImageCache
from gemma_tune.train.batches import WithMedia

IMAGES = 6  # of all rows
CLASSES = {"gemma3": "Gemma3Model", "gemma4_e2b": "Gemma4Model", "gemma4_31b": "Gemma4Model"}


def counted(patch: pytest.MonkeyPatch, family: str) -> list[int]:
    """How many images went through the towers in each call."""
    calls: list[int] = []
    cls = getattr(transformers, CLASSES[family])
    inner = cls.get_image_features

    def count(self: Any, pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(pixel_values))
        return inner(self, pixel_values, *args, **kwargs)

    patch.setattr(cls, "get_image_features", count)
    return calls


@pytest.mark.parametrize("family", slow_after(0, CLASSES))
def test_the_losses_are_those_without_it(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three epochs; afterwards each image has been computed once, and by itself."""
    model, rows = media_folder(family, tmp_path / "model"), media_rows(tmp_path, turns=1)
    calls, words = counted(monkeypatch, family), ["export=none", "train.per_device_train_batch_size=2"]
    with_cache = trained("lora_sft", model, rows, tmp_path / "with", *words, steps=9)
    of_training = calls[1:] if calls[0] == 1 else calls  # the first is the check that images reach the model
    assert of_training == [1] * IMAGES
    calls.clear()
    words = [*words, "model.cache_image_features=false"]
    without = trained("lora_sft", model, rows, tmp_path / "without", *words, steps=9)
    assert sum(calls[1:]) == 3 * IMAGES
    assert losses(with_cache) == pytest.approx(losses(without), rel=1e-6)
    norms = [[line["grad_norm"] for line in metrics(run) if "loss" in line] for run in (with_cache, without)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    calls.clear()
    trained("lora_sft", model, rows, tmp_path / "once", *words[:2], steps=3)
    assert max(calls) > 1  # rows that come once aren't kept


def test_what_is_kept_and_for_whom(tmp_path: Path) -> None:
    """Until it is full; a changed image is another one, and beside a video images go the usual way."""
    image = tmp_path / "a.png"
    image.write_bytes(b"1")
    cache = ImageCache(most=100)
    place, features = cache.place(str(image)), [torch.arange(20.0)]

    class Processor:
        def pixel_inputs(self, media: list[dict[str, str]]) -> dict[str, torch.Tensor]:
            return {"pixel_values": torch.ones(len(media), 1)} if media else {}

    collate = WithMedia(lambda rows: {"input_ids": torch.zeros(len(rows), 1)}, Processor(), cache=cache)
    row = {"media": [{"kind": "image", "path": str(image)}]}
    assert collate([row])["media"]["images"][0][1]["pixel_values"].shape == (1, 1)
    cache.keep(place, features)
    assert collate([row, row])["media"] == {"images": [(str(place), None)] * 2}
    film = {"media": [*row["media"], {"kind": "video", "path": "film"}]}
    assert collate([film])["media"].keys() == {"pixel_values"}
    image.write_bytes(b"12")
    other = cache.place(str(image))
    assert other != place
    cache.keep(other, features)
    assert place.is_file() and not other.is_file()
