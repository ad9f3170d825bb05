"""`data=preference`: a better and a worse answer to one prompt; TRL's `prompt`, `chosen` and `rejected`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gemma_tune.config import DataConfig
from gemma_tune.data.formats.prompt_completion import as_messages
from gemma_tune.data.records import BadRow, Record, checked_messages, checked_tools
from gemma_tune.data.sources import Source, field, map_rows

Messages = list[dict[str, Any]]


def fields(data: DataConfig) -> tuple[str, ...]:
    """Required fields; the prompt may also be the beginning of both conversations."""
    return ("chosen", "rejected")


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one pair per row: texts, or lists of messages that may begin with the prompt.

    Only the last answer is trained on; earlier answers are history.
    """

    def record(where: str, row: dict[str, Any]) -> Record:
        given = row.get("prompt")
        prompt = [] if given is None else as_messages(given, "user", "prompt", where)
        chosen, rejected = (_conversation(row, name, prompt, where) for name in fields(data))
        return pair(where, chosen, rejected, checked_tools(row.get(data.tools_column), where))

    return map_rows(source, record)


def pair(where: str, chosen: Messages, rejected: Messages, tools: list[dict[str, Any]] | None) -> Record:
    """The record of two conversations that differ in their last message.

    Args:
        where: File and line.
        chosen: The conversation with the better answer.
        rejected: The same with the worse one.
        tools: Function schemas in the OpenAI form, or None.

    Raises:
        BadRow: Not two conversations, different prompts, not one answer each, or equal answers.
    """
    sides = {}
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        try:
            side = checked_messages(messages, where)
        except BadRow as error:
            raise BadRow(f"{where}: {name}: {str(error).removeprefix(f'{where}: ')}") from error
        if side[-1]["role"] != "assistant":
            raise BadRow(f"{where}: {name} ends with the role {side[-1]['role']!r}, and must end with an answer.")
        if side[-1].get("weight") == 0:
            raise BadRow(f"{where}: {name}: an answer of weight 0 can't be preferred; leave the weight out.")
        sides[name] = [_history(m) if i < len(side) - 1 else m for i, m in enumerate(side)]
    ours, theirs = sides["chosen"], sides["rejected"]
    if ours[:-1] != theirs[:-1]:
        apart = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
        raise BadRow(
            f"{where}: chosen and rejected part at message {apart + 1} already; they must have the same prompt, and "
            "one answer each after it."
        )
    if _answer(ours[-1]) == _answer(theirs[-1]):
        raise BadRow(f"{where}: chosen and rejected are the same answer; there is nothing to prefer.")
    return Record(where, messages=ours, tools=tools, rejected=theirs[-1:])


def _history(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "weight": 0} if message["role"] == "assistant" else message


def _answer(message: dict[str, Any]) -> dict[str, Any]:
    """An answer for comparison: without blanks around its text and without its weight."""
    found = {k: v.strip() if isinstance(v, str) else v for k, v in message.items() if k != "weight"}
    if isinstance(found["content"], list):
        found["content"] = "".join(part["text"] for part in found["content"]).strip()
    return found


def _conversation(row: dict[str, Any], name: str, prompt: Messages, where: str) -> Messages:
    """One conversation, its prompt included."""
    side = as_messages(field(row, name, where), "assistant", name, where)
    if side[0].get("role") == "assistant":
        if not prompt:
            raise BadRow(
                f"{where}: there is no field 'prompt', and {name} is an answer alone: add the prompt, or write both "
                "sides as lists of messages that begin with it."
            )
        return [*prompt, *side]
    # It begins with the prompt, which may also have a field of its own, as in UltraFeedback
    if prompt and prompt[-1].get("content") not in [m.get("content") for m in side[:-1]]:
        raise BadRow(f"{where}: {name} is a conversation of its own, and what the field 'prompt' asks isn't in it.")
    return side
