"""Which of the numbers in a text is the answer, and that one of several is none."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from gemma_tune.config.reward import MathReward
from gemma_tune.rewards.answers import FORMATS, final_answer
from gemma_tune.rewards.base import Completion, Task
from gemma_tune.rewards.extract import is_formula
from gemma_tune.rewards.math import prepare
from gemma_tune.run.paths import CONFIGS


def score(answer: str, text: str, formats: list[str] | None = None) -> float | None:
    options = MathReward() if formats is None else MathReward(formats=formats)
    return prepare(options)([Completion(text)], [Task("rows.jsonl:1", answer=answer)])[0]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("12", "It is 12."), ("12", "So it is 12"), ("12", "He is 12."), ("12", "It is 12 km."), ("12", "It is $12."),
        ("12", "So 12"), ("-3", "x is -3"), ("12", r"\boxed{It is 12}"), ("12", "#### So it is 12"), ("12", "12 km"),
        ("5 ft 3 in", "5 ft 3 in"), ("12", "12 mm long"),
        ("2xy + x^2", "x^2 + 2xy"), ("xy + x", "x + xy"), ("By = C - Ax", "Ax + By = C"), ("2 pi r", r"2 \pi r"),
        (r"\log_2 3", r"$\log_{2} 3$"),
    ],
)  # fmt: skip
def test_short_words_are_no_variables(answer: str, text: str) -> None:
    assert score(answer, text) == 1.0


ROWS = {
    "The answer is one of 16, 17 and 18.": "16 17 18",
    "The answer is 16 and 17.": "16 17",
    "The answer is 16, 17": "16 17",
    "The answer is either 16 or 17.": "16 17",
    "The answer is 16 dollars or 17 dollars.": "16 17",
    "The answer is 16 dollars and 17 dollars.": "16 17",
    "The answer is 16 (or 17).": "16 17",
    "The answer is 16, or maybe 17.": "16 17",
    "The answer is $17$ or $18$.": "17 18",
    "The answer is $16$, $17$, $18$": "16 17 18",
    r"The answer is \(17\) or \(18\).": "17 18",
    "The answer is one of $16$ and $17$.": "16 17",
    "The answer is $x = 16$ or $x = 17$.": "16 17",
    "$16$, $17$, $18$": "16 17 18",
    "$17$ or $18$": "17 18",
    "16 dollars or 17 dollars": "16 17",
    "16 dollars, 17 dollars": "16 17",
    "16 dollars, 17 dollars, 18 dollars": "16 17 18",
    "So there are 16 cats, 17 cats and 18 cats.": "16 17 18",
    r"\boxed{5 and 6}": "5 6",
    r"\boxed{5 \text{ and } 6}": "5 6",
    r"\boxed{either 5 or 6}": "5 6",
    "<answer>maybe 16, maybe 17</answer>": "16 17",
    "<answer>16 or 17 dollars</answer>": "16 17",
    "#### 16 dollars or 17 dollars": "16 17",
    "It is 16 or 17.": "16 17",
    "The answer is not 18.": "18",
    "The answer is: not 18": "18",
    "<answer>not 18</answer>": "18",
    "It is not 18.": "18",
    "It isn't $18$.": "18",
}


@pytest.mark.parametrize("text", ROWS)
def test_no_number_of_a_row_is_right(text: str) -> None:
    assert [n for n in ROWS[text].split() if score(n, text) != 0.0] == []


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("12", "The answer is 12, not 15."),
        ("72", "The answer: of 80 clips, 72 remain."),
        ("7", "The answer is the sum of 3 and 4, which is 7."),
        ("12", "The answer is 12 cats, 3 of them grey."),
        ("5", "So 2 cats, 3 dogs, 5 in all."),
        ("5", "She had $10 and now has $5."),
        ("0.5", "The answer is 1/2, or 0.5."),
        ("12", "In 2020, 12 came."),
        ("17", "The answer is not 18. So the answer is 17."),
        ("5, 6", r"\boxed{5 and 6}"),
        ("(1, 2) and (3, 4)", "The answer is (3, 4) and (1, 2)."),
        ("3, 4", "The answer is 3, 4."),
    ],
)
def test_numbers_beside_the_answer_do_no_harm(answer: str, text: str) -> None:
    assert score(answer, text) == 1.0


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("C", r"\boxed{\textbf{(C)}}", True), ("B", r"\boxed{\textbf{(C)}}", False),
        ("C", r"\boxed{\textbf{(C) }12}", True), ("12", r"\boxed{\textbf{(C)}\ 12}", True),
        ("(C)", r"\boxed{C}", True),
        ("C", "The correct answer is option C.", True), ("B", "The correct answer is option C.", False),
        ("C", "<answer>C. 12</answer>", True), ("12", "<answer>C. 12</answer>", True),
        ("B", "<answer>C. 12</answer>", False), ("13", "<answer>C. 12</answer>", False),
        ("C. 12", "<answer>C</answer>", True), ("C. 12", "<answer>12</answer>", True),
        ("C. 12", "<answer>C. 13</answer>", False), ("C. 12", "<answer>(C) 12</answer>", True),
        ("3", "#### 1+2=<<1+2=3>>3", True), ("18", "<answer>9 * 2 = <<9*2=18>>18</answer>", True),
        ("3", "#### 1+2=<<1+2=3>>4", False),
    ],
)  # fmt: skip
def test_choices_and_calculations_are_read(answer: str, text: str, right: bool) -> None:
    assert score(answer, text) == float(right)


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("x = 4 or x = 5", True),
        ("2 pi", True),
        ("12 km", True),
        ("is 12", False),
        ("x and y are 3", False),
        ("", False),
    ],
)
def test_a_formula_has_no_words(text: str, formula: bool) -> None:
    assert is_formula(text) is formula


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("5", r"<think>First \boxed{3}.</think><answer>5</answer>", 1.0),
        ("5", r"<think>\boxed{5}</think><answer>6</answer>", 0.0),
        ("6", r"<think>\boxed{5}</think><answer>6</answer>", 1.0),
    ],
)
def test_math_format_reads_the_answer_and_not_the_thinking(answer: str, text: str, right: float) -> None:
    formats = OmegaConf.load(CONFIGS / "reward" / "math_format.yaml").math.formats
    assert sorted(formats) == sorted(FORMATS)
    assert score(answer, text, list(formats)) == right


def test_the_rows_own_answer_is_found_by_all_formats_in_their_order() -> None:
    """Its last number is its last answer only where none is marked."""
    row = "It is 3.\n#### 72\nI counted 5."
    assert score(row, "72", ["plain"]) == 1.0
    assert score(row, "5", ["plain"]) == 0.0
    assert final_answer(row, ["plain"]) == "5"
