"""What a model's folder may hold: sizes are bounded before a library believes them, and nothing in it names code.

Weights are read from safetensors files alone; pickled ones (`*.bin`, `*.pt`) can run any program when they are opened
and are never opened. Code that a folder brings with it (`auto_map`, kernels by name) is never asked for.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

from gemma_tune.errors import UserError, quoted
from gemma_tune.run.read_once import read_json
from gemma_tune.untrusted import MIB

# Bytes of the files that a library reads whole; the largest tokenizer of a Gemma has 34 MB.
_MOST = {"tokenizer.json": 64 * MIB, "tokenizer.model": 32 * MIB, "chat_template.jinja": MIB}
_JSON = 8 * MIB
# Bytes of the header of a safetensors file; that of the largest Gemma has less than 1 MB.
_HEADER = 16 * MIB
# Keys of a config.json by which Transformers would load code: of the folder, or a kernel of the Hub.
_CODE = re.compile(
    r"auto_map|custom_pipelines|_?(attn|experts)_implementation(_internal)?|use_kernels|trust_remote_code"
)
# The highest values that sizes may have, by the last words of their names; the first that fits counts.
_SIZES = (
    (r"vocab_size\w*", 2**23),
    (r"\w*layers|depth|num_labels", 512),
    (r"\w*(_size|_dim|_width|_channels)|d_model", 2**20),
    (r"(num|n)_\w+", 2**16),
)  # fmt: skip
_ENTRIES = 10_000  # of a list or a mapping
_NUMBER = 2**53
# How much longer a tokenizer may make a text before it splits it
_LONGER = 16


def check_bounds(said: str, folder: Path) -> None:
    """Refuses a folder with files that no model has, before a library reads them.

    Args:
        said: Where the folder was named, for the message.
        folder: The folder of a model or of a tokenizer.

    Raises:
        UserError: A file is too large, or the header of a safetensors file.
    """
    for file in sorted(folder.iterdir()):
        most = _MOST.get(file.name, _JSON if file.suffix == ".json" else None)
        size = file.stat().st_size if file.is_file() else 0
        if most is not None and size > most:
            raise UserError(
                f"{said}: {file.name} has {size / MIB:,.0f} MiB, and no model's has more than {most // MIB}; fetch the "
                "checkpoint again."
            )
        if file.suffix == ".safetensors":
            _check_header(said, file, size)


def _check_header(said: str, file: Path, size: int) -> None:
    with file.open("rb") as opened:
        begin = opened.read(8)
    header = struct.unpack("<Q", begin)[0] if len(begin) == 8 else 0
    if header > _HEADER:  # one that isn't whole in the file is refused by the library
        raise UserError(
            f"{said}: {file.name} is no whole safetensors file (its header would have {header:,} bytes, and the file "
            f"has {size:,}); fetch the checkpoint again."
        )


def safetensors_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, whose length `check_bounds` has looked at, and where its tensors begin.

    Raises:
        UserError: It has none.
    """
    with file.open("rb") as opened:
        try:
            (length,) = struct.unpack("<Q", opened.read(8))
            return dict(json.loads(opened.read(min(length, _HEADER)))), 8 + length
        except (ValueError, TypeError, struct.error) as error:
            raise UserError(f"{file}: this is no whole safetensors file; fetch it again.") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model, without what would load code.

    Raises:
        OSError: It can't be read.
        ValueError: It is no JSON object, has no `model_type`, or sizes that no model has.
    """
    try:
        stored = read_json(folder / "config.json")
    except ValueError as error:
        raise ValueError(f"config.json is not JSON: {error}") from error
    if not isinstance(stored, dict) or not isinstance(stored.get("model_type"), str):
        raise ValueError("config.json has no model_type")
    _check_sizes(stored, "")
    return dict(_without_code(stored))


def _without_code(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_code(v) for k, v in value.items() if not _CODE.fullmatch(k)}
    return [_without_code(v) for v in value] if isinstance(value, list) else value


def _check_sizes(value: Any, name: str) -> None:
    if isinstance(value, dict | list):
        if len(value) > _ENTRIES:
            raise ValueError(f"config.json: {name or 'it'} has {len(value):,} entries")
        for key, inner in value.items() if isinstance(value, dict) else ((name, v) for v in value):
            _check_sizes(inner, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        most = next((most for pattern, most in _SIZES if re.fullmatch(pattern, name)), None)
        if not abs(value) <= (_NUMBER if most is None else most) or (most is not None and value < 0):
            raise ValueError(f"config.json: {name} is {quoted(value)}, and no model has that")


def checked_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer, if it doesn't make texts much longer before it splits them: forty doublings fill any memory.

    Raises:
        ValueError: It does.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    for part in (getattr(core, "normalizer", None), getattr(core, "pre_tokenizer", None)):
        if part is not None and _growth(json.loads(part.__getstate__())) > _LONGER:
            raise ValueError("its tokenizer.json makes every text many times longer (its normalizer)")
    return tokenizer


def _growth(stage: Any) -> float:
    """How many times longer a stage of a tokenizer makes a text, at most."""
    if isinstance(stage, list):
        total = 1.0
        for one in stage:
            total = min(total * _growth(one), 2.0**64)
        return total
    if not isinstance(stage, dict):
        return 1.0
    inner = [v for v in stage.values() if isinstance(v, list)]
    if stage.get("type") == "Replace":
        pattern = stage.get("pattern")
        replaced = len(pattern["String"]) if isinstance(pattern, dict) and "String" in pattern else 1
        return max(1.0, (len(stage.get("content", "")) + 1) / (replaced + 1), len(stage["content"]) / max(replaced, 1))
    own = 2.0 if stage.get("type") == "Prepend" and len(stage.get("prepend", "")) > _LONGER else 1.0
    return own * _growth([v for values in inner for v in values])
