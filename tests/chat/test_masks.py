"""What is trained, in every form, against prefixes of the conversation: no mask code is asked."""

from __future__ import annotations

import functools
from itertools import chain
from typing import Any

import pytest
from conversations import SCRIPTS, Chat, Message
from forms_at_hand import (
    EMPTY_THINKING,
    chats_of,
    each_form,
    encode,
    engine_text,
    is_rendered,
    row_text,
    tokenizer_of,
    words_of,
)
from slow import slow_but_these

from gemma_tune.chat import FORMS, ChatForm, Unrenderable, render_chat, render_prompt
from gemma_tune.chat.answer_text import answer_text
from gemma_tune.chat.calls import calls_of, parse_answer
from gemma_tune.chat.render import prepared
from gemma_tune.same_json import same_json


def as_seen(form: ChatForm, messages: list[Message]) -> list[Message]:
    """The messages without the thinking that the template leaves out, so that a prefix is written as in the whole."""
    return [
        m if is_rendered(form, messages, i) else {k: v for k, v in m.items() if k != "reasoning_content"}
        for i, m in enumerate(messages)
    ]


def is_prefixable(name: str, message: Message) -> bool:
    """Gemma 4 writes the text of a message with calls after their results, so no prefix ends with it."""
    form = FORMS[name]
    return form.revision < 2 or not (message.get("tool_calls") and words_of(message, form))


@functools.cache
def spans_of(name: str, number: int) -> dict[int, range]:
    """Where each answer's tokens are, in a conversation of the form's."""
    return answer_spans(name, chats_of(name)[number])


def answer_spans(name: str, chat: Chat) -> dict[int, range]:
    """Where each answer's tokens are: behind the text before it, up to the token it stops at."""
    tokenizer, form = tokenizer_of(name), FORMS[name]
    stops = set(tokenizer.convert_tokens_to_ids(list(form.stop_tokens)))
    messages = prepared(form, as_seen(form, chat.messages), chat.tools)
    full = encode(tokenizer, row_text(name, messages, chat.tools))
    spans = {}
    for i in chat.answers:
        prompt = engine_text(name, messages[:i], chat.tools, prompt=True)
        is_last = i == chat.answers[-1]
        if not is_last or "reasoning_content" in messages[i]:
            prompt = prompt.removesuffix(EMPTY_THINKING)
        before = encode(tokenizer, prompt)
        upto = encode(tokenizer, (row_text if is_last else engine_text)(name, messages[: i + 1], chat.tools))
        assert full[: len(upto)] == upto
        assert upto[: len(before)] == before
        end = next(n for n in range(len(upto), 0, -1) if upto[n - 1] in stops)
        assert len(upto) - end <= 1  # the line break after the turn
        spans[i] = range(len(before), end)
    return spans


def checked(name: str) -> list[tuple[int, Chat]]:
    """The conversations whose prefixes can be written, with their numbers."""
    return [(n, c) for n, c in enumerate(chats_of(name)) if all(is_prefixable(name, m) for m in c.messages)]


# The conversations of all forms take long; every rule of a mask is in these
some_forms = pytest.mark.parametrize("name", slow_but_these(("gemma3", "functiongemma", "gemma4"), FORMS))


@each_form
def test_what_the_conversations_are_for(name: str) -> None:
    chats, form = chats_of(name), FORMS[name]
    assert len(chats) == 200
    assert len(checked(name)) >= 100
    traits = set().union(*(c.traits for c in chats))
    assert traits >= {"odd", "short answer", "one turn", "several turns", *SCRIPTS}
    assert (traits >= {"one call", "several calls", "call after text", "several results"}) == bool(form.calls)
    assert ("thinking" in traits) == form.thinking
    assert ("system" in traits) == form.system


