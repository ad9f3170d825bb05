"""Whether a completion makes the tool calls of the reference answer, compared as data.

Gamed, with `partial`, by calling the right tool with likely arguments; if no call is wanted, by any text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemma_tune.call_syntax import CALL_TOKENS, begins_call
from gemma_tune.config.reward import ToolCallReward
from gemma_tune.rewards.base import Completion, Reward, Task, per_completion
from gemma_tune.same_json import same_json

Call = tuple[str, dict[str, Any]]


def _share(made: Call, wanted: Call, partial: bool) -> float:
    """1 if a call equals the wanted one; with `partial`, the right tool scores from 0.5 to 1 by its right arguments."""
    if made[0] != wanted[0]:
        return 0.0
    names = made[1].keys() | wanted[1].keys()
    right = [n for n in made[1].keys() & wanted[1].keys() if same_json(made[1][n], wanted[1][n])]
    if len(right) == len(names):
        return 1.0
    return 0.5 + 0.5 * len(right) / len(names) if partial else 0.0


def earned(made: Sequence[Call], wanted: Sequence[Call], partial: bool) -> float:
    """The score of several calls, from 0 to 1: each wanted call is matched with the best remaining one.

    Missing and surplus calls earn nothing.

    Args:
        made: Name and arguments of each call.
        wanted: Name and arguments of each wanted call, at least one.
        partial: As in `ToolCallReward`.
    """
    pairs = [(_share(m, w, partial), i, j) for i, m in enumerate(made) for j, w in enumerate(wanted)]
    used: set[int] = set()
    met: set[int] = set()
    total = 0.0
    for share, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        if share and i not in used and j not in met:
            used.add(i)
            met.add(j)
            total += share
    share = total / max(len(made), len(wanted))
    return share if partial else float(share == 1.0)


def prepare(options: ToolCallReward) -> Reward:
    """1 if the calls are those of the row, in any order, else 0, or a part of 1 with `partial`.

    Text beside the calls is ignored. If the row has no call, any text scores 1 that neither holds nor begins a call.
    A completion that was cut off scores 0.
    """

    def score(completion: Completion, record: Task) -> float:
        if not completion.stopped:
            return 0.0
        if not record.calls:
            text = completion.text.strip()
            calls = completion.calls or begins_call(text) or any(token in completion for token in CALL_TOKENS)
            return float(bool(text) and not calls)
        try:
            return earned(completion.calls, record.calls, options.partial)
        except (RecursionError, AttributeError, TypeError):  # arguments nested too deeply, or not a mapping
            return 0.0

    return per_completion(score)
