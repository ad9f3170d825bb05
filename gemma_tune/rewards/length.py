"""Whether a completion is neither too short nor too long.

Gamed by filling up, or by breaking off, to the lengths that are set; give it a small weight.
"""

from __future__ import annotations

from gemma_tune.config.reward import LengthReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Completion, Reward, Task, per_completion


def prepare(options: LengthReward) -> Reward:
    """1 from `min_tokens` to `max_tokens`; `margin` tokens outside of it, and beyond, 0; a straight line between.

    All tokens count, those of thinking and of calls and the stop token, too.

    Raises:
        UserError: More tokens at least than at most.
    """
    low, high = options.min_tokens, options.max_tokens
    if high is not None and low > high:
        raise UserError(f"reward.length: min_tokens={low} is above max_tokens={high}; swap or change them.")

    def score(completion: Completion, record: Task) -> float:
        over = 0 if high is None else completion.tokens - high
        outside = max(low - completion.tokens, over, 0)
        return max(0.0, 1.0 - outside / options.margin) if options.margin else float(not outside)

    return per_completion(score)
