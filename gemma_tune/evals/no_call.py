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
_CANNOT = re.compile(
    r"\b(sorry|apologi[sz]e|unfortunately|unable to|can(?:no|')?t (?:do|help|find|assist|fulfil|perform|answer|be)"
    r"|cannot|not able to|(?:none of|no|not any of) (?:my |the |these |of |available )*(?:tools?|functions?)"
    r"|(?:don't|do not|doesn't|does not) have (?:a|any|the|access)|isn't possible|is not possible"
    r"|outside (?:of )?my|beyond my|lack(?:s)? the)\b",
    re.IGNORECASE,
)


def is_right_without_call(answer: str, reference: str) -> bool:
    """Whether a text without calls is as right as the reference (`RULE`); the caller has seen that it stopped."""
    answer = answer.replace("’", "'")
    if not answer or begins_call(answer):
        return False
    says_no = all(_CANNOT.search(text) for text in (answer, reference.replace("’", "'")))
    return says_no or shared_words(answer, reference) >= 0.5


def shared_words(one: str, other: str) -> float:
    """The share of the words of two texts that both have (F1), each as often as it occurs; letter case aside."""
    a, b = (Counter(_WORD.findall(text.casefold())) for text in (one, other))
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 0.0
