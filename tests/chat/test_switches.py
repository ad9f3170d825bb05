"""Answers that are switched off, under any name and in any form of row, against spans that no mask code has made."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from conversations import Chat, Message, conversations
from forms_at_hand import each_form, tokenizer_of
from test_masks import answer_spans, is_prefixable

from gemma_tune.chat import FORMS, render_chat
from gemma_tune.config import DataConfig
from gemma_tune.data.conversation import conversation
from gemma_tune.data.records import CONTROL_TOKENS
from gemma_tune.data.row_fields import RowFields

SWITCHES = ("weight", "loss", "train", "trainable", "training", "train_on_turn")


def as_texts(message: Message) -> Message:
    """The message with the arguments of its calls as JSON texts, in which nulls are the author's own."""
    calls = [
        c | {"function": c["function"] | {"arguments": json.dumps(c["function"]["arguments"])}}
        for c in message.get("tool_calls") or ()
        if isinstance(c["function"]["arguments"], dict)
    ]
    return message | {"tool_calls": calls} if calls else message


def written(chat: Chat, off: set[int], draw: random.Random) -> dict[str, Any]:
    """A row of the conversation with some answers switched off: in their messages, or by a list beside them."""
    key = draw.choice(SWITCHES)
    values = draw.choice([(0, 1), (False, True), ("false", "true")])
    answers = [i for i, m in enumerate(chat.messages) if m["role"] == "assistant"]
    messages: list[Message] = [as_texts(m) for m in chat.messages]
    row: dict[str, Any] = {"tools": chat.tools}
    if draw.random() < 0.3:
        row["loss_mask"] = [values[i not in off] for i in answers]
    else:
        messages = [m | {key: values[i not in off]} if i in answers else m for i, m in enumerate(messages)]
    if draw.random() < 0.5:
        return row | {"messages": messages}
    names = {"user": "human", "assistant": "gpt", "tool": "observation", "system": "system"}
    shared = [
        {("from" if k == "role" else "value" if k == "content" else k): v for k, v in m.items()} for m in messages
    ]
    return row | {"messages": [m | {"from": names[m["from"]]} for m in shared]}


def chats_with_several_answers(name: str, count: int) -> list[tuple[Chat, dict[int, range]]]:
    """Conversations of which one answer can be switched off and another stays, and where each answer's tokens are.

    Left out are those that hold control tokens, which are ordinary text to this form but stand in no row, and those
    whose prefixes the form can't write, which have no independent spans.
    """
    found: list[tuple[Chat, dict[int, range]]] = []
    for chat in conversations(4 * count, form=FORMS[name]):
        if (
            len(chat.answers) > 1
            and not any(token in str(chat.messages) for token in CONTROL_TOKENS)
            and all(is_prefixable(name, m) for m in chat.messages)
        ):
            found.append((chat, answer_spans(name, chat)))
            if len(found) == count:
                break
    return found


def compare(name: str, count: int) -> None:
    tokenizer, draw = tokenizer_of(name), random.Random(0)
    chats = chats_with_several_answers(name, count)
    assert len(chats) == count
    for chat, spans in chats:
        off = set(draw.sample(sorted(spans), draw.randint(1, len(spans) - 1)))
        row = written(chat, off, draw)
        record = conversation(RowFields("f:1", row), row["messages"], DataConfig())
        whole = render_chat(tokenizer, chat.messages, chat.tools)
        rendered = render_chat(tokenizer, record.messages or [], record.tools)
        dark = {n for i in off for n in spans[i]}
        assert dark and rendered.input_ids == whole.input_ids
        assert rendered.labels == [-100 if n in dark else t for n, t in enumerate(whole.labels)]


@each_form
def test_some_conversations(name: str) -> None:
    compare(name, 10)


@pytest.mark.slow
@each_form
def test_two_hundred_conversations(name: str) -> None:
    compare(name, 200)
