"""Reads the metadata of a GGUF file up to the tokenizer; nothing is believed that the file has no bytes for.

The package's own reader takes 15 seconds for a Gemma's tokens, and as long as the file says for an array that isn't
there. The layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gguf import GGUFValueType, LlamaFileType

from gemma_tune.errors import UserError

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
# Of the keys before the tokenizer: how many, bytes of a text and of all of them, and entries of an array
_KEYS, _TEXT, _ALL, _ARRAY = 1024, 1 << 20, 1 << 24, 4096
_FORMATS = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f", GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q", GGUFValueType.FLOAT64: "d",
}  # fmt: skip


@dataclass(frozen=True)
class GGUFHeader:
    """Metadata that precedes the tokenizer.

    Attributes:
        architecture: llama.cpp's name of the architecture, for example `gemma3`.
        width: `hidden_size`.
        float32: Whether every weight is float32.
        context: Number of positions that the model has.
    """

    architecture: str
    width: int
    float32: bool
    context: int


class _Metadata:
    """The values of a file, one after the other; ValueError where it ends before they do."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, _ALL

    def fields(self) -> dict[str, Any]:
        """The values by their keys, up to the tokenizer."""
        if self._file.read(4) != _MAGIC or self._number("I") not in _VERSIONS:
            raise ValueError("no GGUF file of a known version")
        self._number("Q")  # how many tensors
        found: dict[str, Any] = {}
        for _ in range(min(self._number("Q"), _KEYS)):
            key = self._text()
            if key.startswith("tokenizer."):
                break
            found[key] = self._value(GGUFValueType(self._number("I")))
        return found

    def chat_template(self) -> str:
        """The text of `tokenizer.chat_template`, behind the tokens, which are passed over; empty without one."""
        self._file.seek(len(_MAGIC) + struct.calcsize("<IQ"))
        for _ in range(min(self._number("Q"), _KEYS)):
            key, kind = self._text(), GGUFValueType(self._number("I"))
            if key == "tokenizer.chat_template" and kind == GGUFValueType.STRING:
                return self._text()
            self._pass_over(kind)
        return ""

    def _pass_over(self, kind: GGUFValueType) -> None:
        inner, count = (
            (GGUFValueType(self._number("I")), self._number("Q")) if kind == GGUFValueType.ARRAY else (kind, 1)
        )
        if inner == GGUFValueType.STRING:
            for _ in range(count):
                self._bytes(self._number("Q"))
            return
        size = count * struct.calcsize(_FORMATS[inner])
        self._left -= size
        if self._left < 0:
            raise ValueError("its metadata is too long")
        self._file.seek(size, 1)

    def _number(self, kind: str) -> Any:
        size = struct.calcsize(f"<{kind}")
        return struct.unpack(f"<{kind}", self._bytes(size))[0]

    def _bytes(self, count: int) -> bytes:
        self._left -= count
        if count > _TEXT or self._left < 0 or len(read := self._file.read(count)) < count:
            raise ValueError("it is cut off, or a text in it is too long")
        return read

    def _text(self) -> str:
        return self._bytes(self._number("Q")).decode("utf-8")

    def _value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self._text()
        if kind != GGUFValueType.ARRAY:
            return self._number(_FORMATS[kind])
        inner, count = GGUFValueType(self._number("I")), self._number("Q")
        if count > _ARRAY:
            raise ValueError("an array before the tokenizer is too long")
        return [self._text() if inner == GGUFValueType.STRING else self._number(_FORMATS[inner]) for _ in range(count)]


def read_gguf_header(file: Path) -> GGUFHeader:
    """Reads the header of a GGUF file.

    Raises:
        UserError: It is no GGUF file, or ends within the header.
    """
    try:
        with file.open("rb") as opened:
            fields = _Metadata(opened).fields()
        if fields.get("general.type") == "adapter":
            raise UserError(
                f"model.model_name_or_path={file}: this is an adapter, and no model; name the adapter's run, or a GGUF "
                "file of the whole model (export=gguf_f16)."
            )
        architecture = fields["general.architecture"]
        width, kind = fields[f"{architecture}.embedding_length"], fields.get("general.file_type")
        context = fields[f"{architecture}.context_length"]
        if not isinstance(architecture, str) or not isinstance(width, int) or not isinstance(context, int):
            raise ValueError("its architecture is no text, or its width or context length no number")
    except (ValueError, LookupError, OSError) as error:
        raise UserError(
            f"model.model_name_or_path={file}: this is no GGUF file of a language model, or it is cut off; export it, "
            "or fetch it, again."
        ) from error
    return GGUFHeader(architecture, width, kind == LlamaFileType.ALL_F32, context)


def image_tokens(mmproj: Path) -> tuple[int, int] | None:
    """The fewest and the most tokens of an image that llama.cpp must be told; None where their number is fixed.

    Training scales each image, also a small one, to nearly the most. llama.cpp's own limits for Gemma 4 are 40 and
    1120, and it takes them whatever the file says.
    """
    try:
        with mmproj.open("rb") as opened:
            fields = _Metadata(opened).fields()
    except (ValueError, LookupError, OSError):
        return None
    names = ("patch_size", "image_min_pixels", "image_max_pixels")
    side, fewest, most = (fields.get(f"clip.vision.{name}") for name in names)
    if not all(isinstance(number, int) and number > 0 for number in (side, fewest, most)):
        return None
    token = (side * fields.get("clip.vision.projector.scale_factor", 3)) ** 2  # pixels that become one
    return fewest // token, most // token


def gguf_chat_template(file: Path) -> str | None:
    """The chat template of a GGUF file, empty where it has none; None where it can't be told."""
    try:
        with file.open("rb") as opened:
            return _Metadata(opened).chat_template()
    except (ValueError, LookupError, OSError):
        return None


def lacks_chat_template(file: Path) -> bool:
    """Whether a GGUF file has no chat template, without which llama.cpp takes ChatML; False where it can't be told."""
    template = gguf_chat_template(file)
    return template is not None and not template.strip()
