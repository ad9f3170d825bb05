"""The ceiling: products of the shapes of a training in bfloat16, one after the other, each with its begin and end.

python benchmarks/ceiling.py '{"shapes": [[1024, 640, 2048], …], "rounds": 40, "device": "cpu"}'
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def main(asked: dict[str, Any]) -> None:
    """Writes `{"products": [[shape's number, begin, end], …]}` as a line of JSON, times as `time.time()` gives them."""
    device = torch.device(asked["device"])
    pairs = [
        (torch.randn(m, k, device=device).bfloat16(), torch.randn(k, n, device=device).bfloat16())
        for m, k, n in asked["shapes"]
    ]
    products = []
    for _ in range(asked["rounds"]):
        for number, (a, b) in enumerate(pairs):
            begun = time.time()
            torch.mm(a, b)
            if device.type == "cuda":
                torch.cuda.synchronize()
            products.append([number, begun, time.time()])
    print(json.dumps({"products": products}), flush=True)


def rates(
    products: list[list[float]], shapes: list[list[int]], own: Callable[[float, float], float]
) -> dict[str, float]:
    """Of each shape the operations a second of its median product, after the first.

    Args:
        products: What `main` wrote.
        shapes: [m, k, n] of each.
        own: Seconds between two times, without those in which the process was stopped.
    """
    found = {}
    for number, (m, k, n) in enumerate(shapes):
        seconds = [own(begin, end) for which, begin, end in products if which == number][1:]
        found[f"{m} x {k} x {n}"] = 2 * m * k * n / statistics.median(seconds)
    return found


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
