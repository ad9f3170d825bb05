"""Whether the calls are the row's, compared as data.

Gamed, with `partial`, by calling the right tool with likely arguments; where no call is wanted, by any words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemma_tune.config.reward import ToolCallReward
from gemma_tune.rewards.base import Completion, Reward, Task, per_completion
from gemma_tune.same_json import same_json

Call = tuple[str, dict[str, Any]]
# What begins as a call does, in any form of chat, is no words; the marks are none wherever they stand.
_MARKS = ("<start_function_call>", "<|tool_call>")
_BEGINS = ("{", "[", *_MARKS)


def _share(made: Call, wanted: Call, partial: bool) -> float:
    """What a call earns for the wanted one: 1 if it is that, else, with `partial`, a half and half of the share."""
    if made[0] != wanted[0]:
        return 0.0
    names = made[1].keys() | wanted[1].keys()
    right = [n for n in made[1].keys() & wanted[1].keys() if same_json(made[1][n], wanted[1][n])]
    if len(right) == len(names):
        return 1.0
    return 0.5 + 0.5 * len(right) / len(names) if partial else 0.0


def earned(made: Sequence[Call], wanted: Sequence[Call], partial: bool) -> float:
    """What calls earn of 1: each wanted one takes the best that is left; those too few and too many earn nothing.

    Args:
        made: Name and arguments of each call.
        wanted: The same of the wanted ones, at least one.
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
    """1 where the calls are the row's, in any order, else 0, or a part of 1 with `partial`.

    Words beside calls don't count. Where the row has no call, 1 for any words that aren't, and don't begin as, a call.
    A completion that was cut off is 0.
    """

    def score(completion: Completion, record: Task) -> float:
        if not completion.stopped:
            return 0.0
        if not record.calls:
            text = completion.text.strip()
            words = text and not text.startswith(_BEGINS) and not any(mark in completion for mark in _MARKS)
            return float(bool(words) and not completion.calls)
        try:
            return earned(completion.calls, record.calls, options.partial)
        except (RecursionError, AttributeError, TypeError):  # arguments nested too deep, or none by name
            return 0.0

    return per_completion(score)
