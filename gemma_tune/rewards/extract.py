r"""Finding the answer in what a model said (`\boxed{…}`, `<answer>…</answer>`, `#### …`, plain words), and its number.

Every text here may be long and hostile: each search passes over it once, and looks ahead a bounded way.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

# Commands that hold words or letters; the braces' content is what they say.
TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|boldsymbol|mbox|bm)\s*\{([^{}]*)\}")
# Words that are part of a formula.
FUNCTIONS = (
    "sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln",
    "exp", "pi", "abs", "min", "max", "inf", "mod",
)  # fmt: skip
_BRACE = re.compile(r"(?P<boxed>\\f?box(?:ed)?\s*\{)|\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"(?<!#)####(?!#)([^\n]*)")
_HEADING = re.compile(r"\d{1,3}[.):]\s+[A-Za-z]")
# `the answer is`, `Final answer:`, `**Answer**: `, `the answer to it is`
_MARK = re.compile(
    r"\banswers?\b[^.\n:=0-9]{0,60}?(?:\bis\b|\bare\b|\bequals\b|\bwould be\b|[:=])[\s*_:=]{0,8}", re.IGNORECASE
)
# As in Markdown: a dollar that opens has no blank behind it, one that closes none before it and no digit behind it.
_FORMULA = re.compile(
    r"\$\$(.{1,400}?)\$\$|\\\[(.{1,400}?)\\\]|\\\((.{1,400}?)\\\)|\$(?!\s)([^$\n]{1,400}?)(?<!\s)\$(?!\d)", re.DOTALL
)
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])[-+\N{MINUS SIGN}])?[$€£¥₹]?(?:(?<=[$€£¥₹])[-\N{MINUS SIGN}])?"
    r"(?:\\[dt]?frac\s?\{-?[0-9]{1,30}\}\s?\{[0-9]{1,30}\}"
    r"|[0-9]{1,9} [0-9]{1,9}/[0-9]{1,9}(?![0-9])"
    r"|(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
    r"|(?<![\w.])\.[0-9]+)"
    r"(?:[eE][+-]?[0-9]{1,4}(?!\w)|\s?(?:×|\*|\\times)\s?10\s?\^?\s?\{?[-\N{MINUS SIGN}]?[0-9]{1,4}\}?)?"
    r"(?:\s?/\s?[0-9]+(?:\.[0-9]+)?)?"
    r"(?:\s?\\?%|\s(?:percent|hundred|thousand|million|billion|trillion|dozen)\b)?"
)
# GSM8K's notes of what a calculator said: `48+24=<<48+24=72>>72`
_CALCULATED = re.compile(r"<<[^<>\n]{0,200}>>")
_LISTED = re.compile(r"[\s,;|/&]*(?:(?:and|or)\s+)?", re.IGNORECASE)
_EITHER = re.compile(r"[0-9.}%]\s*(?:or|and/or|\\text\{\s*or\s*\})\s*[-$€£\\]?\s*[0-9.]", re.IGNORECASE)
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
_UNITS_BEHIND = re.compile(r"(?<=[\d)}\]])(?:\s{1,3}[A-Za-z]{2,30}){1,4}$")
_SCALES = {"hundred": 100, "dozen": 12, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SHORT_UNITS = (
    "m g s h l L N J W V mm cm dm km in ft yd mi mg kg lb lbs oz ml mL cl dl ms hr hrs Hz kW kB MB GB TB Pa st nd rd th"
)
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
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}` (of nested ones, the inner); None where no box is closed."""
    opened: list[int | None] = []
    best: tuple[int, int] | None = None
    for brace in _BRACE.finditer(text):
        if brace["boxed"]:
            opened.append(brace.end())
        elif brace.group() == "{":
            opened.append(None)
        elif brace.group() == "}" and opened:
            start = opened.pop()
            if start is not None and (best is None or start > best[0]):
                best = (start, brace.start())
    return None if best is None else text[best[0] : best[1]].strip()


