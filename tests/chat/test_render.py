"""Gemma 3's chat, where it has tools and the published one has not; and what holds for every row."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import pytest
from conversations import SCRIPTS, Message, conversations
from forms_at_hand import chats_of, encode, engine_text, published, text_of, tokenizer_of
from jinja2 import TemplateError
from test_masks import spans_of

from gemma_tune.chat import (
    STOP_TOKEN,
    Rendered,
    render_chat,
    render_prompt,
    render_text,
    served_template,
    training_template,
)

CHATS = chats_of("gemma3")
WITH_TOOLS = [c for c in CHATS if c.tools]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizer_of("gemma3")


def said(messages: list[Message], tools: Any = None) -> str:
    """The text of the last message, the assistant's, without the stop token."""
    before = engine_text("gemma3", messages[:-1], tools, prompt=True)
    whole = engine_text("gemma3", messages, tools)
    assert whole.startswith(before)
    return whole[len(before) :].removesuffix(STOP_TOKEN + "\n")


def strings(value: Any) -> list[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for v in inside for text in strings(v)]


def test_the_conversations_hold_what_they_are_for() -> None:
    publishable = [c for c in CHATS if c.published]
    assert len(publishable) == len(WITH_TOOLS) == 100
    assert conversations() == CHATS
    assert conversations(seed=1) != CHATS
    kinds = {"no system", "system", "system in a list", "parts", "odd", "short answer", "one turn", "several turns"}
    for chats in (publishable, WITH_TOOLS):
        assert set().union(*(c.traits for c in chats)) >= kinds | set(SCRIPTS) | {"ends with user"}
    calls = {"one tool", "several tools", "one call", "several calls", "call alone", "call after text"}
    assert set().union(*(c.traits for c in WITH_TOOLS)) >= calls | {"one result", "several results", "ends with tool"}


def test_mask_of_trl_has_the_line_breaks_too(tokenizer: Any) -> None:
    """So the checks of masks can fail: TRL's training template also trains the newline after <end_of_turn>."""
    for number, chat in enumerate(CHATS):
        if chat.tools:
            continue
        out = tokenizer.apply_chat_template(
            chat.messages,
            chat_template=published("gemma3_training"),
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        theirs = {i for i, m in enumerate(out["assistant_masks"]) if m}
        spans = spans_of("gemma3", number).values()
        ours = set(chain.from_iterable(spans))
        assert theirs - ours == {span.stop for span in spans}
        assert ours <= theirs
        assert {out["input_ids"][span.stop] for span in spans} <= set(encode(tokenizer, "\n"))
        assert bool(spans) == (theirs != ours)


def test_tools_stand_in_the_prompt() -> None:
    for chat in WITH_TOOLS:
        first = chat.messages[:1] if chat.messages[0]["role"] == "user" else chat.messages[:2]
        prompt = engine_text("gemma3", first, chat.tools)
        start = prompt.index('[{"type": "function"')
        assert json.JSONDecoder().raw_decode(prompt, start)[0] == chat.tools
        for text in strings(chat.tools):  # names and descriptions, nested ones too
            assert json.dumps(text, ensure_ascii=False) in prompt


def test_the_published_template_drops_tools(tokenizer: Any) -> None:
    """Trap 3: why there is a template of ours."""
    tools = [{"type": "function", "function": {"name": "get_weather"}}]
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert "get_weather" not in text_of(tokenizer, published("gemma3"), messages, tools)
    assert "get_weather" in text_of(tokenizer, served_template(), messages, tools)


def test_calls_read_back_as_what_they_were() -> None:
    for chat in WITH_TOOLS:
        for i in chat.answers:
            message = chat.messages[i]
            if not (calls := [c["function"] for c in message.get("tool_calls", [])]):
                continue
            content = message["content"] or ""
            text = content.strip() if isinstance(content, str) else "".join(part["text"].strip() for part in content)
            read = json.loads(said(chat.messages[: i + 1], chat.tools).removeprefix(text + "\n"))
            wanted = [{"name": f["name"], "parameters": f["arguments"]} for f in calls]
            assert read == (wanted if len(wanted) > 1 else wanted[0])


def test_arguments_as_json_text_are_left_as_they_are() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": "ü"}'}}
    user = {"role": "user", "content": "Hi"}
    assert (
        said([user, {"role": "assistant", "content": "", "tool_calls": [call]}])
        == '{"name": "f", "parameters": {"a": "ü"}}'
    )


def test_results_stand_in_one_user_turn_in_order() -> None:
    calls = [{"type": "function", "function": {"name": n, "arguments": {}}} for n in ("a", "b")]
    messages: list[Message] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "first"},
        {"role": "tool", "content": "second"},
        {"role": "assistant", "content": "Done"},
    ]
    assert engine_text("gemma3", messages).endswith(
        "<start_of_turn>user\n<tool_response>\nfirst\n</tool_response>\n<tool_response>\nsecond\n</tool_response>"
        "<end_of_turn>\n<start_of_turn>model\nDone<end_of_turn>\n"
    )


