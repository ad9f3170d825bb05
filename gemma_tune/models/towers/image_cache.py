"""What frozen towers have made of images, kept on disk for the rest of a run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gemma_tune.data.scratch import scratch_folder
from gemma_tune.run.paths import free_disk

IMAGES = "images"  # the key of a batch under which its images stand one by one
_SHARE = 4  # of the free disk, one part


class ImageCache:
    """Features of images, a file each, in a folder that goes with the run.

    An image goes through the towers by itself, the first time as each later one, so that its features depend on no
    other image of a batch. The processes of a run have a cache each.

    Args:
        most: Bytes that it may take; None: a quarter of the free disk, shared by the processes of this machine.
        processes: How many these are.
    """

    def __init__(self, most: int | None = None, processes: int = 1) -> None:
        self._folder = scratch_folder()
        self._left = free_disk(Path(self._folder.name)) // _SHARE // processes if most is None else most

    def place(self, path: str) -> Path:
        """The file of an image's features, which need not be there; another one after the image has changed."""
        status = os.stat(path)
        named = f"{path}\n{status.st_size} {status.st_mtime_ns}"
        return Path(self._folder.name) / f"{hashlib.sha256(named.encode()).hexdigest()}.safetensors"

    def keep(self, place: Path, features: list[torch.Tensor]) -> None:
        """Writes features as long as there is room; what a write leaves that fails is no file of features."""
        size = sum(tensor.nbytes for tensor in features)
        if size > self._left:
            return
        self._left -= size
        partial = place.with_suffix(".partial")
        try:
            save_file({str(i): t.detach().cpu().contiguous() for i, t in enumerate(features)}, partial)
            partial.replace(place)
        except OSError:  # the disk is full: they are computed again
            self._left = 0
            partial.unlink(missing_ok=True)


def features_of(whole: Any, images: list[Any], cache: ImageCache, device: Any) -> torch.Tensor | list[torch.Tensor]:
    """The features of a batch's images, read or computed, in the form in which the family's class gives them.

    Args:
        whole: The checkpoint's class.
        images: For each the file of its features, and what the image processor made of it; None where the file is
            there.
        cache: Where computed ones are kept.
        device: Where they are used.
    """
    found: list[torch.Tensor] = []
    for place, pixels in images:
        if pixels is None or Path(place).is_file():  # the same image may stand in a batch twice
            stored = load_file(place)
            found += [stored[str(i)].to(device) for i in range(len(stored))]
            continue
        with torch.no_grad():
            given = {name: tensor.to(device) for name, tensor in pixels.items()}
            made = whole.get_image_features(**given, return_dict=True).pooler_output
        found += (its := [*made])
        cache.keep(Path(place), its)
    # Gemma 4's images have as many tokens as their sides allow; those of Gemma 3 and 3n are one tensor
    return found if whole.config.model_type.startswith("gemma4") else torch.stack(found)