@some_forms
def test_mask_is_the_answers_and_nothing_else(name: str) -> None:
    tokenizer = tokenizer_of(name)
    for number, chat in checked(name):
        rendered = render_chat(tokenizer, chat.messages, chat.tools)
        trained = set(chain.from_iterable(spans_of(name, number).values()))
        assert rendered.labels == [t if i in trained else -100 for i, t in enumerate(rendered.input_ids)], chat.name
        assert rendered.trained_tokens == len(trained)


@some_forms
def test_what_is_trained_is_what_the_assistant_said(name: str) -> None:
    """Read back from the trained tokens alone: words, thinking, and calls with their types."""
    tokenizer, form = tokenizer_of(name), FORMS[name]
    for number, chat in checked(name):
        labels = render_chat(tokenizer, chat.messages, chat.tools).labels
        for i, span in spans_of(name, number).items():
            message, ids = chat.messages[i], labels[span.start : span.stop]
            assert -100 not in ids and tokenizer.decode(ids[-1]) in form.stop_tokens
            said, calls, thinking = parse_answer(answer_text(tokenizer, ids), form)
            assert thinking == (message.get("reasoning_content", "") if is_rendered(form, chat.messages, i) else "")
            wanted = calls_of(message)
            assert [c.name for c in calls] == [c.name for c in wanted]
            for made, right in zip(calls, wanted, strict=True):
                assert same_json(made.arguments, right.arguments), chat.name
                assert repr(sorted(map(repr, made.arguments))) == repr(sorted(map(repr, right.arguments)))
            if form.calls != "json" or not wanted:
                assert said == words_of(message, form)


@some_forms
def test_results_are_never_trained(name: str) -> None:
    tokenizer, form = tokenizer_of(name), FORMS[name]
    seen = 0
    for chat in chats_of(name):
        messages = [m | {"content": "ZQX" + m["content"] + "ZQX"} if m["role"] == "tool" else m for m in chat.messages]
        rendered = render_chat(tokenizer, messages, chat.tools)
        seen += "ZQX" in tokenizer.decode(rendered.input_ids)
        trained = tokenizer.decode([i for i in rendered.labels if i >= 0])
        assert "ZQX" not in trained and "response:" not in trained
    assert bool(seen) == bool(form.calls)


@some_forms
def test_one_bos_and_the_served_text(name: str) -> None:
    """Trap 5; and the ids are those of the text that an engine renders from the template that is saved."""
    tokenizer = tokenizer_of(name)
    for chat in chats_of(name):
        messages = prepared(FORMS[name], chat.messages, chat.tools)
        for text, ids in (
            (row_text(name, messages, chat.tools), render_chat(tokenizer, chat.messages, chat.tools).input_ids),
            (engine_text(name, messages, chat.tools, True), render_prompt(tokenizer, chat.messages, chat.tools)),
        ):
            assert ids == encode(tokenizer, text)
            assert (ids[0], ids.count(tokenizer.bos_token_id)) == (tokenizer.bos_token_id, 1)


@some_forms
def test_an_answer_of_weight_0_counts_nothing(name: str) -> None:
    """Each answer in turn: its tokens are gone, every other one's stay."""
    tokenizer = tokenizer_of(name)
    for number, chat in checked(name)[::5]:
        spans = spans_of(name, number)
        whole = render_chat(tokenizer, chat.messages, chat.tools)
        for i, span in spans.items():
            messages = [m | {"weight": 0} if n == i else m for n, m in enumerate(chat.messages)]
            rendered = render_chat(tokenizer, messages, chat.tools)
            assert rendered.input_ids == whole.input_ids
            assert rendered.labels == [-100 if n in span else t for n, t in enumerate(whole.labels)]


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLED: list[Message] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "I ask.", "tool_calls": [CALL]},
    {"role": "tool", "content": "yes"},
    {"role": "assistant", "content": "Done.", "reasoning_content": "so"},
]
_F = "<|tool_call>call:f{x:1}<tool_call|><|tool_response>"


