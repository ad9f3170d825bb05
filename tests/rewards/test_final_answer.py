"""`reward.math` and `eval.answers.match=number` find the same answer in a text and judge it alike."""

from __future__ import annotations

import pytest

from gemma_tune.config.reward import MathReward
from gemma_tune.evals.answers import answers_agree
from gemma_tune.rewards.base import Completion, Task
from gemma_tune.rewards.math import prepare

# (the row's answer, what the model says, whether it is right)
CASES = [
    # numbers as people write them
    ("5000000", "5 million", True),
    ("5000000", "The answer is 5 million dollars.", True),
    ("5", "5 million", True),  # "How many million …?"
    ("5000", "5 million", False),
    ("1.5", "1 1/2", True),
    ("3/2", "It takes 1 1/2 hours.", True),
    ("2", "1 1/2", False),
    ("0.75", "3/4", True),
    ("0.75", "It is 3/4 of it.", True),
    ("4", "3/4", False),
    ("0.75", r"\frac{3}{4}", True),
    ("1/3", "0.333333", True),
    ("0.33", "1/3", False),
    ("0.5", "50%", True),
    ("50", "50 percent", True),
    ("#### 1,200", "It is 1200.0 dollars.", True),
    ("1200", "12 hundred", True),
    ("100000", "100 000", True),
    ("100", "100 000", False),
    ("1234", "1.234", False),
    ("1000000", "1e6", True),
    ("0.0015", "1.5 × 10^-3", True),
    ("-3", "(-3)", True),
    ("-3", "It is \N{MINUS SIGN}3.", True),
    ("3", "-3", False),
    ("72", '"72"', True),
    ("72", "**72**", True),
    ("12", "€12", True),
    ("18", "x = 18", True),
    ("10:30", "10:30", True),
    ("30", "10:30", False),
    # which of several numbers is the answer
    ("3", r"\boxed{3} of 4", True),
    ("4", r"\boxed{3} of 4", False),
    ("12", "The answer is 12. I used 3 steps.", True),
    ("3", "The answer is 12. I used 3 steps.", False),
    ("12", "**Answer: 12** (after 3 steps)", True),
    ("72", "The answer is 72 clips in 2 months.", True),
    ("18", "#### 18\nThat took 3 steps.", True),
    ("18", "<answer>18</answer> of 20", True),
    ("18", "18 of 20", False),
    ("20", "The answer is 5 times 4 = 20.", True),
    ("18", "3 * 6 = <<3*6=18>>18", True),
    ("10", "It takes 5-10 minutes.", True),
    ("17", "not 16 but 17", True),
    ("5", "#### 5 apples", True),
    # none of several
    ("3", "3 or 5.", False),
    ("5", "3 or 5.", False),
    ("5", "The answer is 3 or 5.", False),
    ("16", "16 or maybe 17", False),
    ("17", "The answer isn't 17.", False),
    ("5", "1, 2, 3, 4, 5", False),
    ("73", r"\boxed{72} or \boxed{73}", True),  # the last box is the answer
    ("72", r"\boxed{72} or \boxed{73}", False),
    # no number
    ("18", "eighteen", False),
    ("18", "", False),
    ("18", "I don't know.", False),
]


@pytest.mark.parametrize(("wanted", "text", "right"), CASES)
def test_reward_and_evaluation_agree(wanted: str, text: str, right: bool) -> None:
    (score,) = prepare(MathReward())([Completion(text)], [Task("rows.jsonl:1", answer=wanted)])
    assert score == float(right)
    assert answers_agree(wanted, text) is right


def test_only_the_reward_computes_formulas() -> None:
    """`eval.answers.match=number` needs no math-verify: a formula is right where it is spelled as the row's."""
    (score,) = prepare(MathReward())([Completion(r"\boxed{\sqrt{12}}")], [Task("rows.jsonl:1", answer=r"2\sqrt{3}")])
    assert score == 1.0
    assert not answers_agree(r"2\sqrt{3}", r"\boxed{\sqrt{12}}")
    assert answers_agree(r"2\sqrt{3}", r"\boxed{2\sqrt{3}}")
