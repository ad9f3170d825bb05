"""Whether the answer has the same words as the reference answer.

It can hardly be gamed, but it teaches a single wording; if several wordings are right, use another reward.
"""

from __future__ import annotations

from gemma_tune.config.reward import ExactReward
from gemma_tune.rewards.base import Completion, Reward, Task, per_completion


def prepare(options: ExactReward) -> Reward:
    """1 if the words are those of the reference answer, else 0; any run of white space counts as one blank.

    A completion that was cut off scores 0.

    Raises:
        ValueError: From the reward: a row without an answer.
    """

    def words(text: str) -> list[str]:
        return (text.casefold() if options.ignore_case else text).split()

    def score(completion: Completion, record: Task) -> float:
        wanted = words(record.answer)
        if not wanted:
            raise ValueError(f"{record.where}: the row has no answer, and reward.exact needs one; fix the row.")
        return float(completion.stopped and words(completion.text) == wanted)

    return per_completion(score)
