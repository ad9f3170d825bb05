"""Whether a completion is neither too short nor too long.

Gamed by padding or cutting an answer to the configured length; give it a small weight.
"""

from __future__ import annotations

from gemma_tune.config.reward import LengthReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Completion, Reward, Task, per_completion


def prepare(options: LengthReward) -> Reward:
    """1 from `min_tokens` to `max_tokens`, falling linearly to 0 at `margin` tokens outside of that range.

    All tokens count, including thinking, calls and the stop token.

    Raises:
        UserError: `min_tokens` is above `max_tokens`.
    """
    low, high = options.min_tokens, options.max_tokens
    if high is not None and low > high:
        raise UserError(f"reward.length: min_tokens={low} is above max_tokens={high}; swap or change them.")

    def score(completion: Completion, record: Task) -> float:
        over = 0 if high is None else completion.tokens - high
        outside = max(low - completion.tokens, over, 0)
        return max(0.0, 1.0 - outside / options.margin) if options.margin else float(not outside)

    return per_completion(score)
