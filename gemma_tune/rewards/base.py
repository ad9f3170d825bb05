"""What a reward is given and gives back: the contract of every file beside this one, and of functions of the user's.

A new one is a file here (`prepare(options)` gives a `Reward`), its options in config/reward.py, a YAML in
configs/reward/, and, where it is a share of right answers, its name in `_SHARES` of evals/evaluation.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


class Completion(str):
    """What a model said: all of it as text, with the tokens in it that mean something (around calls, thinking).

    Attributes:
        tokens: Tokens, the stop token among them.
        stopped: Whether it ended by itself, and wasn't cut off.
        text: The text alone, without thinking and calls.
        thinking: What it thought before, in the forms that have tokens for it; else empty.
        calls: The calls of tools in it: name and arguments.
    """

    tokens: int
    stopped: bool
    text: str
    thinking: str
    calls: tuple[tuple[str, dict[str, Any]], ...]

    def __new__(
        cls,
        said: str,
        tokens: int = 0,
        stopped: bool = True,
        text: str | None = None,
        thinking: str = "",
        calls: Sequence[tuple[str, dict[str, Any]]] = (),
    ) -> Completion:
        made = super().__new__(cls, said)
        made.tokens, made.stopped, made.thinking, made.calls = tokens, stopped, thinking, tuple(calls)
        made.text = said if text is None else text
        return made


@dataclass(frozen=True)
class Task:
    """What was asked, and what is wanted.

    Attributes:
        where: File and line of the row.
        prompt: The conversation, as OpenAI messages.
        answer: The wanted answer's text; empty where the row has none.
        calls: The wanted answer's calls: name and arguments.
        tools: Function schemas in the OpenAI form.
        row: The row as it stood in the file.
    """

    where: str
    prompt: Sequence[dict[str, Any]] = ()
    answer: str = ""
    calls: Sequence[tuple[str, dict[str, Any]]] = ()
    tools: Sequence[dict[str, Any]] = ()
    row: dict[str, Any] = field(default_factory=dict)


# A score for each completion; None where the reward says nothing of the row.
Reward = Callable[[Sequence[Completion], Sequence[Task]], Sequence[float | None]]


def per_completion(score: Callable[[Completion, Task], float | None]) -> Reward:
    """A reward from what scores one completion."""

    def scores(completions: Sequence[Completion], records: Sequence[Task]) -> list[float | None]:
        return [score(completion, record) for completion, record in zip(completions, records, strict=True)]

    return scores
