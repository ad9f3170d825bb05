"""The process of `make bench-gpu` that holds the device: it reads a part's name, and answers with what it found.

One process runs all parts, so that libraries are imported once; where a part fails or takes too long, `bench_gpu.py`
ends it and begins another. Each line of standard input is `{"part": …, "seconds": …, "tiny": …}`; each answer is one
line, `{"found": …}` or `{"error": …}`, with `works`: whether the process can go on. What libraries print goes to
standard error.
"""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "triton", "numpy")
# Every choice is named, so that an arm is the same on all devices and whatever the defaults will be
THEIR_HEAD, TILED = "train.tiled_head=false", "train.tiled_head=true"
SDPA, BY_DOCUMENT = "model.attn_implementation=sdpa", "model.attn_implementation=by_document"
ALL_POSITIONS, AS_BATCHES = "model.layers_at_labels=false", "train.compact_batches=false"
OURS = "ours, TRL's head, SDPA"


def the_device(tiny: bool, until: float) -> dict[str, Any]:
    """What is measured on."""
    import torch

    found: dict[str, Any] = {"name": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if torch.cuda.is_available():
        of = torch.cuda.get_device_properties(0)
        found |= {"name": of.name, "gib": of.total_memory / 2**30, "capability": f"{of.major}.{of.minor}"}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found | {
        "versions": {package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def arms_of(model: str) -> dict[str, list[str] | None]:
    """TRL, ours with nothing chosen, and then one choice after the other."""
    from gpu_arms import TRL

    arms: dict[str, list[str] | None] = {TRL: None, OURS: [THEIR_HEAD, SDPA]}
    if model == "gemma-4-E2B":
        arms |= {"tiled head": [TILED, SDPA, ALL_POSITIONS], "tiled head, shared layers at labels": [TILED, SDPA]}
    else:
        arms |= {"tiled head": [TILED, SDPA]}
    arms["tiled head, by document"] = [TILED, BY_DOCUMENT]
    for name, package in (("flash_attention_2", "flash_attn"), ("flash_attention_3", "flash_attn_3")):
        if importlib.util.find_spec(package):
            arms[f"TRL's head, {name}"] = [THEIR_HEAD, f"model.attn_implementation={name}"]
    return arms


def lora(model: str, length: int, batch: int) -> Callable[[bool, float], dict[str, Any]]:
    """A part: packed rows of a length."""

    def measure(tiny: bool, until: float) -> dict[str, Any]:
        from gpu_arms import STEPS, WARM_UP, Case, compare
        from gpu_shapes import config_of, packed_rows

        tokens = min(length, 64) if tiny else length
        rows = packed_rows(8 if tiny else (WARM_UP + STEPS) * batch, tokens, config_of(model, tiny).vocab_size)
        return compare(Case(model, rows, tokens, batch, tiny=tiny), arms_of(model), until)

    return measure


def padded_batches(model: str) -> Callable[[bool, float], dict[str, Any]]:
    """A part: rows of all lengths in padded batches, where `train.compact_batches` has something to do."""

    def measure(tiny: bool, until: float) -> dict[str, Any]:
        from gpu_arms import STEPS, TRL, WARM_UP, Case, compare
        from gpu_shapes import config_of, rows_of

        most, steps = (64, 2) if tiny else (2048, WARM_UP + STEPS)
        lengths = [max(8, most * n // 8) for n in range(1, 9)] * steps
        rows = rows_of(lengths, config_of(model, tiny).vocab_size)
        arms: dict[str, list[str] | None] = {
            TRL: None,
            OURS: [THEIR_HEAD, SDPA],
            "tiled head": [TILED, SDPA],
            "tiled head, by document": [TILED, BY_DOCUMENT, AS_BATCHES],
            "tiled head, by document, compact batches": [TILED, BY_DOCUMENT],
        }
        return compare(Case(model, rows, most, 8, tiny=tiny), arms, until)

    return measure


def _of(module: str, function: str) -> Callable[[bool, float], Any]:
    """A part that is imported when it is asked for: what one lacks, the others don't."""

    def measure(tiny: bool, until: float) -> Any:
        return getattr(importlib.import_module(module), function)(tiny, until)

    return measure


PARTS: dict[str, Callable[[bool, float], Any]] = {
    "device": the_device,
    "padding": _of("gpu_attention", "padded"),
    "kernels": _of("gpu_attention", "kernels"),
    "flex": _of("gpu_attention", "flex"),
    "qlora-memory": _of("gpu_quantized", "qlora_memory"),
    "storage": _of("gpu_quantized", "storages"),
    "qat": _of("gpu_quantized", "qat"),
    "lora-1b-2k": lora("gemma-3-1b", 2048, 2),
    "lora-4b-2k": lora("gemma-3-4b", 2048, 2),
    "lora-e2b-2k": lora("gemma-4-E2B", 2048, 2),
    "lora-1b-16k": lora("gemma-3-1b", 16_384, 1),
    "lora-4b-16k": lora("gemma-3-4b", 16_384, 1),
    "lora-e2b-16k": lora("gemma-4-E2B", 16_384, 1),
    "padded-1b": padded_batches("gemma-3-1b"),
    "padded-e2b": padded_batches("gemma-4-E2B"),
}


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Measures one part."""
    until = time.monotonic() + asked["seconds"]
    try:
        return {"found": PARTS[asked["part"]](asked["tiny"], until)}
    except BaseException as error:  # with exits and interrupts: the answer says which
        traceback.print_exc()
        lines = str(error).splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0]}"}


def works() -> bool:
    """Frees the device's memory; whether the device still computes: after some errors a process can't use it again."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.empty_cache()
        return bool(torch.ones(8, device="cuda").sum().item() == 8)
    except RuntimeError:
        return False


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        found = answer(json.loads(line))
        print(json.dumps({**found, "works": works()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
