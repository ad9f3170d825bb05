"""`data=preference`: a better and a worse answer to one prompt; TRL's `prompt`, `chosen` and `rejected`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gemma_tune.config import DataConfig
from gemma_tune.data.conversation import as_messages, opened, row_tools
from gemma_tune.data.known_fields import CONVERSATIONS
from gemma_tune.data.media_fields import row_media, with_media
from gemma_tune.data.messages import Messages, checked_messages
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.row_fields import RowFields
from gemma_tune.data.sources import Source, map_rows
from gemma_tune.data.tools import Tools

# The fields of the prompt, of the better and of the worse answer: TRL's, and those of OpenAI's files
_FORMS = (
    ("prompt", "chosen", "rejected"),
    ("input.messages", "preferred_output", "non_preferred_output"),
)


# Where TRL's form has no prompt and the answers stand alone
_OTHER_PROMPTS = ("question", "instruction", "query")


class Side(NamedTuple):
    """A conversation that ends with one of the two answers.

    Attributes:
        name: The answer's field.
        messages: The conversation.
        fields: The field that each message stands in.
    """

    name: str
    messages: Messages
    fields: str | Sequence[str]


def fits(row: Mapping[str, Any], data: DataConfig) -> bool:
    """Whether a row is of this format; the prompt may also be the beginning of both conversations."""
    return any(chosen in row and rejected in row for _, chosen, rejected in _FORMS)


def read(source: Source, data: DataConfig) -> Iterator[Record | BadRow]:
    """Yields one pair per row: texts, or lists of messages that may begin with the prompt.

    Only the last answer is trained on; earlier answers are history. OpenAI's form has the prompt and the tools in
    `input`, and `preferred_output` and `non_preferred_output`.
    """

    def record(fields: RowFields) -> Record:
        asked, *sides = next((form for form in _FORMS if all(name in fields for name in form[1:])), _FORMS[0])
        if "." in asked:
            fields.scopes = (asked.partition(".")[0],)
        prompt = as_messages(fields.get(asked), "user", asked, fields) if fields.has(asked) else []
        tools = row_tools(fields, data)
        own = (_conversation(fields, name, prompt, asked, tools) for name in sides)
        media = row_media(fields)
        sided = ((name, *opened(fields, messages, places)) for name, messages, places in own)
        chosen, rejected = (Side(name, with_media(fields, media, said), places) for name, said, places in sided)
        return pair(fields.where, chosen, rejected, tools, fields)

    return map_rows(source, record, data)


def pair(where: str, chosen: Side, rejected: Side, tools: Tools | None, fields: RowFields | None = None) -> Record:
    """The record of two conversations that differ in their last message.

    Args:
        where: File and line.
        chosen: The conversation with the better answer.
        rejected: The same with the worse one.
        tools: Function schemas in the OpenAI form, or None.
        fields: The row, which is told what of the messages is not used.

    Raises:
        BadRow: Not two conversations, different prompts, not one answer each, or equal answers.
    """
    sides = []
    for name, messages, places in (chosen, rejected):
        try:
            side = checked_messages(messages, where, fields=fields, name=places, tools=tools)
        except BadRow as error:
            raise BadRow(f"{where}: {name}: {str(error).removeprefix(f'{where}: ')}") from error
        if side[-1]["role"] != "assistant":
            raise BadRow(f"{where}: {name} ends with the role {side[-1]['role']!r}, and must end with an answer.")
        if side[-1].get("weight") == 0:
            raise BadRow(f"{where}: {name}: an answer of weight 0 can't be preferred; leave the weight out.")
        sides.append([_history(m) if i < len(side) - 1 else m for i, m in enumerate(side)])
    (ours, theirs), both = sides, f"{chosen.name} and {rejected.name}"
    if ours[:-1] != theirs[:-1]:
        apart = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
        raise BadRow(
            f"{where}: {both} part at message {apart + 1} already; they must have the same prompt, and one answer each "
            "after it."
        )
    if _answer(ours[-1]) == _answer(theirs[-1]):
        raise BadRow(f"{where}: {both} are the same answer; there is nothing to prefer.")
    return Record(where, messages=ours, tools=tools, rejected=theirs[-1:])


def _history(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "weight": 0} if message["role"] == "assistant" else message


def _answer(message: dict[str, Any]) -> dict[str, Any]:
    """An answer for comparison: without blanks around its text and without its weight."""
    found = {k: v.strip() if isinstance(v, str) else v for k, v in message.items() if k != "weight"}
    if isinstance(found["content"], list):
        found["content"] = "".join(part.get("text", "") for part in found["content"]).strip()
    return found


def _conversation(fields: RowFields, name: str, prompt: Messages, asked: str, tools: Tools | None) -> Side:
    """One conversation, its prompt included, which stands in the field `asked`."""
    where = fields.where
    side = as_messages(fields.require(name), "assistant", name, fields, tools)
    if side[0].get("role") in ("assistant", "function_call"):
        if not prompt and (other := next((n for n in _OTHER_PROMPTS if fields.has(n)), None)):
            more = fields.optional_text("input") if other == "instruction" else ""
            text = fields.text(other)
            prompt, asked = [{"role": "user", "content": f"{text}\n\n{more}" if more else text}], other
        elif not prompt and (talk := next((n for n in CONVERSATIONS if fields.has(n)), None)):  # LLaMA-Factory's
            prompt, asked = as_messages(fields.get(talk), "user", talk, fields), talk
        if not prompt and fields.is_ignored(asked):
            fields.require(asked)  # says so
        if not prompt:
            raise BadRow(
                f"{where}: there is no field {asked!r}, and {name} is an answer alone: add the prompt, or write both "
                "sides as lists of messages that begin with it."
            )
        return Side(name, [*prompt, *side], [asked] * len(prompt) + [name] * len(side))
    # It begins with the prompt, which may also have a field of its own, as in UltraFeedback
    if prompt and _said(prompt[-1]) not in [_said(m) for m in side[:-1]]:
        raise BadRow(f"{where}: {name} is a conversation of its own, and what the field {asked!r} asks isn't in it.")
    if prompt and prompt[0].get("role") == "system" and side[0].get("role") != "system":
        return Side(name, [prompt[0], *side], [asked] + [name] * len(side))
    if any(_said(m) not in [_said(other) for other in side] for m in prompt):
        raise BadRow(f"{where}: {name} is a conversation of its own, and lacks a message of the field {asked!r}.")
    return Side(name, side, name)


def _said(message: dict[str, Any]) -> Any:
    return message.get("content", message.get("value"))
