"""The chat templates and masks, against the published template and against prefixes of the conversation."""

from __future__ import annotations

import functools
import json
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from conversations import SCRIPTS, Chat, Message, conversations
from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer

from gemma_tune.chat import (
    STOP_TOKEN,
    Rendered,
    render_chat,
    render_prompt,
    render_text,
    served_template,
    training_template,
)
from gemma_tune.paths import ASSETS

CHATS = conversations()
PUBLISHABLE = [c for c in CHATS if c.published]
WITH_TOOLS = [c for c in CHATS if c.tools]

_trl = find_spec("trl")
assert _trl and _trl.origin
TRL_TEMPLATES = Path(_trl.origin).parent / "chat_templates"
PUBLISHED = (TRL_TEMPLATES / "gemma3.jinja").read_text(encoding="utf-8")
TRL_TRAINING = (TRL_TEMPLATES / "gemma3_training.jinja").read_text(encoding="utf-8")

each_chat = pytest.mark.parametrize("chat", CHATS, ids=lambda c: c.name)
each_publishable = pytest.mark.parametrize("chat", PUBLISHABLE, ids=lambda c: c.name)
each_with_tools = pytest.mark.parametrize("chat", WITH_TOOLS, ids=lambda c: c.name)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ASSETS / "tiny")


def text_of(tokenizer: Any, template: str, chat: Chat, prompt: bool = False) -> str:
    """The text as Transformers renders it."""
    text: str = tokenizer.apply_chat_template(
        chat.messages, tools=chat.tools, chat_template=template, tokenize=False, add_generation_prompt=prompt
    )
    return text


def refuse(message: str) -> None:
    raise TemplateError(message)


@functools.cache
def engine_template() -> Template:
    """The served template as an engine compiles it: plain Jinja that knows no {% generation %}."""
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    env.globals["raise_exception"] = refuse
    return env.from_string(served_template())


def engine_text(messages: list[Message], tools: list[dict[str, Any]] | None = None, prompt: bool = False) -> str:
    """The text as an engine renders it."""
    return engine_template().render(messages=messages, tools=tools, bos_token="<bos>", add_generation_prompt=prompt)


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def trained_positions(tokenizer: Any, chat: Chat) -> list[range]:
    """Where each answer's tokens are, from what stands before it: no mask code is asked."""
    full = encode(tokenizer, engine_text(chat.messages, chat.tools))
    stop, newline = encode(tokenizer, STOP_TOKEN + "\n")
    spans = []
    for i in chat.answers:
        before = encode(tokenizer, engine_text(chat.messages[:i], chat.tools, prompt=True))
        upto = encode(tokenizer, engine_text(chat.messages[: i + 1], chat.tools))
        assert upto[: len(before)] == before
        assert full[: len(upto)] == upto
        assert upto[-2:] == [stop, newline]
        spans.append(range(len(before), len(upto) - 1))
    return spans


def said(chat: Chat, i: int) -> str:
    """The text of message `i`, the assistant's, without the stop token."""
    before = engine_text(chat.messages[:i], chat.tools, prompt=True)
    upto = engine_text(chat.messages[: i + 1], chat.tools)
    assert upto.startswith(before)
    return upto[len(before) :].removesuffix(STOP_TOKEN + "\n")


def strings(value: Any) -> list[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for v in inside for text in strings(v)]


def test_the_conversations_hold_what_they_are_for() -> None:
    assert len(CHATS) == 100
    assert len(PUBLISHABLE) == len(WITH_TOOLS) == 50
    assert conversations() == CHATS
    assert conversations(seed=1) != CHATS
    kinds = {"no system", "system", "system in a list", "parts", "odd", "short answer", "one turn", "several turns"}
    for chats in (PUBLISHABLE, WITH_TOOLS):
        assert set().union(*(c.traits for c in chats)) >= kinds | set(SCRIPTS) | {"ends with user"}
    calls = {"one tool", "several tools", "one call", "several calls", "call alone", "call after text"}
    assert set().union(*(c.traits for c in WITH_TOOLS)) >= calls | {"one result", "several results", "ends with tool"}


@pytest.mark.parametrize("prompt", [False, True])
@each_publishable
def test_text_is_the_published_one(tokenizer: Any, chat: Chat, prompt: bool) -> None:
    published = text_of(tokenizer, PUBLISHED, chat, prompt)
    assert text_of(tokenizer, training_template(), chat, prompt) == published
    assert text_of(tokenizer, served_template(), chat, prompt) == published


