"""How sure a figure is: intervals of means, and tests of two models on the same rows.

A row is one draw, so rows, not tokens, are what is counted as independent. What is taken, and why:

- Shares of right answers: Wilson's interval, which holds for few rows and near 0 and 1, where mean ± 2 stderr doesn't
  (Bowyer et al. 2025, arXiv:2503.01747); two models: McNemar's exact test and the interval of Bonett and Price (2012,
  J. Educ. Behav. Stat. 37:479), which Fagerland et al. (2014, Stat. Med. 33:2850) recommend: it asks for discordant
  pairs alone and contradicts the exact test less often than Newcombe's.
- Other scores: the interval of Student's t around the mean; two models: the paired t-test, which is the same interval
  of the row-wise differences (Miller 2024, arXiv:2411.00640). Weighted by tokens, the mean is a ratio, and its error
  that of the linearised ratio: the rows are clusters of tokens. On skewed losses of 10 to 300 rows this covers as well
  as a bootstrap (BCa) or better, and it gives the same numbers each time.
- Several tests at once: Holm's correction.

The stderr that lm-evaluation-harness prints is about a quarter of such an interval's width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_ROUNDING = 1e-12  # of the scores: a smaller spread counts as none


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie.

    Attributes:
        mean: The mean of the scores; None where there is none.
        low: Where the interval begins; None where no interval can be given: of one score, unless it is right or wrong.
        high: Where it ends.
    """

    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PairedTest:
    """One model's scores against another's, on the same rows.

    Attributes:
        difference: The mean of a - b, with its interval.
        p_value: Two-sided; 1 where nothing speaks for a difference.
        higher: Rows where a is higher.
        lower: Rows where b is higher.
        equal: Rows where neither is.
        method: The test's name.
    """

    difference: Interval
    p_value: float
    higher: int
    lower: int
    equal: int
    method: str


def is_binary(*scores: ArrayLike) -> bool:
    """Whether every score is 0 or 1: wrong or right."""
    return all(bool(np.isin(np.asarray(s, dtype=np.float64), (0.0, 1.0)).all()) for s in scores)


def interval(scores: ArrayLike, weights: ArrayLike | None = None, level: float = 0.95, binary: bool = True) -> Interval:
    """The mean of scores and its interval: Wilson's of right and wrong answers, else Student's t.

    Where all scores are the same number, it has no width: the rows say nothing of a spread. Right and wrong answers
    do, even so: 20 right ones of 20 give 0.84 to 1.

    Args:
        scores: A score a row, [N]; finite.
        weights: Tokens of each row, [N]; rows of no tokens don't count. None: every row counts the same.
        level: How often the interval shall hold the true mean.
        binary: Whether scores that are all 0 or 1, of rows that weigh the same, are wrong and right answers.

    Raises:
        ValueError: Scores that aren't finite, weights below 0, or a level outside 0 to 1.
    """
    (s,), w = _checked([scores], weights, level)
    if not len(s):
        return Interval(None, None, None)
    if binary and w is None and is_binary(s):
        from scipy import stats  # takes half a second, and a dry run computes no interval

        right = int(s.sum())
        found = stats.binomtest(right, len(s)).proportion_ci(confidence_level=level, method="wilson")
        return Interval(right / len(s), float(found.low), float(found.high))
    return _t_test(s, w, level)[0]


def paired_test(
    a: ArrayLike,
    b: ArrayLike,
    weights: ArrayLike | None = None,
    level: float = 0.95,
    binary: bool = True,
) -> PairedTest:
    """Whether two models differ: McNemar's exact test of right and wrong answers, else the paired t-test.

    Where every row differs by the same number, t has no meaning; p is then the sign-flip test's, 2 / 2^N. Near p = 0.05
    the interval of right and wrong answers may miss 0 while the exact test doesn't reject: go by p.

    Args:
        a: The one model's scores, [N]; finite.
        b: The other's, on the same rows in the same order, [N].
        weights: Tokens of each row, [N]; rows of no tokens don't count. None: every row counts the same.
        level: How often the interval shall hold the true difference.
        binary: Whether scores that are all 0 or 1, of rows that weigh the same, are wrong and right answers.

    Raises:
        ValueError: Scores that aren't finite or of different numbers, weights below 0, or a level outside 0 to 1.
    """
    (first, second), w = _checked([a, b], weights, level)
    difference = first - second
    higher, lower = int((difference > 0).sum()), int((difference < 0).sum())
    equal = len(difference) - higher - lower
    if not len(difference):
        return PairedTest(Interval(None, None, None), 1.0, 0, 0, 0, "none")
    if binary and w is None and is_binary(first, second):
        from scipy import stats

        p_value = float(stats.binomtest(higher, higher + lower).pvalue) if higher + lower else 1.0
        found = _bonett_price(higher, lower, len(difference), level)
        return PairedTest(found, p_value, higher, lower, equal, "McNemar's exact test")
    found, p_value = _t_test(difference, w, level)
    return PairedTest(found, p_value, higher, lower, equal, "paired t-test")


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of several tests, corrected (Holm 1979): where no model differs, one below 0.05 is a case in 20."""
    corrected = [0.0] * len(p_values)
    most = 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        most = max(most, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = most
    return corrected


def _checked(
    scores: Sequence[ArrayLike], weights: ArrayLike | None, level: float
) -> tuple[list[Floats], Floats | None]:
    """Scores and weights as arrays, without rows that don't count; None for weights that are all the same."""
    arrays = [np.asarray(s, dtype=np.float64) for s in scores]
    w = np.ones(len(arrays[0])) if weights is None else np.asarray(weights, dtype=np.float64)
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must be between 0 and 1, such as 0.95")
    if any(s.shape != w.shape or s.ndim != 1 for s in arrays):
        raise ValueError(f"a score and a weight a row: the shapes are {[s.shape for s in arrays]} and {w.shape}")
    if not all(np.isfinite(s).all() for s in (*arrays, w)) or (w < 0).any():
        raise ValueError("scores and weights are finite numbers, and weights not below 0")
    counts = w > 0
    arrays, w = [s[counts] for s in arrays], w[counts]
    return arrays, w if len(w) and np.ptp(w) > 0 else None


def _t_test(scores: Floats, weights: Floats | None, level: float) -> tuple[Interval, float]:
    """The weighted mean with its interval, and p of its being 0."""
    n = len(scores)
    w = np.ones(n) if weights is None else weights
    mean = float(np.average(scores, weights=w))
    if n == 1:
        return Interval(mean, None, None), 1.0
    # How far each row moves the mean, times N: of a plain mean, its distance from it
    moved = (scores - mean) * w / w.mean()
    error = float(moved.std(ddof=1)) / math.sqrt(n)
    rounding = _ROUNDING * float(np.abs(scores).max())
    if error <= rounding:
        return Interval(mean, mean, mean), 1.0 if abs(mean) <= rounding else 2.0 ** (1 - n)
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return Interval(mean, mean - half, mean + half), float(2 * stats.t.sf(abs(mean) / error, n - 1))


def _bonett_price(higher: int, lower: int, n: int, level: float) -> Interval:
    """The adjusted Wald interval: one row more on each side, so that it has a width where no row differs."""
    from scipy import stats

    up, down = (higher + 1) / (n + 2), (lower + 1) / (n + 2)
    middle = up - down
    half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt((up + down - middle**2) / (n + 2))
    return Interval((higher - lower) / n, max(-1.0, middle - half), min(1.0, middle + half))
