"""How to make smaller files with llama.cpp's own program, and what that costs."""

from __future__ import annotations

import shlex
from pathlib import Path

from gemma_tune.page.blocks import Block, Code, Text

_BLOCK = 256  # weights of a block of a K-quant
_COSTS = (
    "Smaller files are made of this one by llama.cpp's own program. It rounds the finished weights, so its codes are "
    "none that were trained with, and nothing has checked that file: measure it (recipe=evaluate takes it). Where that "
    "costs too much, recipe=qat trains for int4."
)


def k_quants(file: Path) -> list[Block]:
    """The command for a K-quant, with what to know of it.

    Args:
        file: The float16 file.
    """
    stem = file.stem.removesuffix("-f16")
    command = ["llama-quantize", str(file), str(file.with_name(f"{stem}-Q4_K_M.gguf")), "Q4_K_M"]
    said = _COSTS
    from gemma_tune.export.read_gguf import gguf_widths  # loads torch and more, and only an export needs it
    from gemma_tune.export.verify import ArtifactDiffers

    try:
        widths = gguf_widths(file)
    except ArtifactDiffers as error:
        return [Text(f"No smaller files can be made of {error} Export it again.")]
    if odd := sorted(width for width in widths if width % _BLOCK):
        said += (
            f" K-quants hold rows in blocks of {_BLOCK}, and this model has rows of {', '.join(map(str, odd))}: for "
            "those llama-quantize takes other types (Q5_0 for Q4_K, Q8_0 for Q6_K), so the file is larger than its "
            "name says."
        )
    return [Text(said), Code(shlex.join(command), "bash")]
