"""Rows whose right answer is no tool call: when an answer in other words than the reference's is right."""

from __future__ import annotations

import re
from collections import Counter

from gemma_tune.call_syntax import begins_call

# The rule in words, for reports and docs/evaluation.md
RULE = (
    "Where tools are at hand and the right answer calls none, an answer is right if it stops, calls nothing, and "
    "shares half of its words with the reference, or if both say in English that it can't be done."
)
# Marks such rows among the scored ones
WITHOUT_CALL = "without_call"
# Words in scripts without blanks count by the character
_SPACELESS = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")
_TOOLS = r"(?:tools?|functions?)"
# Each form of words says that something can't be done; a bare "sorry" or "unfortunately" may begin any answer
_CANNOT = re.compile(
    "|".join(
        (
            r"\b(?:I|we|it|this|that|which) (?:\w+ )?(?:can't|cannot|can not|couldn't|could not)\b"
            r"(?! (?:wait|believe|help but|help \w+ing|stress|thank|say enough|be happier|agree more|hurt))",
            r"\bcan(?:'t|not| not) be (?:done|answered|fulfilled|performed|found|helped|completed|handled)\b",
            r"(?:\bunable|(?:\bnot|n't)(?: be)? able) to\b",
            rf"\b(?:none|not any|not one|neither) of (?:\w+ ){{1,3}}{_TOOLS} "
            r"(?:can|could|will|would|does|do|is|are|has|have|covers?|supports?|allows?|lets?|offers?|provides?)\b",
            rf"\b(?:no|isn't an?|isn't any|aren't any|not an?|not any) (?:\w+ )?{_TOOLS} "
            r"(?:can|for|that|to|which|is|are|does|available|I have|at hand)\b",
            rf"\b{_TOOLS} (?:\w+ )?(?:can't|cannot|don't|do not|doesn't|does not|lacks?)\b",
            r"\b(?:have no|(?:don't|do not|doesn't|does not) have) (?:\w+ ){0,3}"
            r"(?:tools?|functions?|access|ability|capability|way|means|permission)\b",
            r"\b(?:isn't|is not|not) possible\b|\bimpossible\b",
            r"\b(?:outside|beyond) (?:of )?(?:my|what (?:I|my)) (?:\w+ )?"
            r"(?:abilit|capabilit|scope|tools|functions|reach|can\b)",
            r"\b(?:I|we) lack\b",
            r"\b(?:sorry|apologi[sz]e|unfortunately|afraid)\b[^.!?]*"
            r"(?:\b(?:no(?! (?:problem|worries|trouble))|not|none)\b|n't\b)",
        )
    ),
    re.IGNORECASE,
)
# What is said to be done, where nothing was called
_DONE = re.compile(
    r"\bI(?:'ve| have) (?:just |now |already )?"
    r"(?:turned|set|sent|put|added|booked|changed|created|started|stopped|switched|scheduled|played|opened|closed|done)\b",
    re.IGNORECASE,
)


def is_right_without_call(answer: str, reference: str) -> bool:
    """Whether a text without calls is as right as the reference (`RULE`); the caller has seen that it stopped."""
    answer = answer.replace("’", "'")
    if not answer or begins_call(answer):
        return False
    return (_says_no(answer) and _says_no(reference.replace("’", "'"))) or shared_words(answer, reference) >= 0.5


def _says_no(text: str) -> bool:
    return bool(_CANNOT.search(text)) and not _DONE.search(text)


def shared_words(one: str, other: str) -> float:
    """The share of the words of two texts that both have (F1), each as often as it occurs; letter case aside."""
    a, b = (Counter(_WORD.findall(text.casefold())) for text in (one, other))
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 0.0
