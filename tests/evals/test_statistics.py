"""Intervals and tests, against published values, formulas written out, and what simulated rows say."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from gemma_tune.evals.statistics import Interval, holm, interval, paired_test


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Whatever the rows are, nobody is warned and nothing is divided by zero."""
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        yield


def answers(both: int, a: int, b: int, neither: int) -> tuple[list[int], list[int]]:
    """Two models' answers: so many that both have right, a alone, b alone, neither."""
    return [1] * (both + a) + [0] * (b + neither), [1] * both + [0] * a + [1] * b + [0] * neither


# Shares of right answers


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(right: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998 (Stat. Med. 17:857), table I, method 3."""
    found = interval([1] * right + [0] * (n - right))
    assert found.mean == pytest.approx(right / n)
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def test_wilson_is_where_the_score_test_rejects() -> None:
    """At its ends the share is just z standard errors of that end away."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(2, 2000))
        scores = rng.random(n) < rng.random()
        level = float(rng.uniform(0.5, 0.99))
        found = interval(scores, level=level)
        z = stats.norm.ppf(0.5 + level / 2)
        for end in (found.low, found.high):
            assert end is not None and 0 <= end <= 1
            assert abs(scores.mean() - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-9)


def test_bonett_price_as_published() -> None:
    """The example of `ci.prop.ps` of R's statpsych, whose authors the method is of."""
    found = paired_test(*answers(6, 26, 4, 12)).difference
    assert found.mean == pytest.approx(22 / 48)
    assert (found.low, found.high) == (pytest.approx(0.2548067, abs=5e-8), pytest.approx(0.6251933, abs=5e-8))


def test_mcnemar_as_published() -> None:
    """Airway hyper-responsiveness of 21 children, Fagerland et al. 2014: the exact test says 0.0703."""
    found = paired_test(*answers(1, 1, 7, 12))
    assert found.p_value == pytest.approx(0.0703, abs=5e-5)
    assert (found.higher, found.lower, found.equal) == (1, 7, 13)


def test_mcnemar_counts_every_way_to_fall() -> None:
    """The share of coin tosses of the discordant pairs that fall as far apart, or further."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        a, b = (int(n) for n in rng.integers(0, 40, 2))
        found = paired_test(*answers(int(rng.integers(0, 9)), a, b, 3))
        ways = sum(math.comb(a + b, k) for k in range(a + b + 1) if abs(2 * k - a - b) >= abs(a - b))
        assert found.p_value == pytest.approx(ways / 2 ** (a + b))


# Other scores


def test_unweighted_scores_are_students() -> None:
    rng = np.random.default_rng(2)
    for n in (2, 3, 10, 500):
        a, b = rng.gamma(2, 1, n), rng.gamma(2, 1, n)
        theirs = stats.ttest_rel(a, b)
        ends = theirs.confidence_interval(0.9)
        found = paired_test(a, b, level=0.9)
        assert found.p_value == pytest.approx(theirs.pvalue, rel=1e-9)
        assert found.difference == Interval(*(pytest.approx(x, rel=1e-9) for x in ((a - b).mean(), *ends)))
        ends = stats.ttest_1samp(a, 0).confidence_interval(0.95)
        assert interval(a) == Interval(*(pytest.approx(x, rel=1e-9) for x in (a.mean(), *ends)))


def test_rows_are_clusters_of_tokens() -> None:
    """Token by token: the mean's error is that of a regression on a constant, clustered by rows (CR1, as Stata's)."""
    rng = np.random.default_rng(3)
    for n in (2, 7, 40):
        weights = rng.integers(1, 30, n)
        scores = rng.gamma(2, 1, n)
        tokens, row_of = np.repeat(scores, weights), np.repeat(np.arange(n), weights)
        left = tokens - tokens.mean()
        meat = sum(left[row_of == row].sum() ** 2 for row in range(n))
        error = math.sqrt(meat / len(tokens) ** 2 * n / (n - 1))
        half = stats.t.ppf(0.975, n - 1) * error
        found = interval(scores, weights)
        assert found == Interval(*(pytest.approx(tokens.mean() + x) for x in (0, -half, half)))
        tested = paired_test(scores, np.zeros(n), weights)
        assert tested.difference == found
        assert tested.p_value == pytest.approx(2 * stats.t.sf(tokens.mean() / error, n - 1))


def test_weights_that_say_nothing() -> None:
    """The same for all rows is none; rows of no tokens are no rows."""
    a, b = np.random.default_rng(4).random((2, 30))
    assert paired_test(a, b, [7] * 30) == paired_test(a, b)
    assert interval([1, 0, 1], [5, 5, 5]) == interval([1, 0, 1])
    assert paired_test([*a, 5], [*b, 9], [1] * 30 + [0]) == paired_test(a, b)


@pytest.mark.parametrize("binary", [True, False])
def test_intervals_hold_the_truth_as_often_as_they_say(binary: bool) -> None:
    """Simulated pairs: 95 % of intervals hold the true difference, and of tests without one, 5 % at most reject."""
    rng = np.random.default_rng(5)
    held = wrong = 0
    runs = 600
    for _ in range(runs):
        if binary:
            kind = rng.choice(4, 80, p=[0.5, 0.15, 0.05, 0.3])
            a, b = np.isin(kind, [0, 1]), np.isin(kind, [0, 2])
            weights, truth = None, 0.1
        else:
            weights = rng.integers(5, 200, 80)
            b = rng.gamma(4, 0.4, 80)
            a, truth = b + 0.02 + rng.normal(0, 1, 80) / np.sqrt(weights), 0.02
        found = paired_test(a, b, weights)
        low, high = found.difference.low, found.difference.high
        assert low is not None and high is not None
        held += low <= truth <= high
        swapped = rng.random(80) < 0.5
        wrong += paired_test(np.where(swapped, a, b), np.where(swapped, b, a), weights).p_value < 0.05
    assert 0.93 <= held / runs <= 0.985
    assert wrong / runs <= 0.07


# Few rows, and rows that are all the same


def test_no_rows() -> None:
    assert interval([]) == Interval(None, None, None)
    found = paired_test([], [])
    assert (found.difference, found.p_value) == (Interval(None, None, None), 1.0)


def test_one_row() -> None:
    assert interval([0.3]) == Interval(0.3, None, None)
    assert interval([1]) == Interval(1.0, pytest.approx(0.2065, abs=1e-4), 1.0)
    assert paired_test([0.5], [0.2]).difference == Interval(pytest.approx(0.3), None, None)
    assert paired_test([0.5], [0.2]).p_value == paired_test([1], [0]).p_value == 1
    low, high = paired_test([1], [0]).difference.low, paired_test([1], [0]).difference.high
    assert low is not None and -1 <= low < 0 < (high or 0) <= 1


def test_rows_that_are_all_the_same() -> None:
    assert interval([0.1] * 7) == Interval(*[pytest.approx(0.1)] * 3)
    alike = paired_test([0.3] * 7, [0.3] * 7)
    assert (alike.difference, alike.p_value, alike.equal) == (Interval(0, 0, 0), 1.0, 7)
    apart = paired_test([0.3] * 7, [0.2] * 7)  # the sign-flip test: of 2^7 ways two are as extreme
    assert apart.difference.low == apart.difference.high == pytest.approx(0.1)
    assert apart.p_value == 2 / 2**7
    theirs = stats.permutation_test(([0.3] * 7, [0.2] * 7), lambda x, y: np.mean(x - y), permutation_type="samples")
    assert apart.p_value == pytest.approx(theirs.pvalue)
    weighted = paired_test([0.3] * 7, [0.2] * 7, range(1, 8))
    assert weighted.p_value == apart.p_value


@pytest.mark.parametrize("share", [0, 1])
def test_no_discordant_pairs(share: int) -> None:
    """Models that answer alike aren't told apart, but may be apart: the interval has a width."""
    found = paired_test([share] * 50, [share] * 50)
    assert (found.p_value, found.equal, found.difference.mean) == (1.0, 50, 0)
    assert found.difference.high == -(found.difference.low or 0) == pytest.approx(0.0533, abs=1e-4)


