"""Which names in an adapter's file are the towers', and whether any of them was trained. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gemma_tune.errors import UserError
from gemma_tune.models.folders import ADAPTER_WEIGHTS, TOWERS_FILE
from gemma_tune.models.foreign import safetensors_header

# Anywhere in a name: which class the name is of isn't known yet
OF_TOWERS = re.compile(r"(^|\.)(vision|audio|multi_modal|embed_vision|embed_audio)")
_BLOCK = 1 << 20


def trains_towers(adapter: Path) -> bool:
    """Whether towers for images or sound were trained with an adapter, in a file beside it or in its own.

    Adapters that PEFT has put on towers of which no image was shown are no reason to load them: B is zero.

    Args:
        adapter: PEFT's folder. Files that can't be read have nothing, and are refused by whoever uses them.
    """
    return (adapter / TOWERS_FILE).is_file() or _adapts_towers(adapter / ADAPTER_WEIGHTS)


def _adapts_towers(file: Path) -> bool:
    try:
        header, start = safetensors_header(file)
        found = [entry for name, entry in header.items() if OF_TOWERS.search(name) and "lora_A" not in name]
        with file.open("rb") as opened:
            return any(_is_not_zero(opened, start, entry["data_offsets"]) for entry in found)
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return False


def _is_not_zero(opened: Any, start: int, offsets: list[int]) -> bool:
    opened.seek(start + offsets[0])
    left = offsets[1] - offsets[0]
    while left > 0 and (block := opened.read(min(left, _BLOCK))):
        if block.strip(b"\0"):
            return True
        left -= len(block)
    return False
