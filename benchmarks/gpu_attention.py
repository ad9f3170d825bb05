"""Attention on a device: NaN with padding, and which of torch's kernels take which heads and masks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_shapes import built, config_of, device, synchronize
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from gemma_tune.errors import first_line
from gemma_tune.models.contexts import attention
from gemma_tune.models.kernels.document_attention import by_document

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
# Query heads, heads of keys, head size
HEADS = {
    "Gemma 3 1B": (4, 1, 256),
    "Gemma 3 4B": (8, 4, 256),
    "Gemma 4 E2B, sliding": (8, 1, 256),
    "Gemma 4 E2B, full": (8, 1, 512),
}


def _failed(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def kernels(tiny: bool, until: float) -> dict[str, Any]:
    """Of each kind of layer and mask: the kernel that torch takes, and milliseconds of each, forward and backward."""
    tokens = 64 if tiny else 4096
    found: dict[str, Any] = {"tokens": tokens, "layers": {}}
    for name, (heads, of_keys, size) in HEADS.items():
        for masked in (False, True):
            for grouped in (True, False):  # Transformers repeats the keys where it may not leave that to the kernel
                keys = of_keys if grouped else heads
                where = f"{name}: {heads} heads on {keys} of {size}, {'mask' if masked else 'causal'}"
                q, k, v = (_random(n, tokens, size) for n in (heads, keys, keys))
                mask = _block_diagonal(tokens) if masked else None
                how = {"attn_mask": mask, "is_causal": mask is None, "enable_gqa": keys != heads}
                times = {kernel: _time(q, k, v, how, until, backend) for kernel, backend in KERNELS.items()}
                found["layers"][where] = {"taken": _taken(q, k, v, how), **times}
    return found


def _random(heads: int, tokens: int, size: int) -> torch.Tensor:
    return torch.randn(1, heads, tokens, size, device=device(), dtype=torch.bfloat16, requires_grad=True)


def _block_diagonal(tokens: int) -> torch.Tensor:
    """The mask of a packed row of four documents."""
    number = torch.arange(tokens, device=device()) // (tokens // 4)
    return (number[:, None] == number).tril()[None, None]


def _taken(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, how: dict[str, Any]) -> str:
    try:
        number = torch._fused_sdp_choice(q, k, v, how["attn_mask"], 0.0, how["is_causal"], enable_gqa=how["enable_gqa"])
    except Exception as error:  # a function of torch's own, which may change
        return _failed(error)
    return next((name for name, backend in KERNELS.items() if int(backend) == number), f"number {number}")


def _milliseconds(once: Callable[[], None], until: float) -> float | str:
    """Of one call, the mean of three after a first one, or why there is no figure."""
    if time.monotonic() > until:
        return "not run: no time was left"
    try:
        once()
        synchronize()
        begun = time.perf_counter()
        for _ in range(3):
            once()
        synchronize()
        return (time.perf_counter() - begun) / 3 * 1000
    except Exception as error:
        return _failed(error)


def _time(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, how: dict[str, Any], until: float, backend: Any
) -> float | str:
    """Milliseconds, or why the kernel can't."""

    def once() -> None:
        with sdpa_kernel([backend]):
            functional.scaled_dot_product_attention(q, k, v, **how).sum().backward()

    return _milliseconds(once, until)


# NaN


def padded(tiny: bool, until: float) -> dict[str, Any]:
    """Gemma 4 and 3 in bfloat16 with padded batches: numbers that aren't finite, and the distance from single rows."""
    lengths = [48, 30, 9, 3] if tiny else [1500, 1024, 300, 7]  # longer and shorter than the window
    found: dict[str, Any] = {"lengths": lengths, "models": {}}
    for name, changed in (("gemma-4-E2B", _FEW_LAYERS), ("gemma-3-1b", {"num_hidden_layers": 6})):
        model = built(config_of(name, tiny, **({} if tiny else changed)))
        rows = [torch.randint(10, model.config.vocab_size, (n,), device=device()) for n in lengths]
        with _ways(model, "sdpa")():
            alone = torch.stack([_loss(model, row[None], torch.ones_like(row[None])) for row in rows]).detach()
        ways = {}
        for way in ("sdpa", *(f"sdpa, {kernel} alone" for kernel in KERNELS), "eager", "by_document"):
            for side in ("right", "left"):
                if time.monotonic() > until:
                    ways[f"{way}, padded on the {side}"] = {"error": "not run: no time was left"}
                    continue
                ways[f"{way}, padded on the {side}"] = _one_way(model, rows, alone, way, side)
        found["models"][name] = ways
        del model
    return found


# Both kinds of layers, with and without keys and values of their own
_FEW_LAYERS: dict[str, Any] = {
    "num_hidden_layers": 10,
    "num_kv_shared_layers": 5,
    "layer_types": ["sliding_attention"] * 4 + ["full_attention"] + ["sliding_attention"] * 4 + ["full_attention"],
    "vocab_size_per_layer_input": 262_144,
}


def _ways(model: Any, way: str) -> Callable[[], Any]:
    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        name, _, kernel = way.partition(", ")
        if name == "by_document":
            with by_document(model):
                yield
        elif kernel:
            with attention(model, name), sdpa_kernel([KERNELS[kernel.removesuffix(" alone")]]):
                yield
        else:
            with attention(model, name):
                yield

    return entered


def _loss(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean loss over every eighth token that has one before it."""
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    trained = (mask[:, 1:] * mask[:, :-1]).bool()
    states, targets = hidden[trained][::8], ids[:, 1:][trained][::8]
    return functional.cross_entropy(model.lm_head(states).float(), targets)


def _one_way(model: Any, rows: list[torch.Tensor], alone: torch.Tensor, way: str, side: str) -> dict[str, Any]:
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long, device=device())
    mask = torch.zeros_like(ids)
    for n, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[n, at], mask[n, at] = row, 1
    model.zero_grad(set_to_none=True)
    try:
        with _ways(model, way)():
            loss = _loss(model, ids, mask)
            loss.backward()
            with torch.no_grad():
                each = [_loss(model, ids[n : n + 1], mask[n : n + 1]) for n in range(len(rows))]
    except Exception as error:
        return {"error": _failed(error)}
    finally:
        bad = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        model.zero_grad(set_to_none=True)
    return {
        "loss": loss.item(),
        "gradients_not_finite": len(bad),
        "difference_from_single_rows": (torch.stack(each) - alone).abs().max().item(),
    }


def flex(tiny: bool, until: float) -> dict[str, Any]:
    """Whether FlexAttention is compiled for these heads, and milliseconds, forward and backward."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tokens = 64 if tiny else 4096
    found: dict[str, Any] = {"tokens": tokens, "layers": {}}
    if device().type == "cpu":
        return {**found, "layers": dict.fromkeys(HEADS, "not run: its backward pass needs a GPU")}
    compiled = torch.compile(flex_attention)

    def seen(b: Any, h: Any, query: Any, key: Any) -> Any:
        return (query >= key) & (query // (tokens // 4) == key // (tokens // 4))

    mask = create_block_mask(seen, None, None, tokens, tokens, device=str(device()))
    for name, (heads, keys, size) in HEADS.items():
        q, k, v = (_random(n, tokens, size) for n in (heads, keys, keys))

        def once(q: Any = q, k: Any = k, v: Any = v) -> None:
            compiled(q, k, v, block_mask=mask, enable_gqa=True).sum().backward()

        found["layers"][name] = _milliseconds(once, until)
    return found