@pytest.mark.parametrize("template", [training_template, served_template])
@pytest.mark.parametrize(
    "roles",
    [
        "assistant",
        "user user",
        "user assistant assistant",
        "user assistant user user",
        "user tool",
        "user assistant tool user",
        "user assistant tool tool user",
        "user assistant system",
        "user system assistant",
        "system system user",
        "user developer",
    ],
)
def test_roles_that_do_not_alternate_are_refused(tokenizer: Any, roles: str, template: Any) -> None:
    messages = [{"role": role, "content": "x"} for role in roles.split()]
    with pytest.raises(TemplateError, match="must alternate"):
        text_of(tokenizer, template(), messages)


def test_render_chat_refuses_roles_that_do_not_alternate(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "x"}] * 2
    with pytest.raises(TemplateError, match="must alternate"):
        render_chat(tokenizer, messages)
    with pytest.raises(TemplateError, match="must alternate"):
        render_prompt(tokenizer, messages)


def test_no_tools_is_the_same_as_an_empty_list(tokenizer: Any) -> None:
    messages = CHATS[0].messages
    assert render_chat(tokenizer, messages, []) == render_chat(tokenizer, messages, None)
    assert render_prompt(tokenizer, messages, []) == render_prompt(tokenizer, messages, None)


@pytest.mark.parametrize("text", ["one line", "  blanks \n\n", *SCRIPTS.values(), "👩‍🚀", "{{ x }}", "4"])
def test_running_text_is_trained_whole(tokenizer: Any, text: str) -> None:
    rendered = render_text(tokenizer, text)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert rendered.input_ids == [bos, *encode(tokenizer, text), eos]
    assert (rendered.input_ids.count(bos), rendered.input_ids.count(eos)) == (1, 1)
    assert rendered.labels == rendered.input_ids
    assert rendered.trained_tokens == len(rendered.input_ids) - 1
    assert tokenizer.decode(rendered.input_ids[1:-1]) == text


def test_cut_keeps_the_beginning() -> None:
    row = Rendered([2, 5, 6, 7, 8], [-100, -100, 6, 7, -100])
    assert row.trained_tokens == 2
    assert row.cut(3) == Rendered([2, 5, 6], [-100, -100, 6])
    assert row.cut(3).trained_tokens == 1
    assert row.cut(2).trained_tokens == 0
    assert row.cut(5) == row.cut(99) == row
    assert Rendered([2, 3], [2, 3]).trained_tokens == 1  # nothing predicts the first token


def test_results_that_are_data_are_written_as_json(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "f", "content": {"temp": 21.5, "sky": "bleu à peu près"}},
    ]
    text = tokenizer.decode(render_prompt(tokenizer, messages))
    assert '<tool_response>\n{"temp": 21.5, "sky": "bleu à peu près"}\n</tool_response>' in text
