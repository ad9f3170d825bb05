"""The input and output of a reward: the contract of every file in this folder, and of a user's own reward functions.

A new reward is a file here (`prepare(options)` gives a `Reward`), in config/reward.py its options, a field of
`RewardConfig` and its name in `REWARDS`, and in `RIGHT` if it rewards correct answers; in `_SHARES` of
evals/evaluation.py its name, if it is shown as a percentage; and perhaps a YAML in configs/reward/.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemma_tune.errors import UserError


class Completion(str):
    """A completion: its whole text, including the special tokens that mark calls and thinking.

    Attributes:
        tokens: Number of tokens, including the stop token.
        stopped: Whether it ended with a stop token; False if it was cut off.
        text: The text alone, without thinking and calls.
        thinking: The thinking before the answer, in chat templates that have tokens for it; else empty.
        calls: The tool calls in it: name and arguments.
        ids: Its token ids, the stop token included; empty where there are none.
    """

    tokens: int
    stopped: bool
    text: str
    thinking: str
    calls: tuple[tuple[str, dict[str, Any]], ...]
    ids: tuple[int, ...]

    def __new__(
        cls,
        whole: str,
        tokens: int = 0,
        stopped: bool = True,
        text: str | None = None,
        thinking: str = "",
        calls: Sequence[tuple[str, dict[str, Any]]] = (),
        ids: Sequence[int] = (),
    ) -> Completion:
        made = super().__new__(cls, whole)
        made.tokens, made.stopped, made.thinking, made.calls = tokens, stopped, thinking, tuple(calls)
        made.text, made.ids = whole if text is None else text, tuple(ids)
        return made


@dataclass(frozen=True)
class Task:
    """The prompt and the reference answer.

    Attributes:
        where: File and line of the row.
        prompt: The conversation, as OpenAI messages.
        answer: The text of the reference answer; empty if the row has none.
        calls: The tool calls of the reference answer: name and arguments.
        tools: Function schemas in the OpenAI form.
        row: The row as it stood in the file.
    """

    where: str
    prompt: Sequence[dict[str, Any]] = ()
    answer: str = ""
    calls: Sequence[tuple[str, dict[str, Any]]] = ()
    tools: Sequence[dict[str, Any]] = ()
    row: dict[str, Any] = field(default_factory=dict)


# One score per completion; None if the reward doesn't apply to the row.
Reward = Callable[[Sequence[Completion], Sequence[Task]], Sequence[float | None]]


def per_completion(score: Callable[[Completion, Task], float | None]) -> Reward:
    """A reward from a function that scores a single completion."""

    def scores(completions: Sequence[Completion], records: Sequence[Task]) -> list[float | None]:
        return [score(completion, record) for completion, record in zip(completions, records, strict=True)]

    return scores


def require_package(reward: str, package: str) -> None:
    """Raises UserError if a package of the extra `rl` that a reward needs isn't installed."""
    try:
        importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise UserError(f"reward.{reward}: {package} is not installed; pip install 'gemma_tune[rl]'.") from error
