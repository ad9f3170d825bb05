"""The `response_template` that exports write, read by Transformers: the calls that we find, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from forms_at_hand import chats_of, tokenizer_of
from transformers.utils.chat_parsing.response_parser import ResponseParser

from gemma_tune.chat import FORMS, form_of, render_chat, render_prompt, response_template, vllm_tool_parser
from gemma_tune.chat.calls import calls_of
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.source import Source
from gemma_tune.run.paths import ASSETS


def parsed(template: Any, prefix: str, text: str, size: int) -> dict[str, Any]:
    """The message of an answer that comes in pieces of so many characters."""
    parser = ResponseParser(template, prefix=prefix)
    for place in range(0, len(text), size):
        parser.feed(text[place : place + size])
    return parser.finalize()[0]


def read(message: dict[str, Any]) -> tuple[str, list[tuple[str, Any]]]:
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
    return message.get("content", "").strip(), calls


@pytest.mark.parametrize("name", ["gemma3", "functiongemma", "gemma4", "gemma4_large"])
def test_calls_are_found(name: str) -> None:
    """Of conversations as the tests have them: text, one call, several; in one piece and in pieces."""
    tokenizer, seen = tokenizer_of(name), 0
    form = form_of(tokenizer)
    template = response_template(form)
    turns = [
        (chat.messages[: place + 1], chat.tools)
        for chat in chats_of(name)[:60]
        for place, message in enumerate(chat.messages)
        if message["role"] == "assistant"
    ]
    for messages, tools in turns:
        wanted = [(call.name, call.arguments) for call in calls_of(messages[-1])]
        if _beyond_json(name, wanted):
            continue
        rendered = render_chat(tokenizer, messages, tools)
        end = rendered.answer_end
        begin = max((i + 1 for i in range(end) if rendered.labels[i] == -100), default=0)
        answer = tokenizer.decode(rendered.input_ids[begin:end])
        prefix = tokenizer.decode(render_prompt(tokenizer, messages[:-1], tools))
        found = read(parsed(template, prefix, answer, len(answer)))
        assert found[1] == wanted, answer
        assert read(parsed(template, prefix, answer, 3)) == found
        seen += bool(wanted)
    assert seen > 5


def _beyond_json(name: str, calls: list[tuple[str, Any]]) -> bool:
    """Transformers' reader of native calls knows no null and no keys with other signs than letters."""
    text = json.dumps([arguments for _, arguments in calls])
    return name != "gemma3" and ("null" in text or _strange_keys([a for _, a in calls]))


def _strange_keys(value: Any) -> bool:
    if isinstance(value, dict):
        return any(not key.replace("_", "a").isalnum() or _strange_keys(inner) for key, inner in value.items())
    return isinstance(value, list) and any(map(_strange_keys, value))


@pytest.mark.parametrize(
    ("answer", "content", "calls"),
    [
        ('{"name": "f", "parameters": {"a": {"b": [1, "}"]}}}<end_of_turn>', "", [("f", {"a": {"b": [1, "}"]}})]),
        ('```json\n{"name": "f", "parameters": {}}\n```<end_of_turn>', "", [("f", {})]),
        ('[{"name": "f", "parameters": {}}, {"name": "g", "parameters": {"x": 1}}]<end_of_turn>', "",
         [("f", {}), ("g", {"x": 1})]),
        ('Sure.\n{"name": "f", "parameters": {"a": "b"}}<end_of_turn>', "Sure.", [("f", {"a": "b"})]),
        ('The object {"a": 1} is no call.<end_of_turn>', 'The object {"a": 1} is no call.', []),
        ('{"name": "f", "parameters": {"a": "cut', "", [("f", '{"a": "cut')]),
    ],
)  # fmt: skip
def test_json_calls(answer: str, content: str, calls: list[Any]) -> None:
    for size in (len(answer), 1):
        found = parsed(response_template(FORMS["gemma3"]), "<start_of_turn>model\n", answer, size)
        assert read(found) == (content, calls)


def test_a_tokenizer_keeps_it(tmp_path: Any) -> None:
    """So every artifact that is saved with it has it; vLLM's parsers, by their names of 0.32."""
    tiny = str(ASSETS / "tiny")
    tokenizer = load_tokenizer(Source(tiny, None, None, tiny))
    assert tokenizer.response_template == response_template(FORMS["gemma3"])
    tokenizer.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert stored["response_template"] == tokenizer.response_template
    parsers = [vllm_tool_parser(FORMS[name]) for name in ("gemma", "gemma3", "functiongemma", "gemma4")]
    assert parsers == [None, "hf", "functiongemma", "gemma4"]