def tagged(text: str, tag: str = "answer") -> str | None:
    """What stands between the last `</answer>` and the `<answer>` before it; None without the pair."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, end) if end >= 0 else -1
    return text[start + len(tag) + 2 : end].strip() if start >= 0 else None


def hashes(text: str, accepted: Callable[[str], bool] = bool) -> str | None:
    """What stands behind the last `####` on its line that is `accepted`: a heading may have four hashes, too."""
    for found in reversed(deque(_HASHES.finditer(text), maxlen=50)):
        if accepted(found[1].strip()):
            return found[1].strip()
    return None


def is_formula(text: str) -> bool:
    """Whether it is short and has no words in it but the names of functions."""
    if not 0 < len(text) <= 400:
        return False
    bare = re.sub(r"\\(?:begin|end)\{\w+\}", " ", TEXT.sub(" ", text))
    return all(word.lower() in FUNCTIONS or len(word) == 2 for word in _WORD.findall(bare))


def _is_value(text: str) -> bool:
    return not _HEADING.match(text) and (number(text) is not None or is_formula(_UNITS_BEHIND.sub("", text)))


def _in_formula(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if group is not None).strip()


def _said(rest: str) -> str | None:
    """The answer at the beginning of what stands behind `the answer is`; None where there is nothing like one."""
    formula = _FORMULA.match(rest)
    if formula:
        return _in_formula(formula)
    sentence = _SENTENCE_END.split(rest, maxsplit=1)[0].strip(" \t*_`\"',;:")
    if not re.search(r"[0-9\\$]", sentence) and not re.fullmatch(r"\(?[A-Za-z]\)?", sentence):
        return None
    if number(sentence):
        return sentence
    bare = _UNITS_BEHIND.sub("", sentence)
    if is_formula(bare) or _EITHER.search(sentence):
        return bare
    numbers = list(_NUMBER.finditer(sentence.rpartition("=")[2] or sentence))
    begins = numbers and ("=" in sentence or numbers[0].start() == 0)
    chosen = numbers[0 if begins else -1] if numbers else None
    within = _FORMULA.search(sentence)
    if within and (chosen is None or not begins):
        return _in_formula(within)
    return chosen.group() if chosen else None


def plain(text: str) -> str | None:
    """The answer in words without a mark-up: behind the last `the answer is` (or the like), else the last number.

    A text that is nothing but a number or a formula is the answer itself. The last number is the formula in which it
    stands, where that is between dollars. A bare row of three numbers or more, and `4 or 5`, are no answer.
    """
    text = _CALCULATED.sub("", text)
    for mark in reversed(deque(_MARK.finditer(text), maxlen=20)):
        said = _said(text[mark.end() : mark.end() + 1000])
        if said is not None:
            return said
    whole = text.strip().strip("*`")
    alone = _FORMULA.fullmatch(whole.rstrip("."))
    if alone or is_formula(whole):
        return _in_formula(alone) if alone else whole.rstrip(".")
    numbers = deque(_NUMBER.finditer(text), maxlen=3)
    if not numbers:
        return None
    last = numbers[-1]
    between = [text[a.end() : b.start()] for a, b in zip(list(numbers), list(numbers)[1:], strict=False)]
    if len(between) == 2 and all(map(_LISTED.fullmatch, between)):
        return None
    tail = max(0, len(text) - 2000)
    for formula in _FORMULA.finditer(text, tail):
        if formula.start() <= last.start() < formula.end():
            return _in_formula(formula)
    if _EITHER.search(text[max(0, last.start() - 30) : last.end()]):
        return None
    return last.group()


# The formats of `reward.math.formats`.
FORMATS: dict[str, Callable[[str], str | None]] = {
    "boxed": boxed,
    "answer": tagged,
    "hashes": lambda text: hashes(text, _is_value),
    "plain": plain,
}


def find(text: str, formats: Sequence[str]) -> str | None:
    """The answer in a text by the first of `FORMATS` that is there; None where there is none, or an empty one."""
    for name in formats:
        found = FORMATS[name](text)
        if found is not None:
            return found.strip() or None
    return None


@dataclass(frozen=True)
class Number:
    """A number as it was written.

    Attributes:
        value: It, exactly; of `50%`, 50, of `5 million`, 5.
        digits: Significant digits where it was written as a decimal; 0 for a fraction.
        places: Digits behind the point.
        factor: What is written behind it: 1/100 for per cent, a million, else 1.
    """

    value: Fraction
    digits: int
    places: int
    factor: Fraction = Fraction(1)


def _bare(text: str) -> str:
    """A number's text without the marks of LaTeX around and in it."""
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])|\\[!,;: ]|\*\*|`", "", text.replace("{,}", ","))
    text = TEXT.sub(r" \1 ", text).replace(r"\$", "$").replace(r"\%", "%").replace("~", " ")
    text = re.sub(r"\\(?:times|cdot)(?![A-Za-z])", "*", text)
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ", text)
    text = re.sub(r"^\s*-\s*(?=[0-9])", "-", text)
    return text.strip()


def _is_unit(text: str) -> bool:
    """Whether it is up to five words that stand behind a number as its unit: `apples`, `km/h`, `cm^2`."""
    position, words = 0, 0
    while position < len(text):
        word = _UNIT.match(text, position)
        if not word or words == 5:
            return False
        if word[1].lower() in _NO_UNITS or (len(word[1]) < 3 and word[1] not in _SHORT_UNITS.split()):
            return False
        position, words = word.end(), words + 1
    return True


def number(text: str) -> Number | None:
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


def _endless(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest != 1


def same_number(a: Number, b: Number) -> bool:
    """Whether two numbers are equal, as the docstring of `gemma_tune.rewards.math` has it."""

    def equal(x: Fraction, y: Fraction) -> bool:
        if x == y:
            return True
        decimal, other = (a, y) if a.digits else (b, x)
        return decimal.digits >= 6 and _endless(other) and 2 * abs(x - y) * Fraction(10) ** decimal.places <= 1

    if a.factor != b.factor and a.value * a.factor == b.value * b.factor:
        return True
    if a.factor != b.factor and 1 not in (a.factor, b.factor):
        return False
    return equal(a.value, b.value)
