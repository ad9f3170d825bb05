"""Whether the words are the row's.

May be gamed hardly at all, but it teaches to repeat one wording; where several are right, use another reward.
"""

from __future__ import annotations

from gemma_tune.config.reward import ExactReward
from gemma_tune.rewards.base import Completion, Reward, Task, per_completion


def prepare(options: ExactReward) -> Reward:
    """1 where the words are the row's, else 0; any white space is one blank, and none counts at the ends.

    A completion that was cut off is 0, whatever it says.

    Raises:
        ValueError: From the reward: a row without an answer.
    """

    def words(text: str) -> list[str]:
        return (text.casefold() if options.ignore_case else text).split()

    def score(completion: Completion, record: Task) -> float:
        wanted = words(record.answer)
        if not wanted:
            raise ValueError(f"{record.where}: the row has no answer, and reward.exact needs one; mend the row.")
        return float(completion.stopped and words(completion.text) == wanted)

    return per_completion(score)
