"""ANLS, the metric of DocVQA: how much of an answer is spelled as the nearest of its references.

Biten et al. 2019, "Scene Text Visual Question Answering" (arXiv:1905.13648), with its threshold of 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

from gemma_tune.evals.base import Evaluator, Inputs
from gemma_tune.evals.references import prepare_scored

_THRESHOLD = 0.5  # of the normalized distance: from here on nothing counts


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's distance of two texts: characters to insert, delete or replace.

    A column of the table is held as the bits of two integers, its steps up and its steps down (Myers 1999, in Hyyrö's
    form), so that a column costs a few operations on integers.
    """
    if not one:
        return len(other)
    places: dict[str, int] = {}
    for i, character in enumerate(one):
        places[character] = places.get(character, 0) | 1 << i
    full, last = (1 << len(one)) - 1, 1 << len(one) - 1
    up, down, distance = full, 0, len(one)
    for character in other:
        equal = places.get(character, 0)
        diagonal = (((equal & up) + up) ^ up) | equal | down
        right_up, right_down = (down | ~(diagonal | up)) & full, diagonal & up
        distance += bool(right_up & last) - bool(right_down & last)
        right_up, right_down = right_up << 1 | 1, right_down << 1
        up, down = (right_down | ~(diagonal | right_up)) & full, right_up & diagonal & full
    return distance


def _tidy(text: str) -> str:
    return " ".join(text.lower().split())


def anls(answer: str, references: Sequence[str]) -> float:
    """1 less the edit distance by the longer one's length, of the nearest reference; 0 if half or more must change.

    Letter case and the number of blanks don't matter.

    Args:
        answer: The model's answer.
        references: At least one.

    Returns:
        0, or a number above 0.5 up to 1.
    """
    given = _tidy(answer)
    best = 0.0
    for wanted in map(_tidy, references):
        longer = max(len(given.upper()), len(wanted.upper()))  # as DocVQA's script measures: "ß" counts twice
        if longer and abs(len(given) - len(wanted)) / longer >= _THRESHOLD:
            continue  # so many are missing alone
        changed = edit_distance(given, wanted) / longer if longer else 0.0
        if changed < _THRESHOLD:
            best = max(best, 1 - changed)
    return best


def prepare(inputs: Inputs) -> Evaluator:
    """`<name>_anls` of greedy answers to each of `data.test_files`; an answer that was cut off scores 0.

    Raises:
        UserError: A row without references.
    """

    def judge(answer: str, references: list[str], stopped: bool) -> tuple[float, None]:
        return anls(answer, references) if stopped else 0.0, None

    return prepare_scored(inputs, "anls", judge)
