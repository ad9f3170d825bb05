"""A folder in mlx-lm, on the CPU: what MLX decodes, and how far its logits are from the trained model's.

Run with `child.py`. Its input is JSON with `folder`, `rows` (token ids) and `logits` (float32 numbers of the trained
model, in the order of the rows); it answers with a line of JSON. All other output goes to stderr.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

# Numbers of a matrix that are decoded at once
_AT_ONCE = 1 << 22


def main() -> None:
    """Loads the folder and compares."""
    asked = json.load(sys.stdin)
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import mlx.core as mx  # the extra `mlx` brings it
    from mlx_lm import load

    mx.set_default_device(mx.cpu)
    mx.disable_compile()  # on a CPU it needs a C++ compiler
    model, _ = load(asked["folder"])
    found: dict[str, Any] = {"digests": dict(_digests(mx, model))}
    model.set_dtype(mx.float32)
    stored = np.memmap(asked["logits"], np.float32, "r").reshape(sum(map(len, asked["rows"])), -1)
    factor = _factor(model)
    found["worst"], kl = _compared(mx, model, asked["rows"], stored, factor)
    if factor is not None:
        _, kl = _compared(mx, model, asked["rows"], stored, None)
        found["factor_kl"] = kl
    print(json.dumps(found), file=answer, flush=True)


def _digests(mx: Any, model: Any) -> Iterator[tuple[str, str]]:
    """The digest of every weight, decoded in float32, by its name."""
    from mlx.utils import tree_flatten

    coded = {path: module for path, module in model.named_modules() if "scales" in module}
    for path, array in tree_flatten(model.parameters()):
        stem, _, last = path.rpartition(".")
        module = coded.get(stem)
        if module is not None and last in ("scales", "biases"):
            continue
        digest = hashlib.sha256()
        rows = max(1, _AT_ONCE // max(1, array.size // max(1, array.shape[0]))) if array.ndim else 1
        for start in range(0, array.shape[0] if array.ndim else 1, rows):
            part = array[start : start + rows] if array.ndim else array
            if module is not None and last == "weight":
                scales, biases = (module[n][start : start + rows].astype(mx.float32) for n in ("scales", "biases"))
                part = mx.dequantize(part, scales, biases, group_size=module.group_size, bits=module.bits)
            digest.update(np.ascontiguousarray(np.array(part.astype(mx.float32))).tobytes())
        yield path, digest.hexdigest()


def _factor(model: Any) -> float | None:
    """What mlx-lm's rounding of Gemma 3's factor of the embedding to bfloat16 must be multiplied with to be undone."""
    import mlx.core as mx

    if model.model_type != "gemma3_text":
        return None
    exact = float(model.args.hidden_size) ** 0.5
    rounded = float(mx.array(exact, mx.bfloat16).astype(mx.float32).item())
    return None if rounded == exact else exact / rounded


def _compared(mx: Any, model: Any, rows: list[list[int]], stored: Any, factor: float | None) -> tuple[float, float]:
    """The largest difference of logits, NaN where there is one, and the mean KL, nats a position."""
    from mlx_lm.models.cache import make_prompt_cache

    worst, kl, start = np.float32(0), 0.0, 0
    for row in rows:
        ids = mx.array([row])
        given = {} if factor is None else {"input_embeddings": model.model.embed_tokens(ids) * factor}
        # Without a cache its Gemma 3n computes keys and values that it doesn't share
        theirs = np.array(model(ids, cache=make_prompt_cache(model), **given).astype(mx.float32))[0]
        ours = stored[start : start + len(row)]
        worst = np.maximum(worst, np.abs(theirs - ours).max())
        kl += float(_kl(ours.astype(np.float64), theirs.astype(np.float64)).sum())
        start += len(row)
    return float(worst), kl / max(start, 1)


def _kl(ours: Any, theirs: Any) -> Any:
    logs = [x - x.max(-1, keepdims=True) for x in (ours, theirs)]
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logs)
    return (np.exp(p) * (p - q)).sum(-1)


if __name__ == "__main__":
    main()