@pytest.mark.parametrize("prompt", [False, True])
@each_chat
def test_trained_and_served_text_are_one(tokenizer: Any, chat: Chat, prompt: bool) -> None:
    text = engine_text(chat.messages, chat.tools, prompt)
    assert text_of(tokenizer, training_template(), chat, prompt) == text
    assert text_of(tokenizer, served_template(), chat, prompt) == text
    if prompt:
        ids = render_prompt(tokenizer, chat.messages, chat.tools)
    else:
        ids = render_chat(tokenizer, chat.messages, chat.tools).input_ids
    assert ids == encode(tokenizer, text)
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


@each_chat
def test_mask_is_the_answers_and_nothing_else(tokenizer: Any, chat: Chat) -> None:
    rendered = render_chat(tokenizer, chat.messages, chat.tools)
    trained = set(chain.from_iterable(trained_positions(tokenizer, chat)))
    assert rendered.labels == [t if i in trained else -100 for i, t in enumerate(rendered.input_ids)]
    assert rendered.trained_tokens == len(trained)


@each_publishable
def test_mask_of_trl_has_the_line_breaks_too(tokenizer: Any, chat: Chat) -> None:
    """So the check above can fail: TRL's training template also trains the newline after <end_of_turn>."""
    out = tokenizer.apply_chat_template(
        chat.messages, chat_template=TRL_TRAINING, return_dict=True, return_assistant_tokens_mask=True
    )
    theirs = {i for i, m in enumerate(out["assistant_masks"]) if m}
    spans = trained_positions(tokenizer, chat)
    ours = set(chain.from_iterable(spans))
    assert theirs - ours == {span.stop for span in spans}
    assert ours <= theirs
    assert {out["input_ids"][span.stop] for span in spans} <= set(encode(tokenizer, "\n"))
    assert bool(spans) == (theirs != ours)


@each_with_tools
def test_tools_stand_in_the_prompt(tokenizer: Any, chat: Chat) -> None:
    prompt = engine_text(chat.messages[:1] if chat.messages[0]["role"] == "user" else chat.messages[:2], chat.tools)
    start = prompt.index('[{"type": "function"')
    assert json.JSONDecoder().raw_decode(prompt, start)[0] == chat.tools
    for text in strings(chat.tools):  # names and descriptions, nested ones too
        assert json.dumps(text, ensure_ascii=False) in prompt


def test_the_published_template_drops_tools(tokenizer: Any) -> None:
    """Trap 3: why there is a template of ours."""
    tools = [{"type": "function", "function": {"name": "get_weather"}}]
    chat = Chat("drops", [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], tools)
    assert "get_weather" not in text_of(tokenizer, PUBLISHED, chat)
    assert "get_weather" in text_of(tokenizer, served_template(), chat)


@each_with_tools
def test_calls_read_back_as_what_they_were(chat: Chat) -> None:
    for i in chat.answers:
        message = chat.messages[i]
        if not (calls := [c["function"] for c in message.get("tool_calls", [])]):
            continue
        content = message["content"] or ""
        text = content.strip() if isinstance(content, str) else "".join(part["text"].strip() for part in content)
        read = json.loads(said(chat, i).removeprefix(text + "\n"))
        wanted = [{"name": f["name"], "parameters": f["arguments"]} for f in calls]
        assert read == (wanted if len(wanted) > 1 else wanted[0])


def test_arguments_as_json_text_are_left_as_they_are() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": "ü"}'}}
    user = {"role": "user", "content": "Hi"}
    chat = Chat("text", [user, {"role": "assistant", "content": "", "tool_calls": [call]}])
    assert said(chat, 1) == '{"name": "f", "parameters": {"a": "ü"}}'


def test_results_stand_in_one_user_turn_in_order(tokenizer: Any) -> None:
    calls = [{"type": "function", "function": {"name": n, "arguments": {}}} for n in ("a", "b")]
    messages: list[Message] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "first"},
        {"role": "tool", "content": "second"},
        {"role": "assistant", "content": "Done"},
    ]
    assert engine_text(messages).endswith(
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
        text_of(tokenizer, template(), Chat(roles, messages))


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


def test_the_served_template_asks_nothing_of_an_engine() -> None:
    assert "generation -%}" not in served_template()
    assert "{%- generation" in training_template()
    assert served_template().startswith("{{- bos_token -}}")


def test_the_embedded_model_carries_the_served_template(tokenizer: Any) -> None:
    """If not: save its tokenizer again with `served_template()`; the weights don't hang on it."""
    assert tokenizer.chat_template == served_template()
