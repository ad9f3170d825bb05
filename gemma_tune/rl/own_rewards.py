"""A user's own reward functions, called by the signature they are written in: ours, or TRL's.

TRL's contract: https://huggingface.co/docs/trl/grpo_trainer#using-a-custom-reward-function
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from transformers import TrainerState

from gemma_tune.config.own_functions import (
    NO_COLUMNS,
    OUR_REWARD,
    REWARD,
    REWARD_WAYS,
    field_problem,
    named_parameters,
    takes_records,
)
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Completion, Reward, Task
from gemma_tune.user_code import load_function


def prepare(reference: str, key: str, tasks: Sequence[Task] | None) -> Reward:
    """Loads a user's reward, and calls it as its parameters say.

    A function with `records` is ours: `(completions, records)`. Any other is called as TRL calls it, by name, with
    those of TRL's arguments and of the rows' fields that it takes. Both may be `async`.

    Args:
        reference: `path/to/file.py:function`.
        key: The key of the configuration, for messages.
        tasks: The rows to be scored, whose fields TRL passes by name; None where they are not read yet.

    Raises:
        UserError: The function can't be loaded, or takes parameters that neither signature has.
    """
    said = f"{key}={reference}"
    function = load_function(reference, key, REWARD)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise UserError(f"{said}: its parameters can't be read ({error}); {REWARD_WAYS}.") from error
    named = named_parameters(signature)
    anything = inspect.Parameter.VAR_KEYWORD in [p.kind for p in signature.parameters.values()]
    if takes_records(signature):
        return _OwnReward(function, [name for name in OUR_REWARD if name in named or anything])
    fields = tuple(dict.fromkeys(name for task in tasks or () for name in task.row))
    if tasks is not None and (problem := field_problem(signature, fields)):
        raise UserError(f"{said}: {problem}.")
    return TrlReward(function, named, anything, tasks or ())


class _OwnReward:
    """A reward with our signature."""

    def __init__(self, function: Callable[..., Any], taken: Sequence[str]) -> None:
        self._function, self._taken = function, taken

    def __call__(self, completions: Sequence[Completion], records: Sequence[Task]) -> Sequence[float | None]:
        given = {"completions": completions, "records": records}
        return _scores(self._function(**{name: given[name] for name in self._taken}))


class TrlReward:
    """A reward with TRL's signature.

    As in TRL, prompts and completions are texts where the rows give the prompt as a text, and lists of messages where
    the rows are conversations (one message for a completion). All rows of a run are given alike. A row without a field
    that others have gives None for it.

    Args:
        function: The user's function.
        named: Its parameters, and whether each is required.
        anything: Whether it takes any other by `**kwargs`.
        tasks: Rows, to see whether they are conversations.

    Attributes:
        trainer: TRL's arguments that belong to a trainer. Where nothing is trained, the state is that before the first
            step, and what is logged goes nowhere.
    """

    def __init__(
        self, function: Callable[..., Any], named: Mapping[str, bool], anything: bool, tasks: Sequence[Task]
    ) -> None:
        self._function, self._named, self._anything = function, named, anything
        self._texts = bool(tasks) and all(_text_prompt(task) is not None for task in tasks)
        self.trainer: dict[str, Any] = {"trainer_state": TrainerState(), "log_extra": _nowhere, "log_metric": _nowhere}

    def __call__(self, completions: Sequence[Completion], records: Sequence[Task]) -> Sequence[float | None]:
        required = [name for name, must in self._named.items() if must]
        fields = dict.fromkeys([*(name for task in records for name in task.row), *required])
        given = {
            **{name: [task.row.get(name) for task in records] for name in fields if name not in NO_COLUMNS},
            **self.trainer,
            "prompts": [_text_prompt(t) if self._texts else [dict(m) for m in t.prompt] for t in records],
            "completions": list(completions) if self._texts else [_message(c) for c in completions],
            "completion_ids": [list(c.ids) for c in completions],
        }
        taken = {name: value for name, value in given.items() if self._anything or name in self._named}
        return _scores(self._function(**taken))


def _nowhere(*given: Any) -> None:
    """Logs nothing."""


def _text_prompt(task: Task) -> str | None:
    """The field of the row that is the whole prompt as a text; None where there is none, as in conversations."""
    asked = [message for message in task.prompt if message["role"] != "system"]
    values = list(task.row.values())
    if len(asked) != 1 or any(_is_conversation(value) for value in values):
        return None
    content = asked[0].get("content")
    wanted = content.strip() if isinstance(content, str) else None
    return next((v for v in values if isinstance(v, str) and v.strip() == wanted), None)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def _message(completion: Completion) -> list[dict[str, Any]]:
    """A completion as TRL gives it in a conversation: a list of one message."""
    message: dict[str, Any] = {"role": "assistant", "content": completion.text}
    if completion.thinking:
        message["reasoning_content"] = completion.thinking
    if completion.calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": name, "arguments": arguments}}
            for name, arguments in completion.calls
        ]
    return [message]


def _scores(given: Any) -> Sequence[float | None]:
    """What the function returned; of an `async` one, once it is done."""
    if not inspect.isawaitable(given):
        scores: Sequence[float | None] = given
        return scores

    async def done() -> Any:
        return await given

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(done())  # type: ignore[no-any-return]
    with ThreadPoolExecutor(1) as other:  # a notebook has a loop of its own in this thread
        return other.submit(asyncio.run, done()).result()  # type: ignore[no-any-return]
