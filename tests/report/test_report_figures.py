"""Figures before and after: intervals and differences against formulas, and what rows can't be compared."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.report.figures import Change, changes, headline, moved_line


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson (1927), as every textbook has it."""
    z, p = 1.959963984540054, right / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def answered(scores: list[float], **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "score": float(score), **more} for n, score in enumerate(scores)]


def evaluation(name: str, scores: list[float], **more: Any) -> Evaluation:
    return Evaluation({name: sum(scores) / len(scores)}, {name: answered(scores, **more)})


def only(before: Evaluation, after: Evaluation) -> Change:
    (change,) = changes(before, after)
    return change


def test_shares_have_wilsons_interval() -> None:
    rng = random.Random(0)
    for _ in range(50):
        n = rng.randint(2, 300)
        old, new = ([float(rng.random() < p) for _ in range(n)] for p in (0.3, 0.6))
        change = only(evaluation("test_exact_match", old), evaluation("test_exact_match", new))
        for scores, said in ((old, change.before), (new, change.after)):
            low, high = wilson(int(sum(scores)), n)
            values = [float(x) for x in said.span.split("–")]
            assert values == pytest.approx([100 * low, 100 * high], abs=0.0501)
            assert float(said.value.rstrip("%")) == pytest.approx(100 * sum(scores) / n, abs=0.0501)
        assert change.difference is not None and change.stats is not None
        points = float(change.difference.value.removesuffix(" points").replace("−", "-"))
        assert points == pytest.approx(100 * (sum(new) - sum(old)) / n, abs=0.0501)
        better = sum(b > a for a, b in zip(old, new, strict=True))
        worse = sum(b < a for a, b in zip(old, new, strict=True))
        assert change.moved == f"{better} / {worse} / {n - better - worse}"
        line = f"test_exact_match: {better} of {n} rows became right, {worse} became wrong"
        assert moved_line(change) == line


def test_verdicts_go_by_the_corrected_test() -> None:
    """6 against 0 of 20 rows: McNemar's p is 2 / 2^6 = 0.03; of two such figures, Holm asks for 0.025."""
    old, new = [0.0] * 10 + [1.0] * 10, [1.0] * 6 + [0.0] * 4 + [1.0] * 10
    assert only(evaluation("a_accuracy", old), evaluation("a_accuracy", new)).verdict == "better"
    assert only(evaluation("a_accuracy", new), evaluation("a_accuracy", old)).verdict == "worse"
    both = [Evaluation({"a_accuracy": 0.5, "b_accuracy": 0.5}, dict.fromkeys("ab", ())) for _ in range(2)]
    for found, scores in zip(both, (old, new), strict=True):
        found.rows.clear()
        found.rows.update({"a_accuracy": answered(scores), "b_accuracy": answered([0.0, *scores])})
    assert [change.verdict for change in changes(*both)] == ["not significant"] * 2


def test_losses_are_better_below() -> None:
    old = Evaluation({"held_out_loss": 2.0}, {"held_out_loss": answered([1.5, 2.0, 2.5], weight=4)})
    new = Evaluation({"held_out_loss": 1.0}, {"held_out_loss": answered([0.5, 1.1, 1.4], weight=4)})
    change = only(old, new)
    # Student's t for 3 rows: 4.3027 · 0.5 / √3 = 1.2421
    assert change.before.line() == "2 (0.76–3.24)"
    assert change.verdict == "better" and change.moved == "3 / 0 / 0" and moved_line(change) is None
    assert change.difference is not None and change.difference.line() == "−1.00 (−1.25 to −0.75)"


def test_shares_of_a_row_are_percent() -> None:
    change = only(evaluation("needle_2048_accuracy", [0.25, 0.5]), evaluation("needle_2048_accuracy", [0.5, 0.75]))
    assert change.before.value == "37.5%" and change.difference is not None
    assert change.difference.value == "+25.0 points"
    assert moved_line(change) == "needle_2048_accuracy: 2 of 2 rows got better, 0 got worse"


def test_right_and_wrong_under_any_name() -> None:
    assert only(Evaluation(), evaluation("mine", [1, 0])).after.line() == "50.0% (9.5–90.5)"
    assert only(Evaluation(), evaluation("mine", [1, 0.5])).after.line() == "0.75 (−2.4 to 3.9)"


def test_the_figure_of_all_rows_stays() -> None:
    """The loss is that of 5,000 rows; only the first ones were kept."""
    old = Evaluation({"held_out_loss": 1.92}, {"held_out_loss": answered([1.5, 2.0, 2.5])})
    new = Evaluation({"held_out_loss": 1.22}, {"held_out_loss": answered([1.0, 1.5, 2.0])})
    change = only(old, new)
    assert (change.before.value, change.after.value, change.part) == ("1.92", "1.22", 3)
    assert change.before.span


@pytest.mark.parametrize(
    "before",
    [
        Evaluation(),
        Evaluation({"x_accuracy": 0.5}),
        evaluation("x_accuracy", [1.0, 0.0, 1.0]),  # another number of rows
        Evaluation({"x_accuracy": 0.5}, {"x_accuracy": answered([1, 0], weight=2)}),  # other tokens
        Evaluation({"x_accuracy": 0.5}, {"x_accuracy": [{"id": "other", "score": 1}, {"id": "r1", "score": 0}]}),
        Evaluation({"x_accuracy": 0.5}, {"x_accuracy": answered([math.nan, 0])}),
        Evaluation({"x_accuracy": 0.5}, {"x_accuracy": [{"id": "r0"}, {"id": "r1"}]}),
        Evaluation({"x_accuracy": 0.5}, {"x_accuracy": [{"score": 1}, {"score": 0}]}),
    ],
)
def test_other_rows_are_not_compared(before: Evaluation) -> None:
    """What can't be compared still has its own interval, and ends no run."""
    change = only(before, evaluation("x_accuracy", [1.0, 0.0]))
    assert change.difference is None and change.stats is None and change.verdict == change.moved == ""
    assert change.after.line() == "50.0% (9.5–90.5)"
    assert moved_line(change) is None


def test_a_headline_without_figures() -> None:
    (change,) = headline({"name": "train_loss", "before": 2.5, "after": 1.25})
    assert (change.before.line(), change.after.line()) == ("2.5", "1.25")
    (change,) = headline({"name": "x", "after": 1.0})
    assert change.before.line() == "–"
    assert headline({}) == []


def test_a_headline_without_values_is_none() -> None:
    """recipe=grpo with eval=none."""
    assert headline({"name": "reward", "before": None, "after": None}) == []
    assert [change.name for change in headline({"name": "reward", "after": 0.5})] == ["reward"]
