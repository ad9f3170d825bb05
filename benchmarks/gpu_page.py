"""docs/benchmarks/gpu.md from what `make bench-gpu` has measured. Imports nothing but the standard library."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

TRL = "TRL at its best"
# Two-sided 95 % points of Student's t, by degrees of freedom; more than these are taken for the normal distribution's
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]]
    return [*lines, ""]


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Geometric mean of ratios, and its 95 % interval (Student's t on their logarithms)."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    t = _STUDENT[len(logs) - 2] if len(logs) - 2 < len(_STUDENT) else 2.0
    half = t * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def same_training(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two arms did the same: all losses to 0.5 %, the first to 0.1 %, and the first gradient's norm to 5 %."""
    a, b = one["losses"], other["losses"]
    close = len(a) == len(b) > 0 and all(
        math.isclose(x, y, rel_tol=5e-3 if n else 1e-3) for n, (x, y) in enumerate(zip(a, b, strict=True))
    )
    return close and math.isclose(one["grad_norms"][0], other["grad_norms"][0], rel_tol=5e-2)


def ratio(arm: dict[str, Any], base: dict[str, Any]) -> str:
    """How many times as fast an arm is, round by round, or why there is no ratio."""
    pairs = list(zip(base["seconds"], arm["seconds"], strict=False))
    if base["error"] or len(pairs) < 2:
        return "none: too few steps"
    if not same_training(arm, base):
        return "none: losses or gradients differ"
    mean, low, high = interval([theirs / own for theirs, own in pairs])
    few = "" if len(pairs) >= 10 else f", {len(pairs)} steps"
    return f"{mean:.3f} ({low:.3f}–{high:.3f}{few})"


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _case(found: dict[str, Any]) -> list[str]:
    rows = []
    base = found["arms"].get(TRL)
    for name, arm in found["arms"].items():
        if arm["error"] or not arm["seconds"]:
            rows.append([name, arm["error"] or "no steps", "", "", "", "", ""])
            continue
        seconds = statistics.median(arm["seconds"])
        rows.append([
            name, f"{seconds * 1000:.1f}", f"{found['tokens'] / seconds:,.0f}",
            "" if base is None or arm is base else ratio(arm, base),
            _gib(arm["peak_gib"]), _gib(arm["estimate_gib"]), f"{arm['losses'][0]:.4f} → {arm['losses'][-1]:.4f}",
        ])  # fmt: skip
    rows_are = "packed" if found["packed"] else "padded"
    said = f"{found['model']}, {found['batch']} {rows_are} rows of at most {found['length']:,} tokens"
    again = ", with recomputation" if found["recompute"] else ""
    lines = [f"{said}{again}; {found['tokens']:,} tokens a step in the mean, half of them trained.", ""]
    if errors := {name: error for name, error in found.get("without_recomputation", {}).items() if error}:
        lines += [f"Without recomputation: {'; '.join(f'{name}: {error}' for name, error in errors.items())}.", ""]
    head = ["arm", "ms/step", "tokens/s", "times TRL (95 %)", "peak, GiB", "estimate, GiB", "loss, first → last"]
    return [*lines, *table(head, rows)]


