"""Answers in other words than a reference that says that no tool does what was asked for."""

from __future__ import annotations

import pytest

from gemma_tune.evals.no_call import is_right_without_call

REFERENCE = "Sorry, none of my tools can do that."


@pytest.mark.parametrize(
    "answer",
    [
        "I can't set that.", "I can’t book flights.", "I cannot book flights.", "I can not do this.",
        "I'm afraid that's not something I do.", "Sorry, that isn't something I do.", "Unfortunately, I am unable to.",
        "There is no tool for that.", "There isn't a function to call a taxi.", "My tools don't cover flights.",
        "I don't have access to your bank.", "I have no way to do it.", "I won't be able to help with flights.",
        "This is outside my capabilities.", "That is beyond what I can do.", "It is not possible.", "I lack a tool.",
        "That can't be done here.", "None of the available functions does this.", "I'm sorry, but no.",
    ],
)  # fmt: skip
def test_refusals_in_other_words_are_right(answer: str) -> None:
    assert is_right_without_call(answer, REFERENCE)


@pytest.mark.parametrize(
    "answer",
    [
        "I cannot wait to help! I have turned on the lights.", "I can't wait to help!", "I can't help but like it.",
        "Unfortunately, the alarm is set for 7.", "Sorry for the wait! The lights are on.",
        "The report lacks the numbers.", "No function in this text. {'x':1}", "I don't have any doubt: it is done.",
        "The light outside my door is on.", "You can't miss it: the kitchen is on.",
        "I can't find the lamp, so I've turned on all lights.",
        "I couldn't be happier to help. Done!", "It can't hurt to dim them, too: done.",
        "None of my tools failed: the lights are on.", "Sorry, no problem! The light is on.",
        "It is 4. Say that again.", "",
    ],
)  # fmt: skip
def test_other_answers_are_wrong(answer: str) -> None:
    assert not is_right_without_call(answer, REFERENCE)
