"""A user's own reward functions, called by the signature they are written in: ours, or TRL's.

TRL's contract: https://huggingface.co/docs/trl/grpo_trainer#using-a-custom-reward-function
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from transformers import TrainerState

from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Completion, Reward, Task
from gemma_tune.user_code import load_function

_OURS = ("completions", "records")
# What TRL passes by name beside the columns of the rows; and the columns that it never passes.
_TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
_NO_COLUMNS = ("prompt", "completion", *_TRL)
_WAYS = "write (completions, records), or TRL's (prompts, completions, **kwargs) with fields of the rows by name"


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
    function = load_function(reference, key)
    parameters = _parameters(function, f"{key}={reference}")
    kinds = [p.kind for p in parameters.values()]
    anything = inspect.Parameter.VAR_KEYWORD in kinds
    named = {
        name: p.default is inspect.Parameter.empty
        for name, p in parameters.items()
        if p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    if "records" in named and "prompts" not in named and {n for n, must in named.items() if must} <= {*_OURS}:
        taken = [name for name in _OURS if name in named or anything]
        return _OwnReward(function, taken)
    said = f"{key}={reference}: its parameters are ({', '.join(str(p) for p in parameters.values())})"
    if inspect.Parameter.POSITIONAL_ONLY in kinds:
        raise UserError(f"{said}, and those before `/` can't be passed by name; {_WAYS}.")
    if not anything and not {"completions", "completion_ids"} & named.keys():
        raise UserError(f"{said}: it takes no completions; {_WAYS}.")
    if tasks is not None:
        _check_fields(named, dict.fromkeys(name for task in tasks for name in task.row), said)
    return TrlReward(function, named, anything, tasks or ())


def _check_fields(named: Mapping[str, bool], fields: Collection[str], said: str) -> None:
    """Raises UserError where a required parameter is neither TRL's nor a field of the rows."""
    for name, must in named.items():
        if must and name not in _TRL and (name not in fields or name in _NO_COLUMNS):
            hint = f" TRL names it {name}s." if f"{name}s" in _TRL else ""
            raise UserError(
                f"{said}: {name} is neither an argument of TRL's ({', '.join(_TRL)}) nor a field of the rows, which "
                f"have: {', '.join(fields) or 'none'}.{hint} Rename it, give it a default, or {_WAYS}."
            )


def _parameters(function: Callable[..., Any], said: str) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError) as error:
        raise UserError(f"{said}: its parameters can't be read ({error}); {_WAYS}.") from error


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
            **{name: [task.row.get(name) for task in records] for name in fields if name not in _NO_COLUMNS},
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