def _memory(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, case in found.items():
        (arm,) = case["arms"].values()
        peak, expected = arm["peak_gib"], arm["estimate_gib"]
        share = f"{expected / peak - 1:+.0%}" if peak else ""
        taken = f"{statistics.median(arm['seconds']) * 1000:.1f}" if arm["seconds"] else ""
        rows.append([name, arm["error"] or _gib(peak), _gib(expected), share, taken])
    head = ["`recipe=qlora_sft`, 2 packed rows", "peak, GiB", "estimate, GiB", "estimate is off by", "ms/step"]
    return table(head, rows)


def _qat(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, of in found.items():
        pairs = of["pairs"]
        mean, low, high = interval([pair["grid"]["seconds"] / pair["none"]["seconds"] for pair in pairs])
        ms = {arm: statistics.median(pair[arm]["seconds"] for pair in pairs) * 1000 for arm in ("grid", "none")}
        peaks = {arm: pairs[-1][arm]["peak_gib"] for arm in ("grid", "none")}
        rows.append([
            name, f"{ms['grid']:.1f}", f"{ms['none']:.1f}", f"{mean:.3f} ({low:.3f}–{high:.3f})", _gib(peaks["grid"]),
            _gib(peaks["none"]),
        ])  # fmt: skip
    head = ["trained", "on the grid, ms", "off the grid, ms", "ratio (95 %)", "peak on, GiB", "peak off, GiB"]
    return table(head, rows)


def _padding(found: dict[str, Any]) -> list[str]:
    rows = []
    for model, ways in found["models"].items():
        for way, of in ways.items():
            if "error" in of:
                rows.append([model, way, of["error"], "", ""])
                continue
            loss, away = of["loss"], of["difference_from_single_rows"]
            rows.append([model, way, f"{loss:.4f}", str(of["gradients_not_finite"]), f"{away:.1e}"])
    head = ["model", "attention", "loss", "gradients with NaN or ∞", "most a row's loss is off, alone"]
    return [f"Rows of {', '.join(map(str, found['lengths']))} tokens, bfloat16.", "", *table(head, rows)]


def _kernels(found: dict[str, Any]) -> list[str]:
    kinds = ("flash", "efficient", "cuDNN", "math")

    def cell(value: Any) -> str:
        return f"{value:.2f} ms" if isinstance(value, float) else "no" if "viable" in value else value

    rows = [[name, of["taken"], *(cell(of[kind]) for kind in kinds)] for name, of in found["layers"].items()]
    head = ["layer", "torch takes", *kinds]
    said = f"One row of {found['tokens']:,} tokens, bfloat16, forward and backward pass."
    return [said, "", *table(head, rows)]


def _flex(found: dict[str, Any]) -> list[str]:
    cells = {name: f"{of:.2f} ms" if isinstance(of, float) else of for name, of in found["layers"].items()}
    return [f"One row of {found['tokens']:,} tokens.", "", *table(["layer", "flex"], [list(x) for x in cells.items()])]


def _storage(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, of in found.items():
        if "error" in of:
            rows.append([name, of["error"], "", "", "", ""])
            continue
        same = ["yes" if of[key] else "no" for key in ("same_loss", "same_gradients", "same_weights")]
        rows.append([name, *same, f"{of['stored_mib']:.1f}", f"{of['milliseconds']:.1f}"])
    return table(["storage", "uint8's loss", "its gradients", "its weights", "stored, MiB", "ms/step"], rows)


def _tests(found: dict[str, Any]) -> list[str]:
    rows = [[name, of["said"], f"{of['seconds']:.1f}"] for name, of in found["tests"].items()]
    files = ", ".join(f"`{file}`" for file in found["files"])
    return [f"Run: {files}.", "", *table(["test", "result", "s"], rows)]


def _device(found: dict[str, Any]) -> list[str]:
    facts = {name: value for name, value in found.items() if name != "versions"}
    return table(["", ""], [[name, str(value)] for name, value in {**facts, **found["versions"]}.items()])


_TOLD: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "device": _device, "padding": _padding, "kernels": _kernels, "tests": _tests, "qlora-memory": _memory,
    "qat": _qat, "storage": _storage, "flex": _flex,
}  # fmt: skip


def as_markdown(report: dict[str, Any]) -> str:
    """The whole page; a part that failed or wasn't run says so."""
    name = report["parts"].get("device", {}).get("found", {}).get("name", "an unknown device")
    lines = [
        f"# On a GPU: {name}", "",
        f"Made by `make bench-gpu` on {report['date']} (`{report['command']}`)."
        + (" Small models in place of the published shapes: no figure here means anything." if report["tiny"] else ""),
        "",
        "Models of the published shapes with random weights in bfloat16. Arms train with their trainer's own loop and "
        "take turns after each step, in one process; 3 steps of each aren't counted. Time is the median of the others, "
        "the ratio the geometric mean over rounds. Peaks are of allocated memory, without what other arms hold. TRL at "
        "its best: bfloat16 products, SDPA, packed rows, no recomputation. There is no ratio where losses or the first "
        "gradient's norm differ.", "",
    ]  # fmt: skip
    for part, of in report["parts"].items():
        lines += [f"## {of['told'][0].upper()}{of['told'][1:]}", ""]
        if "found" not in of:
            lines += [f"`{part}`: {of.get('error') or 'not run: ' + of.get('not_run', '')}", ""]
            continue
        try:
            lines += _TOLD.get(part, _case)(of["found"])
        except Exception as error:  # the figures are in gpu.json, whatever a table lacks
            lines += [f"`{part}`: no table ({type(error).__name__}: {error}); see gpu.json.", ""]
    return "\n".join(lines)
