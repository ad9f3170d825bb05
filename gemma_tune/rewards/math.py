r"""Whether the answer is the row's, as a number or a formula.

May be gamed: a formula is computed, so `\boxed{12*7}` counts as 84, and units don't count; guesses are right sometimes.

What counts as equal, beside what math-verify finds so:

- `1,200`, `1200.0`, `$1,200`, `1.2e3`, `1,200 apples`: separators, currency and units are left out. `3,5` is a pair.
- `1/2`, `0.5`, `\frac{1}{2}`, and `1 1/2` and `1.5`; numbers are exact, but a fraction without end is also its
  decimals, rounded, from six significant digits on (`1/3` is `0.333333`, and isn't `0.33`).
- `50%` is both `0.5` and `50`, `5 million` both `5000000` and `5`: what is asked for stands in the question.
- `x = 5` is `5`, and isn't `y = 5`.

- `(C)`, `option C` and `C. 12` are `C`, and the last is `12`, too.

Bases, times and dates (`12_5`, `10:30`, `2020-01-01`) are right where they are spelt as the row's. Calculus (sums,
integrals, limits) isn't worked out. A row of numbers isn't right for one of them, nor `not 5` for `5`, as far as
`extract.plain` sees it: of `He has 3 and 4` the last counts, and a row may hide between other words.
"""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from gemma_tune.config.reward import MathReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Completion, Reward, Task, per_completion
from gemma_tune.rewards.extract import FORMATS, OPTION, boxed, find, is_formula, plain
from gemma_tune.rewards.number import FUNCTIONS, TEXT, number, same_number

# An answer that is longer is none; nor is one nested deeper (math-verify's parser takes seconds for it).
_LONGEST, _DEEPEST, _NODES = 300, 8, 300
# Decimal digits up to which a power, a factorial or the like is computed, and the highest power of a sum.
_DIGITS, _POWER_OF_SUM = 2000, 20
_COMMANDS = re.compile(
    "[dtc]?frac|[dt]?binom|sqrt|pi|cdot|times|div|pm|left|right|big|Big|text|infty|cup|cap|setminus|in|leq?|geq?|lt|gt|"
    "neq?|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|lg|exp|circ|degree|begin|end|mathbb|mathrm|"
    "mathcal|emptyset|varnothing|q?quad|overline|vec|hat|[lr]?vert|mid|[lc]?dots|approx|alpha|beta|gamma|delta|theta|"
    "(?:var)?epsilon|zeta|eta|kappa|lambda|mu|nu|xi|rho|sigma|tau|(?:var)?phi|chi|psi|omega|Gamma|Delta|Theta|Lambda|"
    "Sigma|Phi|Psi|Omega|displaystyle|operatorname|[lr](?:floor|ceil)"
)
_SIGNS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{HYPHEN}": "-", "\xa0": " ", "\u202f": " ", "\u2009": " ",
        "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ",
        "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "∈": r"\in ", "°": r"^\circ ", "²": "^{2}", "³": "^{3}",
        "∅": r"\emptyset ", "±": r"\pm ",
    }
)  # fmt: skip
# What a value is given to: `x`, `x_1`, `f(x)`, `\theta`; the left side of another equation isn't left out.
_VARIABLE = re.compile(r"\\?[A-Za-z]+'?(?:_\{?\w{1,9}\}?)?(?:\([a-z]\))?")
# An option and what it says: `C. 12`, `(C) 12`
_CHOICE = re.compile(r"\(?([A-Z])(?:\)|[.:](?=\s))\s*(\S.*)")
# Math-verify takes them for products, quotients and differences.
_NO_FORMULA = re.compile(r"[0-9]\s{0,9}[)}]?_|[0-9]\s{0,9}:\s{0,9}[0-9]|[0-9]{4}-[0-9]{2}-[0-9]{2}")
_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)")


