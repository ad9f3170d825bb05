"""4-bit weights and training on a grid, on a device: memory against the estimate, storage types, cost of a step."""

from __future__ import annotations

import contextlib
import gc
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_arms import TABLE_ON_GPU, TABLE_ON_HOST, Case, compare
from gpu_shapes import SHAPES, built, config_of, device, in_four_bit, packed_rows, rows_of, synchronize
from peft import LoraConfig, get_peft_model
from qat_step import random_targets, trainer_of
from torch import nn

from gemma_tune.chat import Rendered
from gemma_tune.models.adapters.adapter import count
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.four_bit import is_four_bit
from gemma_tune.models.four_bit_weights import weight_of
from gemma_tune.quant.layers import off_grid, put_on_grid
from gemma_tune.quant.plan import plan_of


def qlora_memory(tiny: bool, until: float) -> dict[str, Any]:
    """Peaks of `recipe=qlora_sft` by model, against the estimate of a dry run; both in GiB.

    Of a model with a table of per-layer embeddings also with that table on the GPU.
    """
    length = 64 if tiny else 2048
    found = {}
    for name in SHAPES:
        rows = packed_rows(16, length, config_of(name, tiny).vocab_size)
        for recompute in (False, True):
            if time.monotonic() > until:
                continue
            how = f"{name}, {'with' if recompute else 'without'} recomputation"
            places = {how: TABLE_ON_HOST}
            if getattr(config_of(name, tiny), "hidden_size_per_layer_input", 0):
                places[f"{how}, table on the GPU"] = TABLE_ON_GPU
            for said, place in places.items():  # one after the other: arms of one comparison share the table
                case = Case(name, rows, length, 2, recompute, "qlora_sft", tiny)
                soon = min(until, time.monotonic() + 10)
                found[said] = compare(case, {"qlora_sft": [place]}, soon, in_four_bit)
    return found


def storages(tiny: bool, until: float) -> dict[str, Any]:
    """Of each `bnb_4bit_quant_storage`: whether losses and gradients are uint8's to the bit, memory, and time."""
    found: dict[str, Any] = {}
    config = config_of("gemma-3-1b", tiny, **({} if tiny else {"num_hidden_layers": 6}))
    ids = torch.randint(10, config.vocab_size, (2, 64 if tiny else 1024), generator=torch.Generator().manual_seed(0))
    first: dict[str, Any] = {}
    for storage in (torch.uint8, torch.bfloat16, torch.float32):
        name = str(storage).removeprefix("torch.")
        try:
            made = _with_storage(config, storage, ids.to(device()))
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
            continue
        first = first or made
        found[name] = {
            "loss": made["loss"].item(),
            "same_loss": torch.equal(made["loss"], first["loss"]),
            "same_gradients": all(torch.equal(made["gradients"][n], g) for n, g in first["gradients"].items()),
            "same_weights": torch.equal(made["weight"], first["weight"]),
            "counted": made["counted"],
            "stored_mib": made["stored"] / 2**20,
            "milliseconds": made["milliseconds"],
        }
    return found


def _with_storage(config: Any, storage: torch.dtype, ids: torch.Tensor) -> dict[str, Any]:
    base = in_four_bit(built(config), storage)
    stored = sum(m.weight.numel() * m.weight.element_size() for m in base.modules() if is_four_bit(m))
    layers = list(FAMILIES[config.model_type].linear_layers)
    torch.manual_seed(0)
    lora = LoraConfig(r=16, target_modules=layers, init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).train()

    def once() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        loss: torch.Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        return loss.detach()

    loss = once()
    synchronize()
    begun = time.perf_counter()
    for _ in range(3):
        loss = once()
    synchronize()
    taken = (time.perf_counter() - begun) / 3 * 1000
    layer = next(m for m in base.modules() if is_four_bit(m))
    return {
        "loss": loss, "milliseconds": taken, "stored": stored, "weight": weight_of(layer),
        "gradients": {n: p.grad for n, p in model.named_parameters() if p.requires_grad},
        "counted": count(model).four_bit,
    }  # fmt: skip


# Training on a grid


def qat(tiny: bool, until: float) -> dict[str, Any]:
    """Seconds of a step on the grid and without it, of the weights themselves and of an adapter, in turns."""
    return {
        "all weights, quant=q4_0": _qat(tiny, until, None),
        "all weights, quant=q4_0_embedding": _qat(tiny, until, "q4_0"),
    }


def _qat(tiny: bool, until: float, embedding: str | None) -> dict[str, Any]:
    length, pairs = (32, 2) if tiny else (512, 10)
    config = config_of("gemma-3-1b", tiny)
    rows = [Rendered(row["input_ids"], row["labels"]) for row in rows_of([length] * 4, config.vocab_size)]
    model = built(config, torch.float32)
    put_on_grid(model, plan_of(model, "q4_0", embedding))
    model.train()
    done: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        cache = random_targets(rows, Path(scratch) / "targets", config.vocab_size)
        trainer = trainer_of(model, rows, cache, Path(scratch), on_cpu=device().type == "cpu")
        for n in range(-2, pairs):
            arms = ("grid", "none") if n % 2 else ("none", "grid")
            with_grid = {"grid": contextlib.nullcontext, "none": partial(off_grid, model)}
            pair = {}
            for arm in arms:
                with with_grid[arm]():
                    pair[arm] = _qat_step(trainer, rows)
            done.append(pair)
            if time.monotonic() > until and n > 0:
                break
        del trainer
    del model
    gc.collect()
    return {"tokens": 4 * length, "pairs": done[2:]}


def _qat_step(trainer: Any, rows: list[Rendered]) -> dict[str, float]:
    """Forward and backward pass in bfloat16 over float32 weights, and the update."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    synchronize()
    begun = time.perf_counter()
    inputs = {n: torch.tensor([getattr(row, n) for row in rows], device=device()) for n in ("input_ids", "labels")}
    items = torch.tensor(sum(row.trained_tokens for row in rows), device=device())
    with torch.autocast(device().type, torch.bfloat16):
        loss = trainer.training_step(trainer.model, inputs, items)
    nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    synchronize()
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"seconds": time.perf_counter() - begun, "loss": loss.item(), "peak_gib": peak}
