r"""Whether the answer equals the reference answer, as a number or a formula.

It can be gamed: formulas are computed, so `\boxed{12*7}` counts as 84; units are ignored; guesses are sometimes right.

Answers are equal if math-verify says so, and in these cases:

- `1,200`, `1200.0`, `$1,200`, `1.2e3`, `1,200 apples`: separators, currency and units are ignored. `3,5` is a pair.
- `1/2`, `0.5`, `\frac{1}{2}`, and `1 1/2` and `1.5`; numbers are exact, but a fraction whose decimals never
  end equals its decimals rounded to six significant digits or more (`1/3` equals `0.333333`, not `0.33`).
- `50%` equals both `0.5` and `50`, `5 million` both `5000000` and `5`: the question says which is asked for.
- `x = 5` equals `5`, but not `y = 5`.
- `(C)`, `option C` and `C. 12` equal `C`, and the last one also `12`.

Bases, times and dates (`12_5`, `10:30`, `2020-01-01`) are right if spelled like the reference. Calculus (sums,
integrals, limits) isn't evaluated. A list of numbers isn't right for one of them, nor `not 5` for `5`, as far as
`extract.plain_answer` recognizes it: in `He has 3 and 4` the last number counts, and other words may hide a list.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from gemma_tune.config.reward import MathReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.answers import FORMATS, LONGEST, final_answer, same_answer
from gemma_tune.rewards.base import Completion, Reward, Task, per_completion, require_package
from gemma_tune.rewards.number import FUNCTIONS

# Limits that are checked before sympy computes anything. Worker processes with limits of time and memory were
# considered instead: starting one takes 1.7 s (it imports sympy), and one that computes `9^9^9` has to be killed, so
# each such formula would cost its time limit and a start. With these checks, 50 different ones took 0.05 s each
# (median; 2.6 s at most), a usual formula 0.16 s on the same, busy CPU.
# Brackets nested deeper take math-verify's parser seconds.
_DEEPEST, _NODES = 8, 300
# Decimal digits at most of a power, a factorial or the like, and the highest power of a sum.
_DIGITS, _POWER_OF_SUM = 2000, 20
_COMMANDS = re.compile(
    "[dtc]?frac|[dt]?binom|sqrt|pi|cdot|times|div|pm|left|right|big|Big|text|infty|cup|cap|setminus|in|leq?|geq?|lt|gt|"
    "neq?|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|lg|exp|circ|degree|begin|end|mathbb|mathrm|"
    "mathcal|emptyset|varnothing|q?quad|overline|vec|hat|[lr]?vert|mid|[lc]?dots|approx|alpha|beta|gamma|delta|theta|"
    "(?:var)?epsilon|zeta|eta|kappa|lambda|mu|nu|xi|rho|sigma|tau|(?:var)?phi|chi|psi|omega|Gamma|Delta|Theta|Lambda|"
    "Sigma|Phi|Psi|Omega|displaystyle|operatorname|[lr](?:floor|ceil)"
)
# Bases, times and dates: math-verify would read products, quotients and differences.
_NO_FORMULA = re.compile(r"[0-9]\s{0,9}[)}]?_|[0-9]\s{0,9}:\s{0,9}[0-9]|[0-9]{4}-[0-9]{2}-[0-9]{2}")


def _depth(text: str) -> int:
    deep = deepest = 0
    for mark in text:
        deep += (mark in "([{") - (mark in ")]}")
        deepest = max(deepest, deep)
    return max(deepest, text.count("|") // 2)


def _readable(text: str) -> bool:
    """Whether math-verify may parse a text: short and flat, no words, calculus, dates or lists (it adds up numbers)."""
    if len(text) > LONGEST or _depth(text) > _DEEPEST or re.search(r"(?<![_^0-9])[0-9]+\s+[0-9]", text):
        return False
    if _NO_FORMULA.search(text) or not all(map(_COMMANDS.fullmatch, re.findall(r"\\([A-Za-z]+)", text))):
        return False
    if "binom" in text and (len(re.findall("[0-9]", text)) > 6 or re.search(r"[\^!*]", text)):
        return False  # the parser computes binomials
    words = re.findall(r"(?<![A-Za-z\\])[A-Za-z]{4,}", re.sub(r"\\(?:begin|end)\{\w+\}|\\text\{[^{}]*\}", " ", text))
    return all(word.lower() in FUNCTIONS for word in words)


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for arg in getattr(node, "args", ()):
        yield from _nodes(arg)


def _size(node: Any) -> float:
    """An estimate of the decimal digits of the largest number in a formula.

    Raises:
        OverflowError: More than `_DIGITS`, or the formula would take long to compute.
    """
    kind: str = type(node).__name__
    args: tuple[Any, ...] = tuple(getattr(node, "args", ()))
    if getattr(node, "is_Number", False):
        return float(len(str(node))) if node.is_finite else 0.0
    sizes = [_size(arg) for arg in args]
    size = sum(sizes) + 1 if kind == "Mul" else max(sizes, default=0.0) + (math.log10(len(args)) if args else 0.0)
    if kind in ("Pow", "exp"):
        exponent, base = args[-1], args[0] if kind == "Pow" else None
        times = min(float(abs(exponent)), 1e6) if exponent.is_Rational else 10.0 ** min(sizes[-1], 6.0)
        if base is not None and base.is_Add and base.free_symbols and times > _POWER_OF_SUM:
            raise OverflowError("a high power of a sum")
        size = times / 10 if base is not None and base.is_Symbol else max(1.0, sizes[0]) * max(1.0, times)
    elif kind in ("factorial", "factorial2", "gamma", "binomial", "RisingFactorial", "FallingFactorial"):
        size = 3 * 10.0 ** min(max(sizes), 6.0)
    elif kind in ("Sum", "Product", "Integral", "Limit", "Derivative"):
        raise OverflowError(kind)
    if size > _DIGITS:
        raise OverflowError("too many digits")
    return size


@lru_cache(maxsize=512)
def _parsed(text: str) -> tuple[Any, ...]:
    """The formulas that math-verify parses; empty if they are too large to compute with.

    Its own time limit is off: it uses SIGALRM, and so does the caller of rewards (rl/scoring.py).
    """
    from math_verify import LatexExtractionConfig, parse  # type: ignore[import-untyped]

    text = text.replace("**", "^")
    text = re.sub(r"\\(?:textbf|textit|textrm|mathbf|mathit|boldsymbol|mbox|bm)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", text)
    text = re.sub("√\\s*(?:\\(([^()]*)\\)|([0-9]+|[A-Za-z]))", lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text)
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    found = parse(rf"\boxed{{{text}}}", config, fallback_mode="no_fallback", parsing_timeout=None)
    try:
        for node in found:
            if sum(1 for _ in _nodes(node)) > _NODES or not math.isfinite(_size(node)):
                return ()
    except Exception:  # OverflowError, and whatever sympy raises on unusual trees
        return ()
    return tuple(found)


def _same_formula(wanted: str, given: str) -> bool:
    """Whether math-verify finds both equal."""
    from math_verify import verify

    if not (_readable(wanted) and _readable(given)):
        return False
    try:
        a, b = _parsed(wanted), _parsed(given)
        return bool(a and b) and bool(verify(list(a), list(b), timeout_seconds=None))
    except Exception:  # whatever sympy raises on a model's formula
        return False


@lru_cache(maxsize=4096)
def _wanted(answer: str) -> str | None:
    return final_answer(answer)


def prepare(options: MathReward) -> Reward:
    r"""1 if the answer equals that of the row, else 0.

    A completion without an answer, or that was cut off, scores 0. The row's own answer may have any format
    (`… #### 72`, `72`, `\frac{1}{2}`), whatever `formats` says.

    Raises:
        UserError: math-verify is not installed, or an unknown format.
        ValueError: From the reward: a row without an answer, or one with neither a number nor a formula.
    """
    formats = tuple(options.formats)
    wrong = [name for name in formats if name not in FORMATS]
    if wrong or not formats:
        named = f"there is no format {wrong[0]}" if wrong else "the list is empty"
        raise UserError(f"reward.math.formats: {named}; name some of {', '.join(FORMATS)}.")
    require_package("math", "math-verify")
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns whenever its time limit is off

    def score(completion: Completion, record: Task) -> float:
        wanted = _wanted(record.answer)
        if wanted is None:
            has = "an answer without a number or a formula" if record.answer.strip() else "no answer"
            raise ValueError(f"{record.where}: the row has {has}, and reward.math needs one; fix the row.")
        if not completion.stopped:
            return 0.0
        found = final_answer(completion.text, formats)
        return float(found is not None and same_answer(wanted, found, _same_formula))

    return per_completion(score)
