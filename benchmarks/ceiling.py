"""The ceiling: products of the shapes of a training in bfloat16, one after the other, their seconds as a line of JSON.

python benchmarks/ceiling.py '{"shapes": [[1024, 640, 2048], …], "rounds": 40, "device": "cpu"}'
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import torch


def main(asked: dict[str, Any]) -> None:
    """Of each shape [m, k, n] the operations a second of the median product: stops by others are outliers."""
    device = torch.device(asked["device"])
    seconds: dict[str, list[float]] = {}
    pairs = {
        f"{m} x {k} x {n}": (torch.randn(m, k, device=device).bfloat16(), torch.randn(k, n, device=device).bfloat16())
        for m, k, n in asked["shapes"]
    }
    for _ in range(asked["rounds"]):
        for name, (a, b) in pairs.items():
            begun = time.perf_counter()
            torch.mm(a, b)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.setdefault(name, []).append(time.perf_counter() - begun)
    rates = {
        name: 2 * m * k * n / statistics.median(seconds[name][1:])
        for name, (m, k, n) in zip(pairs, asked["shapes"], strict=True)
    }
    print(json.dumps({"seconds": 0.0, "rates": rates}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