def parts(name: str, messages: list[Message], **kwargs: Any) -> list[tuple[bool, str]]:
    """The text in parts, trained and not trained."""
    tokenizer = tokenizer_of(name)
    rendered = render_chat(tokenizer, messages, **kwargs)
    found: list[tuple[bool, list[int]]] = []
    for token, label in zip(rendered.input_ids, rendered.labels, strict=True):
        if not found or found[-1][0] != (label != -100):
            found.append((label != -100, []))
        found[-1][1].append(token)
    return [(trained, tokenizer.decode(ids)) for trained, ids in found]


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("gemma4_v1", "I ask.<turn|>|\n|Done.<turn|>"),
        ("gemma4_v3", "I ask.<turn|>|\n|Done.<turn|>"),
        ("gemma4_v4", "I ask.<turn|>|\n|Done.<turn|>"),
        ("gemma4_v5", "I ask.<|channel>thought\nso\n<channel|>Done.<turn|>"),
    ],
)
def test_gemma_4_writes_words_beside_calls_behind_the_results(name: str, after: str) -> None:
    """As published, though nobody says it in that order; what is trained is marked all the same."""
    between = 'response:f{value:<|"|>yes<|"|>}<tool_response|>'
    found = parts(name, CALLED)
    assert found[:2] == [(False, "<bos><|turn>user\nHi<turn|>\n<|turn>model\n"), (True, _F)]
    assert found[2] == (False, between)
    assert "|".join(t for _, t in found[3:]) == after + "|\n"
    assert [trained for trained, _ in found] == [n % 2 == 1 for n in range(len(found))]
    silent = [CALLED[0], CALLED[1] | {"weight": 0}, *CALLED[2:]]
    assert "".join(t for trained, t in parts(name, silent) if trained) == after.split("|\n|")[-1].removeprefix("I ask.")


def test_the_first_text_of_gemma_4_closes_every_turn() -> None:
    """Calls end with <turn|>, and a result is a turn of its own; thinking is left out."""
    assert parts("gemma4_v2", [*CALLED[:3], {"role": "assistant", "content": "Done."}]) == [
        (False, "<bos><|turn>user\nHi<turn|>\n<|turn>model\n"),
        (True, "<|tool_call>call:f{x:1}<tool_call|>I ask.<turn|>"),
        (False, "\n<|turn>tool\nyes<turn|>\n<|turn>model\n"),
        (True, "Done.<turn|>"),
        (False, "\n"),
    ]
    with pytest.raises(Unrenderable, match="no place for thinking"):
        parts("gemma4_v2", CALLED)


@pytest.mark.parametrize("name", ["gemma4_v3", "gemma4_v4", "gemma4_v5"])
def test_calls_at_the_end_stop_at_the_results(name: str) -> None:
    """What the model must learn to emit, since an engine stops there; in the release's text it is the turn's end."""
    messages = [CALLED[0], CALLED[1] | {"content": ""}]
    assert parts(name, messages)[-1] == (True, _F)
    assert render_prompt(tokenizer_of(name), messages) == render_chat(tokenizer_of(name), messages).input_ids


def test_thinking_that_the_prompt_begins_is_not_trained_twice() -> None:
    """After a result the fifth text begins the thinking itself, where the model is asked to think."""
    messages = [CALLED[0], CALLED[1] | {"content": "", "reasoning_content": "hm"}, *CALLED[2:]]
    found = parts("gemma4_v5", messages, thinking=True)
    assert found[0] == (False, "<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n")
    assert found[1] == (True, "<|channel>thought\nhm\n<channel|>" + _F)
    assert found[2] == (False, 'response:f{value:<|"|>yes<|"|>}<tool_response|><|channel>thought\n')
    assert found[3:] == [(True, "so\n<channel|>Done.<turn|>"), (False, "\n")]
    prompt = render_prompt(tokenizer_of("gemma4_v5"), messages[:3], thinking=True)
    assert tokenizer_of("gemma4_v5").decode(prompt) == "".join(t for _, t in found[:3])


