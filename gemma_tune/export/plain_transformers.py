"""Exported folders in plain Transformers: loads one, and compares its logits with those of the trained model.

Run with `child.py` it does so in a process of its own, so that the exporting one never holds
a second model. Its input is JSON with `folders`, `rows` (token ids), `logits` (a file, see `stored_logits`), `device`
and `threads`; it answers with a line of JSON, the largest difference in each folder. All other output goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from gemma_tune.errors import RunError
from gemma_tune.models.contexts import evaluating
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.logits import POSITIONS_AT_ONCE, logits_of, states_of


def load_exported(folder: Path, dtype: torch.dtype, place: dict[str, str]) -> Any:
    """Loads an exported folder with plain Transformers.

    Where a package is missing that its towers need (Gemma 3n's image tower needs timm), only the language part.

    Raises:
        RunError: The language part has tensors that the folder lacks, or none for some that are there.
    """
    options = {"dtype": dtype, "device_map": place, "output_loading_info": True}
    try:
        loaded, info = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, **options
        )
        return _whole(folder, loaded, info)
    except ImportError as error:
        print(f"{folder}: checked without its towers ({str(error).strip().splitlines()[0]}).", file=sys.stderr)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    family = FAMILIES[config.model_type]
    cls: Any = getattr(transformers, family.language_class)
    text = config.get_text_config()
    if quantized := getattr(config, "quantization_config", None):
        text.quantization_config = quantized
    loaded, info = cls.from_pretrained(
        folder,
        config=text,
        key_mapping=family.key_mapping,
        use_safetensors=True,
        trust_remote_code=False,
        **options,
    )
    return _whole(folder, loaded, info)


def _whole(folder: Path, loaded: Any, info: dict[str, Any]) -> Any:
    """The model, where every tensor of its language part was loaded; towers are the checkpoint's, whatever it has."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    family = FAMILIES[config.model_type]
    for what in ("missing_keys", "unexpected_keys"):
        if names := sorted(name for name in info[what] if not family.is_tower(name)):
            raise RunError(f"{folder}: {len(names)} {what.replace('_', ' ')}, for example {names[0]}.")
    return loaded


def stored_logits(file: Path, positions: int) -> Iterator[torch.Tensor]:
    """Logits in a file of float32 numbers, mapped into memory, as `logits_of` gives them."""
    count = file.stat().st_size // 4
    found = torch.from_file(str(file), shared=False, size=count, dtype=torch.float32)
    yield from found.view(positions, -1).split(POSITIONS_AT_ONCE)


def largest_difference(
    folder: Path, rows: Sequence[Sequence[int]], reference: Iterable[torch.Tensor], device: str
) -> float:
    """Loads a folder in float32; the largest difference of its logits from others, NaN where there is one."""
    loaded = load_exported(folder, torch.float32, {"": device})
    with evaluating(loaded):
        loaded(input_ids=torch.tensor([rows[0][:1]], device=device))  # the first forward decodes packed weights
    worst = torch.zeros((), device=device)
    for ours, theirs in zip(reference, logits_of(loaded, states_of(loaded, rows)), strict=True):
        worst = torch.maximum(worst, theirs.sub_(ours.to(device)).abs_().max())  # keeps NaN
    return float(worst.item())


def main() -> None:
    """Compares the folders that the input names."""
    asked = json.load(sys.stdin)
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(asked["threads"])
    rows, positions = asked["rows"], sum(map(len, asked["rows"]))
    found = [
        largest_difference(Path(folder), rows, stored_logits(Path(asked["logits"]), positions), asked["device"])
        for folder in asked["folders"]
    ]
    print(json.dumps(found), file=answer, flush=True)


if __name__ == "__main__":
    main()
