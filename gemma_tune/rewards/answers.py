"""The answer in a text, and whether two answers are equal: for `reward.math` and `eval.answers.match=number` alike.

The last answer in the first format found counts; see `extract.py` for what a format is, and `number.py` for numbers.
What counts as equal is in the docstring of `gemma_tune.rewards.math`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from gemma_tune.rewards.extract import OPTION, boxed, hashes, is_formula, is_value, plain_answer, tagged
from gemma_tune.rewards.number import TEXT, parse_number, same_number

# Characters; a longer answer is wrong.
LONGEST = 300
_SIGNS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{HYPHEN}": "-", "\xa0": " ", "\u202f": " ", "\u2009": " ",
        "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ",
        "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "∈": r"\in ", "°": r"^\circ ", "²": "^{2}", "³": "^{3}",
        "∅": r"\emptyset ", "±": r"\pm ",
    }
)  # fmt: skip
# A variable on the left of `=`, which may be left out: `x`, `x_1`, `f(x)`, `\theta`; other left sides may not.
_VARIABLE = re.compile(r"\\?[A-Za-z]+'?(?:_\{?\w{1,9}\}?)?(?:\([a-z]\))?")
# An option of a multiple-choice question and its text: `C. 12`, `(C) 12`
_CHOICE = re.compile(r"\(?([A-Z])(?:\)|[.:](?=\s))\s*(\S.*)")
_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)")
# What stands around an answer that is a formula in LaTeX, or quoted.
_AROUND = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ('"', '"'), ("'", "'"), ("“", "”"))
# GSM8K's calculator annotations: `48+24=<<48+24=72>>72`
_CALCULATED = re.compile(r"<<[^<>\n]{0,200}>>")

# The formats of `reward.math.formats`.
FORMATS: dict[str, Callable[[str], str | None]] = {
    "boxed": boxed,
    "answer": tagged,
    "hashes": lambda text: hashes(text, is_value),
    "plain": plain_answer,
}


def final_answer(text: str, formats: Sequence[str] = tuple(FORMATS)) -> str | None:
    """The answer in a text, in the first of `formats` (keys of `FORMATS`) that it has; None if that is empty."""
    text = _CALCULATED.sub("", text)
    for name in formats:
        found = FORMATS[name](text)
        if found is not None:
            return found.strip() or None
    return None


def _tidy(text: str) -> str:
    """The bare answer: without box, dollars, quotes, parentheses around a number, or a full stop."""
    text = boxed(text) or text
    text = "".join(
        f" {unicodedata.normalize('NFKC', c).replace(chr(0x2044), '/')}" if "VULGAR" in unicodedata.name(c, "") else c
        for c in text[: 2 * LONGEST]
    ).translate(_SIGNS)
    text = text.strip().strip("*`").rstrip(".,;: ").strip()
    for start, end in _AROUND:
        if text.startswith(start) and text.endswith(end) and len(text) > len(start) + len(end):
            text = text[len(start) : -len(end)].strip()
    text = text.rstrip(".,;: ").strip()
    if text.startswith("(") and text.endswith(")") and parse_number(text[1:-1]):
        return text[1:-1].strip()
    return re.sub(r"^(?:\\approx|≈|=)\s*", "", text)


def _sides(text: str) -> tuple[str, str]:
    """Left and right side of the last `=`; no left side without `=`, or for a list of equations."""
    parts = _EQUALS.split(text)
    if len(parts) < 2 or re.search(r"[,;<>]|\bor\b|\band\b|\\(?:le|ge|text)", text.rpartition("=")[0]):
        return "", text
    return parts[0].strip(), parts[-1].strip()


def _without_fonts(text: str) -> str:
    """The text without LaTeX commands for fonts, and without the marks around the letter of an option."""
    text = " ".join(TEXT.sub(r" \1 ", text).replace("\\ ", " ").split())
    text = re.sub(r"_\{(\w{1,9})\}", r"_\1", re.sub(r"\s{0,9}:\s{0,9}", ":", text))
    letter = OPTION.fullmatch(text)
    return letter[1] if letter else text


def same_answer(
    wanted: str, given: str, same_formula: Callable[[str, str], bool] = lambda wanted, given: False
) -> bool:
    """Whether two answers, as `final_answer` gives them, are equal.

    Args:
        wanted: The reference answer.
        given: The model's answer.
        same_formula: Compares what is neither spelled alike nor a number; the default finds no such formulas equal.
    """
    w, g = _tidy(wanted), _tidy(given)
    if len(given) > 2 * LONGEST or not g:
        return False
    texts = [_without_fonts(w), _without_fonts(g)]
    if texts[0] == texts[1]:
        return True
    if all(re.fullmatch(r"[^\W\d_]{2,}(?: [^\W\d_]+)*", text) for text in texts):
        return texts[0].casefold() == texts[1].casefold()
    choices = [_CHOICE.fullmatch(text) for text in texts]
    if choices[0] is None and choices[1]:
        return same_answer(w, choices[1][1 if OPTION.fullmatch(texts[0]) else 2], same_formula)
    if choices[0]:
        options = choices[1].groups() if choices[1] else (g, g)
        alike = [same_answer(a, b, same_formula) for a, b in zip(choices[0].groups(), options, strict=True)]
        return all(alike) if choices[1] else any(alike)
    (wanted_name, wanted_side), (given_name, given_side) = _sides(w), _sides(g)
    if not wanted_name or _VARIABLE.fullmatch(wanted_name):
        a, b = parse_number(wanted_side), parse_number(given_side)
        if a and b:
            named = bool(wanted_name and given_name)
            return same_number(a, b) and (not named or wanted_name == given_name)
    if not is_formula(g) and (stated := plain_answer(g)) is not None and stated != g:
        return bool(stated) and same_answer(w, stated, same_formula)
    return same_formula(w, g)
