"""The reward of a length, at its corners and on its slopes."""

from __future__ import annotations

import pytest

from gemma_tune.config.reward import LengthReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Completion, Task
from gemma_tune.rewards.length import prepare


@pytest.mark.parametrize(
    ("options", "tokens", "wanted"),
    [
        (LengthReward(min_tokens=20, max_tokens=40, margin=10), 20, 1.0),
        (LengthReward(min_tokens=20, max_tokens=40, margin=10), 40, 1.0),
        (LengthReward(min_tokens=20, max_tokens=40, margin=10), 45, 0.5),
        (LengthReward(min_tokens=20, max_tokens=40, margin=10), 50, 0.0),
        (LengthReward(min_tokens=20, max_tokens=40, margin=10), 5000, 0.0),
        (LengthReward(min_tokens=20, max_tokens=40, margin=10), 18, 0.8),
        (LengthReward(min_tokens=20, max_tokens=40, margin=10), 10, 0.0),
        (LengthReward(min_tokens=20, max_tokens=40, margin=10), 0, 0.0),
        (LengthReward(min_tokens=20, margin=10), 5000, 1.0),
        (LengthReward(max_tokens=40, margin=0), 40, 1.0),
        (LengthReward(max_tokens=40, margin=0), 41, 0.0),
        (LengthReward(), 0, 1.0),
    ],
)
def test_reward_of_a_length(options: LengthReward, tokens: int, wanted: float) -> None:
    assert prepare(options)([Completion("", tokens=tokens)], [Task("rows.jsonl:1")]) == [pytest.approx(wanted)]


def test_more_at_least_than_at_most_is_refused() -> None:
    with pytest.raises(UserError, match=r"min_tokens=5 is above max_tokens=4"):
        prepare(LengthReward(min_tokens=5, max_tokens=4))
