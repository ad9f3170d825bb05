"""Draws docs/int4-grid.png: one block of weights on the grid, and on one whose scale is positive."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from figures import DOCS

from gemma_tune.quant.grid import GRIDS

PICTURE = DOCS.parent / "int4-grid.png"
_LINE, _GOOD, _BAD = "#c8ccd4", "#1f6feb", "#d1242f"


def positive(block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scale of the rule that most training stacks use: absmax / 8, and +8 clipped to +7."""
    scale = block.abs().max() / 8
    return (block / scale).round().clamp(-8, 7), scale


def panel(axes: plt.Axes, block: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, title: str) -> None:
    """The 16 values of the grid as lines, the weights as dots, each with the way to the value that it gets."""
    for code in range(-8, 8):
        axes.axhline(code * float(scale), color=_LINE, lw=0.8, zorder=0)
        axes.text(len(block) + 0.4, code * float(scale), f"{code}", va="center", fontsize=7, color="#57606a")
    for place, (weight, code) in enumerate(zip(block.tolist(), codes.tolist(), strict=True)):
        value = code * float(scale)
        far = abs(value - weight) > 0.51 * abs(float(scale))
        axes.plot([place, place], [weight, value], color=_BAD if far else _GOOD, lw=1.2)
        axes.plot(place, weight, "o", ms=4, color=_BAD if far else _GOOD)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlim(-1, len(block) + 1.5)
    axes.set_xticks([])
    axes.set_xlabel("the 32 weights of a block")
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def draw(file: Path) -> None:
    torch.manual_seed(4)
    block = torch.randn(32) * 0.02
    block[11] = block.abs().max() * 1.15  # the extreme weight is positive
    encoded = GRIDS["q4_0"].encode(block)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    panel(left, block, encoded.codes, encoded.scales, "ours and llama.cpp's: scale = extreme / −8")
    panel(right, block, *positive(block), "often used in training: scale = absmax / 8")
    left.set_ylabel("weight")
    left.annotate("code −8, always", (11, float(block[11])), (13, float(block[11])), va="center", fontsize=8)
    right.annotate(
        "clipped to code 7; a converter\nmakes this 7/8 a new scale", (11, float(block[11])), (13, float(block[11])),
        va="center", fontsize=8, color=_BAD,
    )  # fmt: skip
    figure.tight_layout()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    draw(PICTURE)
