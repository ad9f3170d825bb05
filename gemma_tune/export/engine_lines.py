"""The lines of the check that engines give: what a comparison must show, and its verdict.

docs/int4.md shows the table.
"""

from __future__ import annotations

import re
from math import floor, log10
from typing import NamedTuple

from gguf import GGMLQuantizationType

from gemma_tune.export.engine_agreement import EngineAgreement
from gemma_tune.export.int4_check import FAIL, OK, WARN, CheckLine

_MOST_KL, POSITIONS = 1e-6, 512
# What rounding costs, nats a position: usually at most, and above this the file is wrong.
ROUNDED = {
    GGMLQuantizationType.F16: (1e-4, 1e-4),
    GGMLQuantizationType.BF16: (1e-2, 1e-1),
    GGMLQuantizationType.Q8_0: (1e-2, 1e-1),
}
# Where a router's decision turns, or one of Gemma 3n's activations is cut
_AMPLIFIED = (5e-2, 2e-1)
# Of float noise, which 35 layers of Gemma 3n's streams amplify
_MOST_KL_APPROXIMATE = 1e-3


class _Bounds(NamedTuple):
    warn_kl: float
    fail_kl: float
    warn_top1: float
    fail_top1: float


# llama.cpp rounds activations to 8 bit in its Q4_0 kernels: that line finds gross errors only.
_GROSS = _Bounds(5e-4, 1e-2, 0.98, 0.90)
# Where a router's decision turns, another expert answers: KL 2.6e-2 and top-1 98 % on random weights.
_GROSS_AMPLIFIED = _Bounds(5e-2, 2e-1, 0.95, 0.80)
# Gemma 3n's streams amplify it so far that the best token of flat distributions says nothing
_GROSS_APPROXIMATE = _Bounds(5e-2, 2e-1, 0.95, 0.0)


def exact_line(name: str, found: EngineAgreement, approximate: bool = False) -> CheckLine:
    """The line of an engine that computes in float32: the control, and the same codes decoded into a float32 file.

    Args:
        name: What is compared.
        found: How it agrees.
        approximate: Whether the engine's arithmetic is only modelled in the reference (Gemma 3n).
    """
    most, must = _MOST_KL, f"KL at most {_MOST_KL:g}, the same best token beyond margins of 0.001"
    if approximate:
        most, must = _MOST_KL_APPROXIMATE, f"KL at most {_MOST_KL_APPROXIMATE:g}"
    good = found.mean_kl <= most and (approximate or not found.apart)
    return CheckLine(name, must, figures_of(found), at_least_ok(found) if good else FAIL)


def rounded_line(name: str, found: EngineAgreement, kind: GGMLQuantizationType, amplifies: bool = False) -> CheckLine:
    """The line of a file whose weights are rounded to a type of ggml; `ROUNDED` has the bounds.

    Args:
        name: What is compared.
        found: How it agrees.
        kind: The type.
        amplifies: Whether a rounded number may change much: the choice of an expert, Gemma 3n's sparse activations.
    """
    usual, most = _AMPLIFIED if amplifies else ROUNDED[kind]
    verdict = at_least_ok(found) if found.mean_kl <= usual else WARN
    must = f"KL at most {usual:g}"
    if most != usual:
        must += f" (fails at {most:g})"
    return CheckLine(name, must, figures_of(found), verdict if found.mean_kl <= most else FAIL)


def gross_line(name: str, found: EngineAgreement, amplifies: bool = False, approximate: bool = False) -> CheckLine:
    """The line of an engine that also rounds activations, which may turn the choice of some experts."""
    bounds = _GROSS_APPROXIMATE if approximate else _GROSS_AMPLIFIED if amplifies else _GROSS
    verdict = at_least_ok(found)
    if not found.mean_kl <= bounds.warn_kl or found.top1 < bounds.warn_top1:
        verdict = WARN
    if not found.mean_kl <= bounds.fail_kl or found.top1 < bounds.fail_top1:
        verdict = FAIL
    must = f"KL at most {bounds.warn_kl:g}, the same best token at {bounds.warn_top1:.0%}"
    must += f" (fails at {bounds.fail_kl:g}, {bounds.fail_top1:.0%})"
    return CheckLine(name, must, figures_of(found), verdict)


def at_least_ok(found: EngineAgreement) -> str:
    """The verdict of a good comparison: a warning where it had too few positions."""
    return OK if found.positions >= POSITIONS else WARN


def figures_of(found: EngineAgreement) -> str:
    """What a comparison showed, for people."""
    figures = f"KL {found.mean_kl:.2g}, the same best token at {found.top1:.2%} of {found.positions} positions"
    if found.close:
        figures += f" ({found.close} closer than the margin)"
    return figures if found.positions >= POSITIONS else f"{figures}, fewer than {POSITIONS}"


def same_each_time(found: str) -> str:
    """What `figures_of` says, as far as engines say it at each run: what they compute at once differs, and so do sums.

    Of a KL it has the power of ten that it is below, and of positions whole percents.
    """
    found = re.sub(r"\bKL (-?[\d.]+(?:e[+-]?\d+)?)", lambda m: f"KL below {_above(float(m[1])):g}", found)
    found = re.sub(r" \(\d+ closer than the margin\)", "", found)
    return re.sub(r"\bat (\d+)\.\d+% of", r"at \1% of", found)


def _above(kl: float) -> float:
    return 10.0 ** (floor(log10(kl)) + 1) if kl >= _MOST_KL else _MOST_KL
