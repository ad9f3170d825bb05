"""Gemma 4 12B and larger: the empty thinking that their prompts end with, and that the history lacks.

Google's page on the format, https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4: where the larger models are
tuned on rows without thinking, the empty channel belongs into the training prompts.
"""

from __future__ import annotations

from typing import Any

import pytest
from conversations import Message
from forms_at_hand import EMPTY_THINKING, GEMMA4, LARGE, chats_of, encode, engine_text, is_rendered, tokenizer_of
from test_masks import CALLED, is_prefixable, parts

from gemma_tune.chat import FORMS, answers_apart, render_chat, render_prompt
from gemma_tune.chat.render import prepared
from gemma_tune.data.records import Record
from gemma_tune.evals.samples import prompt_ids
from gemma_tune.rl.tasks import Tasks

each_large = pytest.mark.parametrize("name", LARGE)

TALK: list[Message] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "Well."},
]
BEGUN = "<|turn>model\n" + EMPTY_THINKING
CALL = "<|tool_call>call:f{x:1}<tool_call|><|tool_response>"
RESULT = 'response:f{value:<|"|>yes<|"|>}<tool_response|>'


def served_prompt(name: str, messages: list[Message], tools: Any) -> list[int]:
    """Token ids of a prompt as an engine renders it."""
    return encode(tokenizer_of(name), engine_text(name, prepared(FORMS[name], messages, tools), tools, prompt=True))


def apart(name: str, messages: list[Message]) -> list[list[Message]]:
    return answers_apart(tokenizer_of(name), messages)


@each_large
def test_it_is_prompt_and_not_trained(name: str) -> None:
    assert parts(name, TALK[:2]) == [
        (False, "<bos><|turn>user\nHi<turn|>\n" + BEGUN),
        (True, "Hello.<turn|>"),
        (False, "\n"),
    ]


@each_large
def test_the_history_lacks_it(name: str) -> None:
    """The row is what a server gives the last answer; to that, TALK's first one is history."""
    assert parts(name, TALK) == [
        (False, "<bos><|turn>user\nHi<turn|>\n<|turn>model\n"),
        (True, "Hello.<turn|>"),
        (False, "\n<|turn>user\nAnd?<turn|>\n" + BEGUN),
        (True, "Well.<turn|>"),
        (False, "\n"),
    ]


@each_large
def test_a_call_has_it_and_what_goes_on_after_the_result_has_not(name: str) -> None:
    messages = [TALK[0], CALLED[1] | {"content": ""}, CALLED[2], TALK[3]]
    called = [(False, "<bos><|turn>user\nHi<turn|>\n" + BEGUN), (True, CALL)]
    assert parts(name, messages[:2]) == called
    assert parts(name, messages[:3]) == [*called, (False, RESULT)]
    assert parts(name, messages) == [
        (False, "<bos><|turn>user\nHi<turn|>\n<|turn>model\n"),
        (True, CALL),
        (False, RESULT),
        (True, "Well.<turn|>"),
        (False, "\n"),
    ]
    assert apart(name, messages) == [messages[:2], [messages[0], messages[1] | {"weight": 0}, *messages[2:]]]


@each_large
def test_thinking_takes_its_place(name: str) -> None:
    """Where it is asked for, and where the row has it."""
    asked = "".join(t for _, t in parts(name, TALK, thinking=True))
    assert EMPTY_THINKING not in asked and "<|think|>" in asked
    thought = CALLED[1] | {"content": "", "reasoning_content": "hm"}
    assert parts(name, [TALK[0], thought]) == [
        (False, "<bos><|turn>user\nHi<turn|>\n<|turn>model\n"),
        (True, "<|channel>thought\nhm\n<channel|>" + CALL),
    ]


@each_large
def test_a_row_is_its_last_answers_prompt_and_that_answer(name: str) -> None:
    """Whatever stands behind the answer; against what an engine renders."""
    tokenizer, form, seen = tokenizer_of(name), FORMS[name], 0
    for chat in chats_of(name):
        last = chat.answers[-1]
        if "reasoning_content" in chat.messages[last] and is_rendered(form, chat.messages, last):
            continue
        prompt = served_prompt(name, chat.messages[:last], chat.tools)
        assert render_prompt(tokenizer, chat.messages[:last], chat.tools) == prompt
        row = render_chat(tokenizer, chat.messages, chat.tools)
        if tokenizer.decode(prompt).endswith(EMPTY_THINKING):
            assert row.input_ids[: len(prompt)] == prompt, chat.name
            assert row.labels[len(prompt) - 4 : len(prompt) + 1] == [*[-100] * 4, row.input_ids[len(prompt)]]
            seen += 1
        else:
            assert chat.messages[last - 1]["role"] == "tool" and EMPTY_THINKING not in tokenizer.decode(row.input_ids)
    assert seen > 50


@each_large
def test_apart_each_answer_is_trained_once_and_behind_its_prompt(name: str) -> None:
    """Against what an engine renders. Without thinking, for which these prompts have no place."""
    tokenizer, seen = tokenizer_of(name), 0
    for chat in chats_of(name):
        messages = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in chat.messages]
        if not all(is_prefixable(name, m) for m in messages):
            continue
        unweighed = set(chat.answers[1::3])
        messages = [m | {"weight": 0} if i in unweighed else m for i, m in enumerate(messages)]
        found = []
        for row in apart(name, messages):
            rendered = render_chat(tokenizer, row, chat.tools)
            for i, message in enumerate(row):
                if message["role"] == "assistant" and message.get("weight", 1):
                    prompt = served_prompt(name, messages[:i], chat.tools)
                    assert rendered.input_ids[: len(prompt)] == prompt, chat.name
                    assert rendered.labels[len(prompt) - 1 : len(prompt) + 1] == [-100, rendered.input_ids[len(prompt)]]
                    found.append(i)
        assert sorted(found) == sorted(set(chat.answers) - unweighed)
        seen += len(found) > 1
    assert seen > 30


@pytest.mark.parametrize("name", ["gemma3", "functiongemma", *(n for n in GEMMA4 if n not in LARGE)])
def test_apart_other_forms_need_one_row(name: str) -> None:
    for chat in chats_of(name)[::20]:
        assert apart(name, chat.messages) == [chat.messages]


@pytest.mark.parametrize("name", [n for n in GEMMA4 if FORMS[n].thinking])
def test_rows_whose_prompt_asks_for_thinking(name: str) -> None:
    """`data.enable_thinking`: what is asked while training with rewards, and to measure it."""
    tokenizer = tokenizer_of(name)
    messages: list[Message] = [{"role": "user", "content": "What is 2 plus 3?"}]
    record = Record("f:1", messages=messages, thinking=True)
    wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert Tasks([record], tokenizer, 1000).prompt(0) == wanted
    assert prompt_ids(tokenizer, record) == tokenizer(wanted, add_special_tokens=False)["input_ids"]
    assert wanted != Tasks([Record("f:1", messages=messages)], tokenizer, 1000).prompt(0)
