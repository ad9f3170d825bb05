"""Our templates against the published ones, byte for byte, through TRL's copies; and what they do beyond them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from conversations import Message, made_tool
from forms_at_hand import GEMMA4, chats_of, each_form, published, text_of, tokenizer_of
from jinja2 import TemplateError
from slow import slow_but_these

from gemma_tune.chat import FORMS, render_chat, served_template, training_template
from gemma_tune.chat.engine import sandboxed
from gemma_tune.chat.render import prepared

each_gemma4 = pytest.mark.parametrize("name", GEMMA4)


def rendered(template: str, messages: list[Message], tools: Any = None, **kwargs: Any) -> str:
    return sandboxed(template).render(messages=messages, tools=tools, bos_token="<bos>", **kwargs)


@pytest.mark.parametrize("name", slow_but_these(("gemma3", GEMMA4[-1]), ["gemma", "gemma3", *GEMMA4]))
def test_text_is_the_published_one(name: str) -> None:
    """Of every conversation that the published one can say: Gemma 3's drops tools."""
    form, seen = FORMS[name], 0
    for chat in chats_of(name):
        if chat.tools and form.calls == "json":
            continue
        messages = prepared(form, chat.messages, chat.tools)
        for more in (
            {},
            {"add_generation_prompt": True},
            {"add_generation_prompt": True, "enable_thinking": False},
            {"add_generation_prompt": True, "enable_thinking": True},
        ):
            if form.calls == "native" or "enable_thinking" not in more:
                right = rendered(published(name), messages, chat.tools, **more)
                assert rendered(served_template(name), messages, chat.tools, **more) == right, chat.name
        seen += 1
    assert seen == (100 if name == "gemma3" else 200)


@pytest.mark.parametrize("name", ["gemma", "gemma3", *GEMMA4])
def test_through_transformers_too(name: str) -> None:
    """As TRL and an engine on Transformers would render it, from our training template."""
    tokenizer, form = tokenizer_of(name), FORMS[name]
    for chat in chats_of(name)[::10]:
        messages = prepared(form, chat.messages, chat.tools)
        right = text_of(tokenizer, published(name), messages, chat.tools)
        assert text_of(tokenizer, training_template(name), messages, chat.tools) == right


@each_gemma4
def test_schemas_of_any_kind(name: str) -> None:
    """Nested, nullable, without types or descriptions, with parameters that have the names of JSON Schema's words."""
    rng = random.Random(7)
    user = [{"role": "user", "content": "Hi"}]
    for _ in range(200):
        tools = [{"type": "function", "function": made_tool(rng)} for _ in range(rng.randint(1, 3))]
        for function in (t["function"] for t in tools):
            for key in rng.sample(["description", "parameters"], rng.choice([0, 0, 1])):
                del function[key]
        assert rendered(served_template(name), user, tools) == rendered(published(name), user, tools)


