"""VQA accuracy: an answer that three of the ten people asked gave is right, one that fewer gave is so in part.

Antol et al. 2015 (arXiv:1505.00468), with the rules for equal answers of the VQA v2 evaluation, and of TextVQA's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gemma_tune.evals.base import Evaluator, Inputs
from gemma_tune.evals.references import prepare_scored

# With fewer references no answer can be given by three of the others, so that none is right
FEWEST = 4
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS = 32  # as many as the published scripts take out, which pass re.UNICODE (32) for a count
# The published list has each with one of its apostrophes left out, whichever ("couldnt've", "couldn'tve"). Its few with
# a capital I are never found, since words are in small letters by then.
_WITH_APOSTROPHE = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word for word in _WITH_APOSTROPHE.split() for i, sign in enumerate(word) if sign == "'"
} | {"somebody'd": "somebodyd"}  # as published


def normalized(text: str, normalizer: str = "textvqa") -> str:
    """An answer as VQA's evaluation compares it: without punctuation, articles and capitals, numbers as digits.

    Args:
        text: The answer.
        normalizer: `vqa`, or `textvqa`, which first leaves out commas and question marks and parts `'s` from its word.
    """
    if normalizer == "textvqa":
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    number, given = bool(_COMMA_IN_NUMBER.search(text)), text
    for (
        mark
    ) in _MARKS:  # each judged by the whole text: a mark beside a blank, or any in one with 1,000, parts no words
        joins = number or f"{mark} " in given or f" {mark}" in given
        text = text.replace(mark, "" if joins else " ")
    words = (_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", text, count=_FULL_STOPS).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str], normalizer: str = "textvqa") -> float:
    """How many people gave an answer: min(1, others who did / 3), the mean of leaving out each of them in turn.

    Args:
        answer: The model's answer.
        references: The answers of the people asked, ten as a rule.
        normalizer: See `normalized`.
    """
    given = normalized(answer, normalizer)
    same = [normalized(reference, normalizer) == given for reference in references]
    return sum(min(1.0, (sum(same) - left_out) / 3) for left_out in same) / len(same)


def prepare(inputs: Inputs) -> Evaluator:
    """`<name>_vqa_accuracy` of greedy answers to each of `data.test_files`; an answer that was cut off scores 0.

    Raises:
        UserError: A row with fewer than four references.
    """
    normalizer = inputs.cfg.eval.vqa_accuracy.normalizer

    def judge(answer: str, references: list[str], stopped: bool) -> tuple[float, None]:
        return vqa_accuracy(answer, references, normalizer) if stopped else 0.0, None

    def check(references: list[str]) -> str | None:
        if len(references) >= FEWEST:
            return None
        return (
            f"vqa_accuracy asks how many people gave an answer, and no answer can be right with fewer than {FEWEST} "
            f"references; there {'is one' if len(references) == 1 else f'are {len(references)}'}. Use answers or anls, "
            "or write the answer of each person into the list 'answers'."
        )

    return prepare_scored(inputs, "vqa_accuracy", judge, check)
