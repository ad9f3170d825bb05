"""`compare.baseline=best`, and the spread over seeds, against scipy's and the statistics module's own figures."""

from __future__ import annotations

import random
import statistics
from itertools import combinations
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from gemma_tune.compare.comparison import compare_models
from gemma_tune.compare.results import ModelResults
from gemma_tune.compare.sections import write_comparison
from gemma_tune.compare.seeds import seed_groups, seed_spread
from gemma_tune.compare.terminal import show

_N = 60


def right(seed: int, share: float) -> list[float]:
    rng = random.Random(seed)
    return [float(rng.random() < share) for _ in range(_N)]


ANSWERS = {"a": right(1, 0.5), "b": right(2, 0.9), "c": right(3, 0.85), "d": right(4, 0.2)}


def results(name: str, scores: list[float], **more: Any) -> ModelResults:
    rows = [{"id": f"q{n}", "score": score} for n, score in enumerate(scores)]
    return ModelResults(name, {"accuracy": sum(scores) / len(scores)}, {"accuracy": rows}, **more)


MODELS = [results(name, scores) for name, scores in ANSWERS.items()]


def mcnemar(one: list[float], other: list[float]) -> float:
    up = sum(a > b for a, b in zip(one, other, strict=True))
    down = sum(a < b for a, b in zip(one, other, strict=True))
    return float(stats.binomtest(up, up + down).pvalue) if up + down else 1.0


def test_tested_against_the_best_with_all_pairs_corrected_for() -> None:
    """Holm's step-down over all six pairs, written as its definition: max over the smaller ones of (m - k) p."""
    comparison = compare_models(MODELS, baseline="best")
    assert comparison.models == ["b", "a", "c", "d"] and comparison.best_in == "accuracy"
    ordered = sorted((mcnemar(ANSWERS[x], ANSWERS[y]), {x, y}) for x, y in combinations(ANSWERS, 2))
    corrected = {
        frozenset(pair): min(1.0, max((6 - k) * ordered[k][0] for k in range(place + 1)))
        for place, (_, pair) in enumerate(ordered)
    }
    (figure,) = comparison.figures
    for one in figure.model_stats[1:]:
        assert one.p_corrected == pytest.approx(corrected[frozenset({"b", one.model})])
    assert [one.verdict for one in figure.model_stats] == ["", "worse", "not significant", "worse"]


def test_the_first_stays_the_baseline_otherwise() -> None:
    comparison = compare_models(MODELS)
    assert comparison.models[0] == "a" and comparison.best_in is None
    (figure,) = comparison.figures
    plain = [mcnemar(ANSWERS[name], ANSWERS["a"]) for name in "bcd"]
    assert figure.model_stats[1].p_corrected >= plain[0] and figure.other_p_values == ()


def test_choosing_the_best_makes_no_verdict_too_easy() -> None:
    """Ten equal models: the best is found better than another one in no more than 5% of the cases."""
    rng = random.Random(5)
    wrong = 0
    for _ in range(40):
        models = [results(str(n), [rng.gauss(0, 1) for _ in range(30)]) for n in range(10)]
        (figure,) = compare_models(models, baseline="best").figures
        wrong += any(one.verdict == "worse" for one in figure.model_stats)
    assert wrong <= 2  # 5% of 40; corrected for the tests against the best alone it would be 4


def test_of_losses_the_lowest_is_the_best() -> None:
    models = [ModelResults(n, {}, {"held_out_loss": MODELS[0].scores["accuracy"]}) for n in "ab"]
    lower = [{"id": row["id"], "score": row["score"] - 1} for row in MODELS[0].scores["accuracy"]]
    comparison = compare_models([*models, ModelResults("c", {}, {"held_out_loss": lower})], baseline="best")
    assert comparison.models[0] == "c" and comparison.best_in == "held_out_loss"


def test_a_test_counts_before_the_held_out_loss() -> None:
    both = [
        ModelResults(m.name, {}, {"held_out_loss": m.scores["accuracy"], "accuracy": m.scores["accuracy"]})
        for m in MODELS
    ]
    assert compare_models(both, baseline="best").best_in == "accuracy"


def test_spread_over_seeds() -> None:
    values = [0.91, 0.875, 0.93]
    found = seed_spread(values)
    assert (found.count, found.low, found.high) == (3, 0.875, 0.93)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.deviation == pytest.approx(statistics.stdev(values))  # n - 1
    assert seed_spread([0.5]).deviation is None


def test_figures_that_a_run_lacks_have_no_spread() -> None:
    groups = seed_groups([("a", "x", {"p": 1.0, "q": 2.0}), ("b", "x", {"p": 3.0}), ("c", "y", {"p": 1.0})])
    assert [(g.setting, g.runs, list(g.figures)) for g in groups] == [("x", ["a", "b"], ["p"]), ("y", ["c"], ["p"])]


def test_seeds_and_baseline_are_shown(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    models = [
        results(f"r={r}, seed={n}", right(10 * r + n, 0.5 + r / 10), setting=f"r={r}") for r in (1, 4) for n in (1, 2)
    ]
    comparison = compare_models(models, baseline="best")
    show(comparison, Console(width=80, highlight=False))
    said = capsys.readouterr().out
    write_comparison(comparison, tmp_path / "comparison.md")
    text = (tmp_path / "comparison.md").read_text("utf-8")
    assert max(map(len, said.splitlines())) <= 80
    for shown in (said, text):
        assert "(the best in accuracy, where higher is better)" in shown
        assert "standard deviation (n − 1) over the seeds" in " ".join(shown.split())
    shares = [sum(right(10 * 4 + n, 0.9)) / _N for n in (1, 2)]
    wanted = f"{statistics.fmean(shares):.1%} ± {100 * statistics.stdev(shares):.1f}"
    assert f"| r=4 | 2 | {wanted}" in text and wanted in said
    assert "tests between all pairs of models" in text
    assert "Seeds" not in (tmp_path / "comparison.md").read_text("utf-8").partition("## Seeds")[0]