def _depth(text: str) -> int:
    deep = deepest = 0
    for mark in text:
        deep += (mark in "([{") - (mark in ")]}")
        deepest = max(deepest, deep)
    return max(deepest, text.count("|") // 2)


def _readable(text: str) -> bool:
    """Whether math-verify may read it: short, flat, no words, calculus, dates; no row of numbers (it adds them up)."""
    if len(text) > _LONGEST or _depth(text) > _DEEPEST or re.search(r"(?<![_^0-9])[0-9]+\s+[0-9]", text):
        return False
    if _NO_FORMULA.search(text) or not all(map(_COMMANDS.fullmatch, re.findall(r"\\([A-Za-z]+)", text))):
        return False
    if "binom" in text and (len(re.findall("[0-9]", text)) > 6 or re.search(r"[\^!*]", text)):
        return False  # the parser computes them
    words = re.findall(r"(?<![A-Za-z\\])[A-Za-z]{4,}", re.sub(r"\\(?:begin|end)\{\w+\}|\\text\{[^{}]*\}", " ", text))
    return all(word.lower() in FUNCTIONS for word in words)


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for arg in getattr(node, "args", ()):
        yield from _nodes(arg)


def _size(node: Any) -> float:
    """About the most decimal digits of a formula's numbers.

    Raises:
        OverflowError: More than `_DIGITS`, or it holds what would take long to compute.
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
    """What math-verify reads in it; nothing where that is too much to compute with.

    Its own timer is off: it is a signal alarm, and the caller of rewards has one.
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
    except Exception:  # OverflowError, and what sympy raises over odd trees
        return ()
    return tuple(found)


def _verified(wanted: str, given: str) -> bool:
    """Whether math-verify finds both equal."""
    from math_verify import verify

    if not (_readable(wanted) and _readable(given)):
        return False
    try:
        a, b = _parsed(wanted), _parsed(given)
        return bool(a and b) and bool(verify(list(a), list(b), timeout_seconds=None))
    except Exception:  # whatever a formula of the model's does to sympy
        return False


def _tidy(text: str) -> str:
    """The answer alone: without a box, dollars, words around it, or a full stop."""
    text = boxed(text) or text
    text = "".join(
        f" {unicodedata.normalize('NFKC', c).replace(chr(0x2044), '/')}" if "VULGAR" in unicodedata.name(c, "") else c
        for c in text[: 2 * _LONGEST]
    ).translate(_SIGNS)
    text = text.strip().strip("*`").rstrip(".,;: ").strip()
    for start, end in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(start) and text.endswith(end) and len(text) > len(start) + len(end):
            text = text[len(start) : -len(end)].strip()
    text = text.rstrip(".,;: ").strip()
    return re.sub(r"^(?:\\approx|≈|=)\s*", "", text)


def _sides(text: str) -> tuple[str, str]:
    """Left and right of the last `=`; no left where there is none, or where it is a list of equations."""
    parts = _EQUALS.split(text)
    if len(parts) < 2 or re.search(r"[,;<>]|\bor\b|\band\b|\\(?:le|ge|text)", text.rpartition("=")[0]):
        return "", text
    return parts[0].strip(), parts[-1].strip()


def _spoken(text: str) -> str:
    """It as it is said: without braces and commands that only set letters, nor marks around the letter of a choice."""
    text = " ".join(TEXT.sub(r" \1 ", text).replace("\\ ", " ").split())
    text = re.sub(r"_\{(\w{1,9})\}", r"_\1", re.sub(r"\s{0,9}:\s{0,9}", ":", text))
    letter = OPTION.fullmatch(text)
    return letter[1] if letter else text


def same(wanted: str, given: str) -> bool:
    """Whether two answers, as `find` gives them, are equal."""
    w, g = _tidy(wanted), _tidy(given)
    if len(given) > 2 * _LONGEST or not g:
        return False
    spoken = [_spoken(w), _spoken(g)]
    if spoken[0] == spoken[1]:
        return True
    if all(re.fullmatch(r"[^\W\d_]{2,}(?: [^\W\d_]+)*", text) for text in spoken):
        return spoken[0].casefold() == spoken[1].casefold()
    choices = [_CHOICE.fullmatch(text) for text in spoken]
    if choices[0] is None and choices[1]:
        return same(w, choices[1][1 if OPTION.fullmatch(spoken[0]) else 2])
    if choices[0]:
        options = choices[1].groups() if choices[1] else (g, g)
        alike = [same(a, b) for a, b in zip(choices[0].groups(), options, strict=True)]
        return all(alike) if choices[1] else any(alike)
    (wanted_name, wanted_side), (given_name, given_side) = _sides(w), _sides(g)
    if not wanted_name or _VARIABLE.fullmatch(wanted_name):
        a, b = number(wanted_side), number(given_side)
        if a and b:
            named = bool(wanted_name and given_name)
            return same_number(a, b) and (not named or wanted_name == given_name)
    if not is_formula(g) and (said := plain(g)) is not None and said != g:
        return bool(said) and same(w, said)
    return _verified(w, g)


@lru_cache(maxsize=4096)
def _wanted(answer: str) -> str | None:
    return find(answer, tuple(FORMATS))


def prepare(options: MathReward) -> Reward:
    r"""1 where the answer is the row's, else 0.

    Nothing found is 0, and so is a completion that was cut off, whatever it says. The row's own answer is looked for by
    all formats (`… #### 72`), whatever `formats` is, or is one itself (`72`, `\frac{1}{2}`).

    Raises:
        UserError: math-verify is missing, or a format that isn't one.
        ValueError: From the reward: a row without an answer, or one with neither a number nor a formula.
    """
    formats = tuple(options.formats)
    wrong = [name for name in formats if name not in FORMATS]
    if wrong or not formats:
        named = f"{wrong[0]} is none" if wrong else "there is none"
        raise UserError(f"reward.math.formats: {named}; name some of {', '.join(FORMATS)}.")
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        raise UserError("reward.math: math-verify is not installed; pip install 'gemma_tune[rl]'.") from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of each timer that is off

    def score(completion: Completion, record: Task) -> float:
        wanted = _wanted(record.answer)
        if wanted is None:
            has = "an answer without a number or a formula" if record.answer.strip() else "no answer"
            raise ValueError(f"{record.where}: the row has {has}, and reward.math needs one; mend the row.")
        if not completion.stopped:
            return 0.0
        found = find(completion.text, formats)
        return float(found is not None and same(wanted, found))

    return per_completion(score)