def test_losses_of_0_are_no_wrong_answers() -> None:
    assert interval([0.0] * 9, binary=False) == Interval(0, 0, 0)
    assert interval([0.0] * 9).high == pytest.approx(0.2992, abs=1e-4)
    assert paired_test([0.0] * 3, [1.0] * 3, binary=False).method == "paired t-test"


def test_huge_and_tiny_scores() -> None:
    for size in (1e-100, 1e-9, 1e9, 1e100):
        a, b = size * np.array([[1.0, 2, 4], [1, 1, 1]])
        assert paired_test(a, b).p_value == pytest.approx(stats.ttest_rel([1, 2, 4], [1, 1, 1]).pvalue)


def test_swapping_the_models_mirrors_the_difference() -> None:
    rng = np.random.default_rng(6)
    for a, b, weights in (
        (rng.random(40), rng.random(40), rng.integers(1, 9, 40)),
        (rng.random(40) < 0.5, rng.random(40) < 0.8, None),
    ):
        one, other = paired_test(a, b, weights), paired_test(b, a, weights)
        assert one.p_value == other.p_value
        assert (one.higher, one.lower, one.equal) == (other.lower, other.higher, other.equal)
        mirrored = [-x for x in (other.difference.mean, other.difference.high, other.difference.low) if x is not None]
        assert one.difference == Interval(*map(pytest.approx, mirrored))


@pytest.mark.parametrize(
    ("scores", "weights", "level", "said"),
    [
        ([0.5, math.nan], None, 0.95, "finite"),
        ([0.5, math.inf], None, 0.95, "finite"),
        ([0.5, 1.0], [1, -1], 0.95, "not below 0"),
        ([0.5, 1.0], [1], 0.95, "a row"),
        ([[0.5, 1.0]], None, 0.95, "a row"),
        ([0.5, 1.0], None, 95, "between 0 and 1"),
    ],
)
def test_what_is_refused(scores: list[float], weights: list[float] | None, level: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        interval(scores, weights, level)
    with pytest.raises(ValueError, match=said):
        paired_test(scores, scores, weights, level)


# Several tests


def test_holm_as_in_r() -> None:
    """`p.adjust(c(0.01, 0.04, 0.03, 0.02, 0.5), "holm")`."""
    assert holm([0.01, 0.04, 0.03, 0.02, 0.5]) == pytest.approx([0.05, 0.09, 0.09, 0.08, 0.5])
    assert holm([]) == [] and holm([0.3]) == [0.3] and holm([0.9, 0.8]) == [1, 1]


def test_holm_rejects_step_by_step() -> None:
    """Those that the procedure itself rejects: from the smallest on, while p ≤ α / tests left."""
    rng = np.random.default_rng(7)
    for _ in range(200):
        p_values = (rng.random(int(rng.integers(1, 8))) ** 3).tolist()
        alpha = float(rng.uniform(0.01, 0.2))
        rejected = set()
        for place, p_value in enumerate(sorted(p_values)):
            if p_value > alpha / (len(p_values) - place):
                break
            rejected.add(p_value)
        assert {p for p, c in zip(p_values, holm(p_values), strict=True) if c <= alpha} == rejected
