"""Reads the metadata of a GGUF file up to the tokenizer: gguf's own reader takes 15 seconds for a Gemma's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader, LlamaFileType

from gemma_tune.errors import UserError


@dataclass(frozen=True)
class GGUFHeader:
    """Metadata that precedes the tokenizer.

    Attributes:
        architecture: llama.cpp's name of the architecture, for example `gemma3`.
        width: `hidden_size`.
        float32: Whether every weight is float32.
    """

    architecture: str
    width: int
    float32: bool


class _GgufHeaderReader(GGUFReader):  # type: ignore[misc]  # the package is not typed
    """GGUF's reader, up to the tokenizer."""

    def _build_fields(self, offs: int, count: int) -> int:
        for _ in range(count):
            offs = super()._build_fields(offs, 1)
            if next(reversed(self.fields)).startswith("tokenizer."):
                break
        return offs

    def _build_tensor_info(self, offs: int, count: int) -> tuple[int, list[Any]]:
        return offs, []


def read_gguf_header(file: Path) -> GGUFHeader:
    """Reads the header of a GGUF file.

    Raises:
        UserError: It is no GGUF file, or ends within the header.
    """
    try:
        fields = _GgufHeaderReader(file).fields
        architecture = fields["general.architecture"].contents()
        width = fields[f"{architecture}.embedding_length"].contents()
    except (ValueError, LookupError, OSError) as error:
        raise UserError(
            f"model.model_name_or_path={file}: this is no GGUF file of a language model, or it is cut off; export it, "
            "or fetch it, again."
        ) from error
    kind = fields.get("general.file_type")
    return GGUFHeader(architecture, width, kind is not None and kind.contents() == LlamaFileType.ALL_F32)