def test_past_thinking_is_left_out() -> None:
    """Trap 20: it is written for the last user's answers only, so a prefix can hold what the whole does not."""
    messages = [*CALLED, {"role": "user", "content": "And?"}, CALLED[3]]
    whole = "".join(t for _, t in parts("gemma4_v5", messages))
    assert whole.count("<|channel>") == 1 and whole.endswith("<|channel>thought\nso\n<channel|>Done.<turn|>\n")
    assert not whole.startswith("".join(t for _, t in parts("gemma4_v5", messages[:4])))


def test_functiongemma_writes_no_stop_after_calls_without_results() -> None:
    """In the midst of a conversation; at its end, and before results, there is one."""
    messages: list[Message] = [*CALLED[:1], CALLED[1] | {"content": ""}, {"role": "user", "content": "And?"}]
    called = "<start_function_call>call:f{x:1}<end_function_call>"
    assert parts("functiongemma", messages)[1] == (True, called)
    assert parts("functiongemma", messages[:2])[1] == (True, called + "<start_function_response>")


@pytest.mark.parametrize("name", ["functiongemma", "gemma4_v1", "gemma4_v5"])
def test_results_are_named(name: str) -> None:
    """By the call's id, by their own name, or in the calls' order: the published text of Gemma 4 takes the last."""
    calls = [CALL | {"function": {"name": n, "arguments": {}}} for n in "ab"]
    for first, second, names in (
        ({}, {}, "ab"),
        ({"name": "b"}, {"name": "a"}, "ba"),
        ({"tool_call_id": "2"}, {"tool_call_id": "1"}, "ba"),
    ):
        with_ids = [c | ({"id": str(n + 1)} if "tool_call_id" in first else {}) for n, c in enumerate(calls)]
        messages = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": with_ids},
            {"role": "tool", "content": "1", **first},
            {"role": "tool", "content": "2", **second},
        ]
        whole = "".join(t for _, t in parts(name, messages))
        assert [whole.index(f"response:{n}{{value:") for n in names] == sorted(
            whole.index(f"response:{n}{{value:") for n in "ab"
        )


@pytest.mark.parametrize(
    ("name", "message", "tools", "says"),
    [
        ("gemma", {"role": "system", "content": "x"}, None, "put the system text into the first user message"),
        ("gemma", {"role": "user", "content": "x"}, [CALL], "no place for tools"),
        ("gemma", {"role": "assistant", "content": "", "tool_calls": [CALL]}, None, "no place for calls"),
        ("gemma", {"role": "tool", "content": "x"}, None, "no place for calls"),
        (
            "gemma3",
            {"role": "assistant", "content": "x", "reasoning": "y"},
            None,
            "no place for thinking (reasoning_content) in Gemma 3",
        ),
        ("gemma3", {"role": "user", "content": "a <end_of_turn>"}, None, "<end_of_turn>, which the template writes"),
        ("gemma3", {"role": "user", "content": "x"}, [{"function": {"name": "<bos>"}}], "<bos>"),
        ("functiongemma", {"role": "user", "content": [{"type": "text", "text": "<escape>"}]}, None, "<escape>"),
        ("gemma4_v5", {"role": "user", "content": 'a <|"|>'}, None, "which the template writes"),
        ("gemma4_v5", {"role": "user", "content": "a\ufdd0b"}, None, "U+FDD0"),
        (
            "gemma4_v5",
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            None,
            "the arguments of f are neither a mapping",
        ),
    ],
)
def test_what_a_form_has_no_place_for(name: str, message: Message, tools: Any, says: str) -> None:
    """Nothing is left out in silence."""
    messages = [message] if message["role"] == "system" else [{"role": "user", "content": "Hi"}, message]
    with pytest.raises(Unrenderable) as caught:
        render_chat(tokenizer_of(name), messages, tools)
    assert says in str(caught.value)
