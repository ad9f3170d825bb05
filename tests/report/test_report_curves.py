"""The lines of metrics.jsonl as curves, and their drawing."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from gemma_tune.cli.compose import compose_config
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.page.charts import Panel, Series, curve_chart, draw_curves
from gemma_tune.page.svg import Axis
from gemma_tune.report import write_report
from gemma_tune.report.curves import read_panels, running_mean, thinned
from gemma_tune.run.existing import Found
from gemma_tune.run.folder import RunFolder

DFT = "train.loss_type=dft"


def panels_of(tmp_path: Path, *lines: dict[str, float]) -> dict[str, Panel]:
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return {panel.title: panel for panel in read_panels(tmp_path / "metrics.jsonl")}


def test_panels(tmp_path: Path) -> None:
    training = [{"step": n, "loss": 3 / n, "grad_norm": 1.0, "epoch": n / 9} for n in range(1, 5)]
    found = panels_of(
        tmp_path,
        {"step": 0, "held_out_loss": 4.0, "test_exact_match": 0.25, "test_rows": 20, "seen": 7},
        *training,
        {"step": 2, "held_out_loss": 2.0, "test_exact_match": 0.5, "test_rows": 8, "seen": 7},
        {"step": 4, "train_loss": 9.0, "train_runtime": 5.0, "epoch": 1.0},
        {"step": 4, "held_out_loss": 1.5, "test_exact_match": 0.625, "test_rows": 8},
        {"step": 4, "held_out_loss": 1.0, "test_exact_match": 0.75, "once": 0.5, "broken": float("nan")},
    )
    assert list(found) == ["loss", "held_out_loss", "test_exact_match", "gradient norm"]
    train, held_out = found["loss"].series
    assert train.points == [(n, 3 / n) for n in range(1, 5)] and train.kind == "line"
    assert held_out.points == [(0, 4.0), (2, 2.0), (4, 1.0)]  # of a step the last one, which is of all rows
    assert found["test_exact_match"].series[0].points == [(0, 25.0), (2, 50.0), (4, 75.0)]
    assert found["test_exact_match"].unit == "%" and found["held_out_loss"].unit == ""


@pytest.mark.slow
def test_only_losses_of_tokens_are_in_nats(tmp_path: Path) -> None:
    """DPO's loss and a reward model's are no nats of a token; nor is `dft`, which weights them."""
    titles = {}
    for recipe, words in (("lora_sft", []), ("qat", []), ("dpo", []), ("reward_model", []), ("full_sft", [DFT])):
        cfg = compose_config(recipe, ["model=tiny", *words])
        run = RunFolder(tmp_path / recipe, cfg, Found.NOTHING, None)
        run.path.mkdir()
        lines = (f'{{"step": {n}, "loss": 0.5, "epoch": 0.1}}\n' for n in (1, 2, 3))
        run.metrics.write_text("".join(lines), encoding="utf-8")
        write_report(cfg, run, "all weights", Evaluation(), Evaluation())
        page = run.report.with_suffix(".html").read_text("utf-8")
        titles[recipe] = "loss, nats a token" in page
        assert "loss" in page
    assert titles == {"lora_sft": True, "qat": True, "dpo": False, "reward_model": False, "full_sft": False}


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert read_panels(tmp_path / "metrics.jsonl") == []
    assert panels_of(tmp_path, {"step": 0, "held_out_loss": 1.0}) == {}


def test_curves_from_three_points_on(tmp_path: Path) -> None:
    """Two points are no curve: alone they are left out, beside a curve they are dots without a line."""
    ends = [{"step": n, "held_out_loss": 3.0 - n, "accuracy": n / 4} for n in (0, 2)]
    training = [{"step": n, "loss": 3 / n, "epoch": n / 9} for n in (1, 2, 3)]
    assert panels_of(tmp_path, *ends, *training[:2]) == {}
    found = panels_of(tmp_path, *ends, *training)
    assert list(found) == ["loss"]
    drawn = curve_chart(found["loss"])
    assert drawn.count('class="line" d=') == 1 and 'class="dots" d=' not in drawn and drawn.count('class="dot"') == 2
    draw_curves(list(found.values()), tmp_path / "loss.png")


def test_many_losses_get_a_running_mean(tmp_path: Path) -> None:
    lines = [{"step": n, "loss": float(n % 7), "epoch": 0.1} for n in range(1, 2001)]
    faint, line = panels_of(tmp_path, *lines)["loss"].series
    assert (faint.kind, line.kind) == ("faint", "line") and max(len(faint.points), len(line.points)) <= 800
    assert {value for _, value in faint.points} >= {0.0, 6.0}


def test_running_mean_is_the_mean_around() -> None:
    rng = random.Random(1)
    for n in (21, 100, 333):
        values = [rng.gauss(0, 1) for _ in range(n)]
        half = max(5, n // 20) // 2
        for place, mean in enumerate(running_mean(values)):
            reach = min(half, place, n - 1 - place)
            around = values[place - reach : place + reach + 1]
            assert mean == pytest.approx(sum(around) / len(around), abs=1e-12)


def test_thinning_keeps_every_peak() -> None:
    rng = random.Random(2)
    points = [(float(n), rng.gauss(0, 1)) for n in range(5000)]
    points[1234] = (1234.0, 99.0)
    kept = thinned(points, 200)
    assert len(kept) <= 200 and kept == sorted(kept) and set(kept) <= set(points) and (1234.0, 99.0) in kept
    assert thinned(points[:200], 200) == points[:200]


def test_axes_hold_and_name_the_values() -> None:
    rng = random.Random(3)
    for _ in range(300):
        size = 10 ** rng.uniform(-7, 6)
        values = [rng.uniform(-1, 1) * size + rng.choice([0, 50]) * size for _ in range(rng.randint(1, 5))]
        axis = Axis(values, 4)
        assert all(0 <= axis.place(v) <= 100 for v in (*values, *axis.ticks)) and axis.ticks
        names = [axis.name(t) for t in axis.ticks]
        assert len(set(names)) == len(names), names
        step = axis.ticks[1] - axis.ticks[0] if len(axis.ticks) > 1 else size
        for tick, name in zip(axis.ticks, names, strict=True):
            assert float(name.replace("−", "-").replace(",", "")) == pytest.approx(tick, rel=6e-3, abs=step / 100)


def test_steps_are_whole() -> None:
    for last in (1, 2, 3, 20, 1000, 12345):
        axis = Axis([0.0, float(last)], 5, whole=True)
        assert all(t == int(t) for t in axis.ticks) and axis.place(0) == 0 and axis.place(last) == 100


def test_a_plot_has_every_point() -> None:
    """From the places of the dots back to the values."""
    points = [(0.0, 4.0), (10.0, 1.5), (40.0, 1.0)]
    trained = [(0.0, 4.0), (20.0, 2.0), (40.0, 1.0)]
    drawn = curve_chart(Panel("<loss>", [Series("train & more", trained, "line"), Series("held out", points, "dots")]))
    dots = [(float(x), float(y)) for x, y in re.findall(r'class="dot" d="M([\d.]+) ([\d.]+)h0"', drawn)]
    x, y = Axis([0.0, 40.0], 5, whole=True), Axis([4.0, 1.0], 4)
    assert dots == [(pytest.approx(x.place(s), abs=0.01), pytest.approx(100 - y.place(v), abs=0.01)) for s, v in points]
    assert "&lt;loss&gt;" in drawn and "train &amp; more" in drawn and "<loss>" not in drawn
    assert "step 10: 1.5" in drawn and 'class="line"' in drawn


def test_the_picture(tmp_path: Path) -> None:
    for count in (1, 5):
        panels = [Panel(f"p{n}", [Series("a", [(0.0, 1.0), (5.0, 2.0)], "dots")], "%") for n in range(count)]
        draw_curves(panels, tmp_path / f"{count}.png")
    small, large = ((tmp_path / f"{count}.png").read_bytes() for count in (1, 5))
    assert small.startswith(b"\x89PNG") and large.startswith(b"\x89PNG")
    assert small[16:20] == large[16:20] and small[20:24] < large[20:24]  # as wide, and higher
