r"""Finds the answer in a model's text (`\boxed{…}`, `<answer>…</answer>`, `#### …`, plain words).

The text may be long and hostile: each search scans it once, with bounded look-ahead.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence

from gemma_tune.rewards.number import FUNCTIONS, SHORT_UNITS, TEXT, parse_number, same_number

_BRACE = re.compile(r"(?P<boxed>\\f?box(?:ed)?\s*\{)|\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"(?<!#)####(?!#)([^\n]*)")
_HEADING = re.compile(r"\d{1,3}[.):]\s+[A-Za-z]")
# `the answer is`, `Final answer:`, `**Answer**: `, `the answer to it is`
_MARK = re.compile(
    r"\banswers?\b[^.\n:=0-9]{0,60}?(?:\bis\b|\bare\b|\bequals\b|\bwould be\b|[:=])[\s*_:=]{0,8}", re.IGNORECASE
)
# As in Markdown: no blank after an opening dollar, no blank before a closing one and no digit after it.
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
# The text between two numbers of a list: `, `, ` or maybe `, ` dollars and `, `$, $`, `\), \(`, `$ or $x = `
_BETWEEN = re.compile(
    r"(?:\\?[$%)\]}]|[*`.]){0,4}(?:\s{0,3}(?P<unit>[A-Za-z]{1,30})(?:\s[A-Za-z]{1,30}){0,2}?)??"
    r"(?P<mark>[\s,;|/&(]{0,150})(?:(?P<or>and/or|or)\b|(?P<and>and)\b)?[\s,]{0,3}"
    r"(?:(?:maybe|perhaps|possibly|probably|either|else|even|also|rather|about)\s{1,3}){0,3}"
    r"(?:[A-Za-z]\s?=\s?|\\?[$(\[{]|[*`]|\\boxed|\\[dt]?frac|[-+\N{MINUS SIGN}]){0,5}",
    re.IGNORECASE,
)
_FIRST_WORD = re.compile(r"(?:\\?[$%)\]}]|[*`]){0,4}\s{0,3}([A-Za-z]{1,30})")
_NOTHING_SAID = re.compile(
    r"[\s*`$(\[\\]*+(?:(?:maybe|perhaps|possibly|probably|either|both|one|of|about)\s++)*+[$(\[\\]*", re.I
)
_NOT = re.compile(r"\bnot\b|n['\u2019]t\b", re.IGNORECASE)
# Characters at most between two numbers of a list
_NEAR = 200
# The letter of a choice
OPTION = re.compile(r"(?:(?:option|choice|letter)\s{1,3})?\(?([A-Za-z])\)?", re.IGNORECASE)
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
# A word of two letters before a letter or a number, or after a letter: `So 12`, `x is -3`, but not `Ax + By`.
_SHORT_WORD = re.compile(
    r"(?<![A-Za-z\\])(?![A-Z]{2})(?:[A-Za-z]{2}(?=\s{1,9}(?:[-+\N{MINUS SIGN}]?[$€£¥₹]?[A-Za-z0-9.]|\\[dt]?frac))"
    r"|(?<=[A-Za-z]\s)[A-Za-z]{2}(?![A-Za-z]))"
)
# Words that join formulas
_JOINING = ("and", "or", "to")
_UNITS_BEHIND = re.compile(r"(?<=[\d)}\]])(?:\s{1,3}[A-Za-z]{2,30}){1,4}$")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` (the innermost of nested ones); None if no box is closed."""
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
    """The text between the last `</answer>` and the `<answer>` before it; None without such a pair."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, end) if end >= 0 else -1
    return text[start + len(tag) + 2 : end].strip() if start >= 0 else None


def hashes(text: str, accepted: Callable[[str], bool] = bool) -> str | None:
    """The rest of the line after the last `####` that is `accepted`: a heading may have four hashes, too."""
    for found in reversed(deque(_HASHES.finditer(text), maxlen=50)):
        if accepted(found[1].strip()):
            return found[1].strip()
    return None


def is_formula(text: str) -> bool:
    """Whether a text is short and has no words but function names, `and`, `or` and `to`."""
    if not 0 < len(text) <= 400:
        return False
    bare = re.sub(r"\\(?:begin|end)\{\w+\}", " ", TEXT.sub(" ", text))
    if any(len(word) > 2 and word.lower() not in (*FUNCTIONS, *_JOINING) for word in _WORD.findall(bare)):
        return False
    return not any(map(_is_prose, _SHORT_WORD.finditer(bare)))


def _is_prose(found: re.Match[str]) -> bool:
    """Whether a word of two letters is neither a function name nor a unit after its number."""
    word = found.group()
    unit = word in SHORT_UNITS and re.search(r"[0-9]\s{0,3}$", found.string[max(0, found.start() - 4) : found.start()])
    return word.lower() not in (*FUNCTIONS, *_JOINING) and not unit


def is_value(text: str) -> bool:
    return not _HEADING.match(text) and (parse_number(text) is not None or is_formula(_UNITS_BEHIND.sub("", text)))


def _in_formula(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if group is not None).strip()


def _joined(text: str, left: re.Match[str], right: re.Match[str]) -> bool:
    """Whether two numbers form a list: `16, 17`, `16 dollars or 17`; not `12 cats, 3 dogs`, nor `1/2 or 0.5`."""
    found = _BETWEEN.fullmatch(text, left.end(), right.start()) if right.start() - left.end() <= _NEAR else None
    if not found or not (found["or"] or found["and"] or found["mark"]):
        return False
    a, b = parse_number(left.group()), parse_number(right.group())
    if a and b and same_number(a, b):
        return False
    if found["or"] or not found["unit"]:
        return True
    behind = _FIRST_WORD.match(text, right.end())
    same_unit = not behind or behind[1].casefold() == found["unit"].casefold()
    return same_unit and bool(found["and"] or found["mark"].strip())


def _in_list(text: str, start: int, end: int) -> bool:
    """Whether the numbers between `start` and `end` form a list with a number before or after them."""
    inside = list(_NUMBER.finditer(text, start, end))
    if not inside:
        return False
    before = deque(_NUMBER.finditer(text, max(0, start - _NEAR), start), maxlen=1)
    behind = _NUMBER.search(text, end, end + _NEAR)
    return any(_joined(text, number_, inside[0]) for number_ in before) or bool(
        behind and _joined(text, inside[-1], behind)
    )


def _stated_answer(rest: str) -> str | None:
    """The answer at the beginning of the text after `the answer is`; None if there is none.

    Empty if it can't be taken for one answer: one of a list of numbers, or what the answer is not.
    """
    formula = _FORMULA.match(rest)
    if formula:
        return "" if _in_list(rest, *formula.span()) else _in_formula(formula)
    sentence = _SENTENCE_END.split(rest, maxsplit=1)[0].strip(" \t*_`\"',;:")
    letter = OPTION.fullmatch(sentence)
    if letter or not re.search(r"[0-9\\$]", sentence):
        return letter[1] if letter else None
    if parse_number(sentence):
        return sentence
    bare = _UNITS_BEHIND.sub("", sentence)
    if is_formula(bare):
        return bare
    part = sentence.rpartition("=")[2] or sentence
    numbers = list(_NUMBER.finditer(part))
    begins = numbers and ("=" in sentence or numbers[0].start() == 0)
    chosen = numbers[0 if begins else -1] if numbers else None
    within = _FORMULA.search(sentence)
    if within and (chosen is None or not begins):
        chosen, part = within, sentence
    if chosen is None:
        return None
    if _NOT.search(part, 0, chosen.start()) or _in_list(part, *chosen.span()):
        return ""
    return _in_formula(chosen) if chosen is within else chosen.group()


def plain_answer(text: str) -> str | None:
    """The answer in unmarked text: the one after the last `the answer is` (or similar), else the last number.

    A text that consists of a number or a formula is the answer itself. If the last number stands in a formula between
    dollars, the formula is the answer.

    Empty if the number is one of a list. After `the answer is`, and if the text is nothing but a list, two numbers
    joined by a comma, `and` or `or` are a list; elsewhere three, or two joined by `or`. Empty, too, for a number after
    `not`. A list isn't recognized if other words (`16, if not 17`) or different units (`16 dollars, 17 cents`) stand
    between its numbers.
    """
    for mark in reversed(deque(_MARK.finditer(text), maxlen=20)):
        answer = _stated_answer(text[mark.end() : mark.end() + 1000])
        if answer is not None:
            return answer
    whole = text.strip().strip("*`")
    alone = _FORMULA.fullmatch(whole.rstrip("."))
    letter = OPTION.fullmatch(whole.rstrip("."))
    if alone or letter or is_formula(whole):
        return _in_formula(alone) if alone else letter[1] if letter else whole.rstrip(".")
    numbers = list(deque(_NUMBER.finditer(text), maxlen=3))
    if not numbers:
        return None
    last = numbers[-1]
    if _is_refused(text, numbers):
        return ""
    tail = max(0, len(text) - 2000)
    for formula in _FORMULA.finditer(text, tail):
        if formula.start() <= last.start() < formula.end():
            return _in_formula(formula)
    return last.group()


def _is_refused(text: str, numbers: Sequence[re.Match[str]]) -> bool:
    """Whether the last of a text's last three numbers is one of a list, or what the answer is not."""
    last = numbers[-1]
    before = text[max(0, last.start() - 30) : last.start()]
    if re.search(rf"(?:{_NOT.pattern})\s{{1,3}}[$(\[\\]{{0,2}}$", before, re.IGNORECASE):
        return True
    if len(numbers) == 1 or not _joined(text, numbers[-2], last):
        return False
    if re.search(r"\bor\b", text[numbers[-2].end() : last.start()], re.IGNORECASE):
        return True
    if len(numbers) == 2:
        return _NOTHING_SAID.fullmatch(text, 0, numbers[0].start()) is not None
    return _joined(text, numbers[-3], numbers[-2])
