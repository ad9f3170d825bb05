"""A checkpoint's processor of images, sounds and videos: their text, their number of tokens, and their tensors.

The classes are those of Transformers, each loaded when it is first needed. Numbers of tokens come from the headers of
the files alone. Images always go through Pillow, so that a run computes the same with and without torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from gemma_tune.errors import UserError, first_line
from gemma_tune.media.families import MARKS, Marks
from gemma_tune.media.files import (
    UnusableMedium,
    audio_samples,
    audio_seconds,
    image_size,
    open_image,
    read_audio,
    video_info,
)
from gemma_tune.media.frames import read_frames
from gemma_tune.media.kinds import KINDS
from gemma_tune.media.stored import ProcessorFiles

_RATE = 16_000  # samples a second that all audio towers take
_SECONDS = 30  # that they take at most: Transformers cuts what is longer, without a word


class MediaProcessor:
    """Images, sounds and videos for one checkpoint; it hangs at the tokenizer as `tokenizer.media`.

    Attributes:
        model_type: The checkpoint's model type.
        soft_ids: Id of the soft token of each kind of medium that the checkpoint takes.
        images_kwargs: `model.images_kwargs`.
        files: The settings of the checkpoint's processors.
    """

    def __init__(
        self,
        model_type: str,
        soft_ids: Mapping[str, int],
        folder: Callable[[], Path],
        images_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.model_type, self.soft_ids, self.images_kwargs = model_type, dict(soft_ids), dict(images_kwargs or {})
        self.files = ProcessorFiles(folder)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of media that the checkpoint takes."""
        return tuple(self.soft_ids)

    @property
    def most_image_tokens(self) -> int:
        """The most soft tokens of an image: of Gemma 4 by its size, else the number of each."""
        if self.model_type in ("gemma3", "gemma3n"):
            return self.files.tokens("image_seq_length", 256)
        return int(self._kwargs["max_soft_tokens"])

    def marks(self, kind: str) -> Marks:
        """The text of a kind of medium, one of `kinds`."""
        return MARKS[self.model_type][kind]

    def count(self, part: Mapping[str, Any]) -> int:
        """The number of soft tokens of a medium, of all its runs together.

        Args:
            part: A part of a message's content (`type` and the path under that name), or an entry of `Rendered.media`.

        Raises:
            UnusableMedium: The file can't be used.
        """
        return sum(self.written(part)[1])

    def written(self, part: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
        """The text that the family's processor writes for a medium, and what its soft tokens stand for.

        Args:
            part: As for `count`.

        Returns:
            The text, in which one soft token stands for each run of them; and the length of each run. An image is one
            run, but with Pan & Scan one for itself and each crop; a video has one for each frame.

        Raises:
            UnusableMedium: The file can't be used.
        """
        kind, path = kind_and_path(part)
        self._check_kind(kind, path)
        run = self.marks(kind).run
        if kind == "image":
            return self._image_text(run, path)
        if kind == "audio":
            return run, (self._audio_tokens(path),)
        return self._video_text(run, path)

    def pixel_inputs(self, media: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """The tensors that the towers take, under the model's names, of each kind in the order given.

        Args:
            media: Entries of `Rendered.media`, or parts as for `count`, of one row or several.

        Raises:
            UnusableMedium: A file can't be used, or isn't what it was when its tokens were counted.
        """
        found: dict[str, Any] = {}
        entries = list(media)
        make = {"image": self._image_inputs, "audio": self._audio_inputs, "video": self._video_inputs}
        for kind in KINDS:
            if ours := [entry for entry in entries if kind_and_path(entry)[0] == kind]:
                self._check_kind(*kind_and_path(ours[0]))
                found |= make[kind](ours)
        return found

    def _check_kind(self, kind: str, path: str) -> None:
        if kind not in self.soft_ids:
            raise UnusableMedium(path, f"this checkpoint takes no {kind}, only {' and '.join(self.kinds)}.")

    # Images

    def _image_text(self, run: str, path: str) -> tuple[str, tuple[int, ...]]:
        width, height = image_size(path)
        if self.model_type == "gemma3":
            tokens, crops = self.files.tokens("image_seq_length", 256), self._crops(width, height)
            if not crops:
                return run, (tokens,)
            text = f"Here is the original image {run} and here are some crops to help you see better "
            return text + " ".join([run] * crops), (tokens,) * (crops + 1)
        if self.model_type == "gemma3n":
            return run, (self.files.tokens("image_seq_length", 256),)
        return run, (self._patched(path, width, height, self._kwargs["max_soft_tokens"]),)

    def _crops(self, width: int, height: int) -> int:
        """How many crops Pan & Scan adds to an image of Gemma 3."""
        kwargs = dict(self._kwargs)
        if not kwargs.pop("do_pan_and_scan"):
            return 0
        import numpy as np

        kwargs.pop("do_convert_rgb", None)
        blank = np.broadcast_to(np.uint8(0), (3, height, width))  # of that size, without its memory
        return len(list(self._image_processor.pan_and_scan(image=blank, **kwargs)))

    def _patched(self, path: str, width: int, height: int, most: int) -> int:
        """The number of tokens of an image of Gemma 4 with `most` at most; its sides keep their ratio."""
        from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

        side = self._token_side
        try:
            rows, columns = (
                pixels // side for pixels in get_aspect_ratio_preserving_size(height, width, side, most, 1)
            )
        except ValueError as error:
            raise UnusableMedium(path, f"{width} × {height} pixels can't be resized for this model: cut it.") from error
        return int(rows * columns)

    @property
    def _token_side(self) -> int:
        """Pixels of a side of the square that becomes one token of Gemma 4."""
        stored = self.files.of("image_processor")
        return int(stored.get("patch_size") or 16) * int(stored.get("pooling_kernel_size") or 3)

    @cached_property
    def _kwargs(self) -> dict[str, Any]:
        """What the image processor is called with, as the family's whole processor calls it."""
        if self.model_type == "gemma3":
            from transformers import Gemma3Processor

            return {**Gemma3Processor.images_kwargs, **self.images_kwargs}
        if self.model_type == "gemma3n":
            return {}
        stored = self.files.of("image_processor").get("max_soft_tokens")
        return {"max_soft_tokens": int(stored or 280), **self.images_kwargs}

    @cached_property
    def _image_processor(self) -> Any:
        from transformers import AutoImageProcessor

        if self.model_type == "gemma4_unified":  # its own class needs torchvision; a patch here is a token there
            from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

            return Gemma4ImageProcessorPil(patch_size=self._token_side, pooling_kernel_size=1)
        try:
            return AutoImageProcessor.from_pretrained(
                str(self.files.folder), backend="pil", trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # foreign files fail the classes of Transformers in any way
            raise UserError(f"{self.files.folder}: no image processor can be loaded ({first_line(error)}).") from error

    def _image_inputs(self, media: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        images = [open_image(kind_and_path(entry)[1]) for entry in media]
        made = dict(self._image_processor(images, return_tensors="pt", **self._kwargs))
        if self.model_type == "gemma3n":
            counts = [self.files.tokens("image_seq_length", 256)] * len(media)
        elif self.model_type == "gemma3":
            tokens = self.files.tokens("image_seq_length", 256)
            counts = [tokens * (1 + int(crops)) for crops in made.pop("num_crops")]
        else:
            counts = [int(n) for n in made.pop("num_soft_tokens_per_image")]
        _check_counts(media, counts)
        return made

    # Sounds

    def _audio_tokens(self, path: str) -> int:
        samples = audio_samples(path, _RATE)
        if samples > _SECONDS * _RATE:
            raise UnusableMedium(
                path,
                f"it is {audio_seconds(path):.1f} seconds long, and the model hears {_SECONDS}: split it into parts.",
            )
        if self.model_type == "gemma3n":  # each sound is padded to 30 seconds
            return self.files.tokens("audio_seq_length", 188)
        stored = self.files.of("feature_extractor")
        if self.model_type == "gemma4_unified":
            return -(-samples // int(stored.get("audio_samples_per_token") or 640))
        frame = round(_RATE * float(stored.get("frame_length_ms") or 20.0) / 1000)
        hop = round(_RATE * float(stored.get("hop_length_ms") or 10.0) / 1000)
        frames = (samples + frame // 2 - frame - 1) // hop + 1
        if frames <= 0:
            raise UnusableMedium(path, f"its {samples} samples are too few for a model to hear anything.")
        return -(-frames // 4)  # two convolutions that halve it, rounding up

    @cached_property
    def _feature_extractor(self) -> Any:
        from transformers import AutoFeatureExtractor

        try:
            return AutoFeatureExtractor.from_pretrained(
                str(self.files.folder), trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # as for images
            raise UserError(f"{self.files.folder}: no audio extractor can be loaded ({first_line(error)}).") from error

    def _audio_inputs(self, media: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        paths = [kind_and_path(entry)[1] for entry in media]
        _check_counts(media, [self._audio_tokens(path) for path in paths])
        return dict(self._feature_extractor([read_audio(path, _RATE) for path in paths], return_tensors="pt"))

    # Videos

    def _video_text(self, run: str, path: str) -> tuple[str, tuple[int, ...]]:
        """Each frame that is taken, with its time before it."""
        info = video_info(path)
        tokens = self._patched(path, info.width, info.height, self._video["max_soft_tokens"])
        times = [int(place / info.rate) for place in self._places(info.frames)]
        return " ".join(f"{t // 60:02d}:{t % 60:02d} {run}" for t in times), (tokens,) * len(times)

    def _places(self, frames: int) -> list[int]:
        """The frames that are taken, at equal distances; all of a video that has no more."""
        taken = min(frames, self._video["num_frames"])
        return [place * frames // taken for place in range(taken)]

    @cached_property
    def _video(self) -> dict[str, int]:
        stored = self.files.of("video_processor")
        return {
            "max_soft_tokens": int(stored.get("max_soft_tokens") or 70),
            "num_frames": stored.get("num_frames") or 32,
        }

    def _video_inputs(self, media: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Frames go through the image processor, which makes of them what the video processor would."""
        import torch

        paths = [kind_and_path(entry)[1] for entry in media]
        places = [self._places(video_info(path).frames) for path in paths]
        frames = [frame for path, its in zip(paths, places, strict=True) for frame in read_frames(path, its)]
        most = self._video["max_soft_tokens"]
        made = self._image_processor(frames, return_tensors="pt", max_soft_tokens=most)
        per_frame = [int(n) for n in made["num_soft_tokens_per_image"]]
        firsts = accumulate([0, *map(len, places)])
        _check_counts(media, [sum(per_frame[i : i + len(its)]) for i, its in zip(firsts, places, strict=False)])
        return {
            "pixel_values_videos": made["pixel_values"],
            "video_position_ids": made["image_position_ids"],
            "num_frames_per_video": torch.tensor([len(its) for its in places]),
        }


def kind_and_path(part: Mapping[str, Any]) -> tuple[str, str]:
    """What a part of a message's content, or an entry of `Rendered.media`, is, and where its file is."""
    kind = str(part["kind"] if "kind" in part else part["type"])
    return kind, str(part["path"] if "path" in part else part[kind])


def _check_counts(media: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> None:
    for entry, count in zip(media, counts, strict=True):
        if "tokens" in entry and entry["tokens"] != count:
            raise UnusableMedium(
                entry["path"],
                f"it makes {count} tokens, and made {entry['tokens']} when the rows were rendered: the file has "
                "changed since; begin the run anew.",
            )