MEDIA = [{"type": "text", "text": " See "}, {"type": "image"}, {"type": "audio"}, {"type": "video"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": None}}}
ANSWERED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESPONSES = [{"name": "f", "response": {"b": [1, {"k": "v"}], "A": None}}, {"name": "g", "response": "text"}]


@each_gemma4
@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": MEDIA}, {"role": "assistant", "content": MEDIA}],
        [{"role": "user", "content": MEDIA}, ANSWERED | {"content": MEDIA}],
        [{"role": "developer", "content": " Be brief. "}, {"role": "user", "content": "Hi"}],
        [{"role": "user", "content": "Hi"}, ANSWERED | {"tool_responses": RESPONSES}],
        [{"role": "user", "content": "Hi"}, ANSWERED | {"tool_responses": RESPONSES, "content": "So."}],
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "So.", "tool_responses": RESPONSES},
            {"role": "assistant", "content": "And so."},
        ],
        [{"role": "user", "content": "Hi"}, ANSWERED, {"role": "tool", "tool_call_id": "1", "content": MEDIA}],
        [{"role": "user", "content": "Hi"}, ANSWERED, {"role": "user", "content": "And?"}],
        [
            {"role": "user", "content": "Hi"},
            ANSWERED | {"content": "I ask.", "reasoning": "a\n", "reasoning_content": "b"},
            {"role": "tool", "tool_call_id": "1", "content": "yes"},
            {"role": "assistant", "content": "<|channel>thought\nhm<channel|>Done.<channel|>", "reasoning": "c"},
        ],
        [
            {"role": "user", "content": "Hi"},
            ANSWERED | {"content": None},
            {"role": "tool", "tool_call_id": "1", "content": ""},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "Well."},
            {"role": "assistant", "content": "Yes."},
        ],
    ],
)
def test_what_no_row_holds(name: str, messages: list[Message]) -> None:
    """Pictures and sound, results within the message, turns in another order, raw thinking in the text."""
    for more in ({}, {"add_generation_prompt": True}, {"add_generation_prompt": True, "enable_thinking": True}):
        right = rendered(published(name), messages, None, **more)
        assert rendered(served_template(name), messages, None, **more) == right


def test_arguments_that_are_text() -> None:
    """Trap 20: parsed before they are rendered, so every text of Gemma 4's says the same; the fifth refuses them."""
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": {"y": "ü"}}'}}
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    for name in (*GEMMA4, "functiongemma"):
        quote = FORMS[name].string_token
        text = tokenizer_of(name).decode(render_chat(tokenizer_of(name), messages).input_ids)
        assert f"call:f{{x:{{y:{quote}ü{quote}}}}}" in text
    with pytest.raises(TemplateError, match="must be a mapping"):
        rendered(served_template("gemma4_v5"), messages)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "system", "content": "x"}, {"role": "user", "content": "x"}], "System role not supported"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": "x"}], "must alternate"),
        ([{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}], "must alternate"),
    ],
)
def test_gemma_1_and_2_refuse_in_an_engine_too(messages: list[Message], says: str) -> None:
    with pytest.raises(TemplateError, match=says):
        rendered(served_template("gemma"), messages)
    with pytest.raises(TemplateError, match="no place for tools"):
        rendered(served_template("gemma"), [{"role": "user", "content": "x"}], [CALL])


def test_gemma_3n_has_its_own_tokens_for_pictures_and_sound() -> None:
    """Its published text is Gemma 3's but for these: https://huggingface.co/google/gemma-3n-E2B-it."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "audio"}, {"type": "text", "text": " Hi "}]}]
    text = rendered(served_template("gemma3n"), messages)
    assert text == "<bos><start_of_turn>user\n<image_soft_token><audio_soft_token>Hi<end_of_turn>\n"
    assert (
        rendered(served_template("gemma3"), messages) == "<bos><start_of_turn>user\n<start_of_image>Hi<end_of_turn>\n"
    )
    for chat in chats_of("gemma3n"):
        right = rendered(served_template("gemma3"), chat.messages, chat.tools)
        assert rendered(served_template("gemma3n"), chat.messages, chat.tools) == right


@each_form
def test_the_tags_work_for_transformers(name: str) -> None:
    """Its own reading of `{% generation %}` gives our mask; TRL can train with our templates."""
    tokenizer, form = tokenizer_of(name), FORMS[name]
    for chat in chats_of(name)[::10]:
        out = tokenizer.apply_chat_template(
            prepared(form, chat.messages, chat.tools),
            tools=chat.tools,
            chat_template=training_template(name),
            as_generated=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        labels = render_chat(tokenizer, chat.messages, chat.tools).labels
        assert out["assistant_masks"] == [int(i >= 0) for i in labels], chat.name


@each_form
def test_the_served_template_asks_nothing_of_an_engine(name: str) -> None:
    assert "generation -%}" not in served_template(name)
    assert "{%- generation" in training_template(name)
    assert served_template(name).startswith("{{- bos_token -}}" if FORMS[name].calls != "native" else "{%-")
