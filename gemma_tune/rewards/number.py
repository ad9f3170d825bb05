"""Parses numbers as people and models write them, with separators, currency and units, without rounding."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

# LaTeX commands around text; the content of the braces is the text.
TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|boldsymbol|mbox|bm)\s*\{([^{}]*)\}")
# Words that are part of a formula.
FUNCTIONS = (
    "sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln",
    "exp", "pi", "abs", "min", "max", "inf", "mod",
)  # fmt: skip
_SCALES = {"hundred": 100, "dozen": 12, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SHORT_UNITS = frozenset((
    "m", "g", "s", "h", "l", "L", "N", "J", "W", "V", "mm", "cm", "dm", "km", "in", "ft", "yd", "mi", "mg", "kg", "lb",
    "lbs", "oz", "ml", "mL", "cl", "dl", "ms", "hr", "hrs", "Hz", "kW", "kB", "MB", "GB", "TB", "Pa", "st", "nd", "rd",
    "th",
))  # fmt: skip
_NO_UNITS = {*FUNCTIONS, "or", "and", "to", "than", "times", "plus", "minus", "over", "choose", "not", "if", "divided"}
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?[0-9.,]+)\s*\}|([0-9]))\s*(?:\{\s*(-?[0-9.,]+)\s*\}|([0-9]))")
_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?:[ ][0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_WHOLE = re.compile(
    rf"""(?P<sign>[-+])?\s*(?:(?:US|CA|AU)?[$€£¥₹]|USD|EUR|GBP|Rs\.?)?\s*(?P<inner>[-+])?
    (?:(?P<whole>[0-9]+)\s+(?P<top>[0-9]+)\s*/\s*(?P<bottom>[0-9]+)
      |(?P<left>{_DECIMAL})\s*/\s*(?P<right>-?{_DECIMAL})
      |(?P<decimal>{_DECIMAL})
       (?:[eE](?P<e>[-+]?[0-9]{{1,4}})|\s*\*\s*10\s*\^\s*\{{?\s*(?P<exponent>[-+]?[0-9]{{1,4}})\s*\}}?)?
      |10\s*\^\s*\{{?\s*(?P<power>[-+]?[0-9]{{1,4}})\s*\}}?)
    (?:\s*(?P<scale>{"|".join(_SCALES)})\b)?
    \s*(?P<percent>%|percent\b|per\ cent\b)?
    \s*(?P<unit>[$€£¥₹]|\^\s*(?:\\circ|\{{\s*\\circ\s*\}})\s*[CF]?|[A-Za-z].*)?""",
    re.VERBOSE,
)
_UNIT = re.compile(r"([A-Za-z]+)\.?(?:\s*\^\s*\{?-?[23]\}?|[23])?(?:\s*/\s*|\s+|$)")


@dataclass(frozen=True)
class Number:
    """A number as it was written.

    Attributes:
        value: The exact value without the factor: 50 for `50%`, 5 for `5 million`.
        digits: Significant digits if it was written as a decimal; 0 for a fraction.
        places: Digits after the decimal point.
        factor: 1/100 for a percent sign, 10**6 for `million`, …, else 1.
    """

    value: Fraction
    digits: int
    places: int
    factor: Fraction = Fraction(1)


def _bare(text: str) -> str:
    """A number's text without LaTeX markup."""
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])|\\[!,;: ]|\*\*|`", "", text.replace("{,}", ","))
    text = TEXT.sub(r" \1 ", text).replace(r"\$", "$").replace(r"\%", "%").replace("~", " ")
    text = re.sub(r"\\(?:times|cdot)(?![A-Za-z])", "*", text)
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ", text)
    text = re.sub(r"^\s*-\s*(?=[0-9])", "-", text)
    return text.strip()


def _is_unit(text: str) -> bool:
    """Whether a text can be the unit behind a number: up to five words, such as `apples`, `km/h`, `cm^2`."""
    position, words = 0, 0
    while position < len(text):
        word = _UNIT.match(text, position)
        if not word or words == 5:
            return False
        if word[1].lower() in _NO_UNITS or (len(word[1]) < 3 and word[1] not in SHORT_UNITS):
            return False
        position, words = word.end(), words + 1
    return True


def parse_number(text: str) -> Number | None:
    """Reads a plain number, with its separators, currency, per cent sign, scale (`million`) and unit; else None."""
    found = _WHOLE.fullmatch(_bare(text)) if len(text) <= 200 else None
    if not found or not (found["unit"] is None or not found["unit"][0].isalpha() or _is_unit(found["unit"])):
        return None

    def exact(written: str) -> Fraction:
        return Fraction(written.replace(",", "").replace(" ", ""))

    digits = places = 0
    try:
        if found["whole"]:
            value = int(found["whole"]) + Fraction(int(found["top"]), int(found["bottom"]))
        elif found["left"]:
            value = exact(found["left"]) / exact(found["right"])
        elif found["power"]:
            value = Fraction(10) ** int(found["power"])
        else:
            exponent = int(found["e"] or found["exponent"] or 0)
            value = exact(found["decimal"]) * Fraction(10) ** exponent
            written = found["decimal"].rpartition(".")[2] if "." in found["decimal"] else ""
            places = len(written) - exponent
            digits = len(re.sub(r"[^0-9]", "", found["decimal"]).lstrip("0")) if written else 0
    except (ValueError, ZeroDivisionError):
        return None
    negative = (found["sign"] == "-") != (found["inner"] == "-")
    factor = Fraction(_SCALES.get(found["scale"] or "", 1)) / (100 if found["percent"] else 1)
    return Number(-value if negative else value, digits, places, factor)


def _repeats(value: Fraction) -> bool:
    """Whether the decimals of a fraction never end."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest != 1


def same_number(a: Number, b: Number) -> bool:
    """Whether two numbers are equal by the rules in the docstring of `gemma_tune.rewards.math`."""

    def equal(x: Fraction, y: Fraction) -> bool:
        if x == y:
            return True
        decimal, other = (a, y) if a.digits else (b, x)
        return decimal.digits >= 6 and _repeats(other) and 2 * abs(x - y) * Fraction(10) ** decimal.places <= 1

    if a.factor != b.factor and a.value * a.factor == b.value * b.factor:
        return True
    if a.factor != b.factor and 1 not in (a.factor, b.factor):
        return False
    return equal(a.value, b.value)
