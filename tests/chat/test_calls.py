"""Calls in what a model said: found, compared as data, shown."""

from __future__ import annotations

from typing import Any

import pytest
from forms_at_hand import tokenizer_of

from gemma_tune.call_syntax import begins_call
from gemma_tune.chat import FORMS
from gemma_tune.chat.answer_text import answer_text, decode_answer
from gemma_tune.chat.calls import Call, as_message, calls_of, content_text, parse_answer, same_calls, shown

LIGHT = Call("set_light", {"room": "kitchen", "on": False})
TIMER = Call("set_timer", {"minutes": 5})
LIGHT_TEXT = '{"name": "set_light", "parameters": {"room": "kitchen", "on": false}}'
TIMER_TEXT = '{"name": "set_timer", "parameters": {"minutes": 5}}'


@pytest.mark.parametrize(
    ("answer", "text", "calls"),
    [
        (LIGHT_TEXT, "", [LIGHT]),
        (f"[{LIGHT_TEXT}, {TIMER_TEXT}]", "", [LIGHT, TIMER]),
        (f"I do that.\n{LIGHT_TEXT}", "I do that.", [LIGHT]),
        (f"```json\n{LIGHT_TEXT}\n```", "", [LIGHT]),
        (f"Yes:\n```tool_code\n[{TIMER_TEXT}]\n```\nDone.", "Yes:\nDone.", [TIMER]),
        (f'{{"a": 1}} and {TIMER_TEXT}', '{"a": 1} and', [TIMER]),
        ("Sorry, none of my tools can do that.", "Sorry, none of my tools can do that.", []),
        (LIGHT_TEXT[:-1], LIGHT_TEXT[:-1], []),  # cut off: no call was made
        ('{"name": "x", "fields": {}}', '{"name": "x", "fields": {}}', []),
        ('{"name": "x", "parameters": [1]}', '{"name": "x", "parameters": [1]}', []),
        ('{"name": 3, "parameters": {}}', '{"name": 3, "parameters": {}}', []),
        (f"{LIGHT_TEXT}\n{TIMER_TEXT}", "", [LIGHT, TIMER]),
        (f"First {LIGHT_TEXT} and then {TIMER_TEXT}.", "First\nand then\n.", [LIGHT, TIMER]),
        ("[" * 5000, "[" * 5000, []),
        ("[]", "[]", []),
        ("", "", []),
    ],
)
def test_parse(answer: str, text: str, calls: list[Call]) -> None:
    assert parse_answer(answer) == parse_answer(answer, FORMS["gemma3"]) == (text, calls, "")


def test_what_is_inside_other_json_is_no_call() -> None:
    """A record that happens to hold a call's shape was not meant as one."""
    assert parse_answer(f'{{"form": "x", "fields": {LIGHT_TEXT}}}')[1] == []


@pytest.mark.parametrize(
    ("made", "wanted", "same"),
    [
        ([LIGHT], [LIGHT], True), ([LIGHT, TIMER], [TIMER, LIGHT], True), ([], [], True), ([LIGHT], [], False),
        ([], [LIGHT], False), ([LIGHT, LIGHT], [LIGHT], False), ([LIGHT], [LIGHT, LIGHT], False),
        ([Call("set_lights", LIGHT.arguments)], [LIGHT], False), ([Call("set_timer",
        {"minutes": "5"})], [TIMER], False),
        ([Call("set_timer", {"minutes": 5, "label": "tea"})], [TIMER], False), ([Call("set_timer",
        {})], [TIMER], False),
    ],
)  # fmt: skip
def test_same_calls(made: list[Call], wanted: list[Call], same: bool) -> None:
    assert same_calls(made, wanted) is same


def test_true_is_not_one_among_several() -> None:
    one, true = Call("f", {"x": 1}), Call("f", {"x": True})
    assert same_calls([one, true], [true, one])
    assert not same_calls([one, one], [true, one])


def test_there_and_back() -> None:
    message = as_message(f"Well.\n[{LIGHT_TEXT}, {TIMER_TEXT}]")
    assert message["content"] == "Well."
    assert calls_of(message) == [LIGHT, TIMER]
    assert as_message("Hello.") == {"role": "assistant", "content": "Hello."}
    assert calls_of({"role": "assistant", "content": "Hello."}) == []


def test_shown() -> None:
    assert shown(f"Well.\n{LIGHT_TEXT}") == 'Well.\n→ set_light(room="kitchen", on=false)'
    assert shown("Hello.") == "Hello."
    assert str(Call("send", {"text": "größer, „ja“"})) == 'send(text="größer, „ja“")'


# FunctionGemma and Gemma 4: the same grammar between tokens of their own

TOKENS = {
    "functiongemma": ("<start_function_call>", "<end_function_call>", "<escape>"),
    "gemma4": ("<|tool_call>", "<tool_call|>", '<|"|>'),
}
ALL_TYPES = (
    "call:f{a:1,b:-2.5e-07,c:true,d:false,e:null,f:None,g:[],h:{},i:[1,[QxQ,{k-1:QyQ}]],j:{QkQ:Q{,}:[]Q},ключ:QQ}"
)
DATA = {
    "a": 1, "b": -2.5e-7, "c": True, "d": False, "e": None, "f": None, "g": [], "h": {}, "i": [1, ["x", {"k-1": "y"}]],
    "j": {"k": "{,}:[]"}, "ключ": "",
}  # fmt: skip


def native(name: str, text: str) -> str:
    """The text with the form's tokens for (, ) and Q."""
    begin, end, quote = TOKENS[name]
    return text.replace("(", begin).replace(")", end).replace("Q", quote)


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize(
    ("answer", "text", "calls"),
    [
        (f"({ALL_TYPES})", "", [Call("f", DATA)]),
        ("(call:f{})(call:a.b-c{x:QyQ})", "", [Call("f", {}), Call("a.b-c", {"x": "y"})]),
        ("So: (call:f{}) and", "So:\nand", [Call("f", {})]),
        ("( call:f{ x : 1 , y : [ 2 , 3 ] } )", "", [Call("f", {"x": 1, "y": [2, 3]})]),
        ("Hello {x:1}.", "Hello {x:1}.", []),
        ("(call:f{x:1}", None, []),  # cut off: no call was made
        ("(call:f{x:Qy})", None, []),
        ("(call:f{x:y})", None, []),  # a word is no value
        ("(call:f{x:1.})", None, []),
        ("(call:f{x})", None, []),
        ("(call:f{x:1,})", None, []),
        ("(call:f)", None, []),
        ("(call:{})", None, []),
        ("(f{})", None, []),
        ("()", None, []),
        ("(call:f{x:" + "[" * 5000 + ")", None, []),
        ("(call:f{x:y})(call:g{})", "(call:f{x:y})", [Call("g", {})]),
        ('{"name": "f", "parameters": {}}', None, []),  # Gemma 3's form is none of theirs
        ("", "", []),
    ],
)
def test_native(name: str, answer: str, text: str | None, calls: list[Call]) -> None:
    """What can't be read stays text, to the last token."""
    answer = native(name, answer)
    said = parse_answer(answer, FORMS[name])
    assert said == (answer if text is None else native(name, text), calls, "")
    assert repr(said.calls) == repr(calls)  # 1 is not 1.0, nor true
    if "(" in answer:
        assert parse_answer(answer) == said


@pytest.mark.parametrize(
    ("answer", "text", "thinking"),
    [
        ("<|channel>thought\nHm.\nSo.\n<channel|>Yes.", "Yes.", "Hm.\nSo."),
        ("<|channel>thought\n<channel|>Yes.", "Yes.", ""),
        ("<|channel>thought\nHm", "", "Hm"),  # cut off
        ("Hm.\n<channel|>Yes.", "Yes.", "Hm."),  # begun by the prompt
        ("<|channel>thought\na<channel|>b<|channel>thought\nc<channel|>d", "bd", "a\nc"),
        ("Yes.", "Yes.", ""),
    ],
)
def test_thinking(answer: str, text: str, thinking: str) -> None:
    assert parse_answer(answer, FORMS["gemma4"]) == (text, [], thinking)
    with_call = parse_answer(answer + "<|tool_call>call:f{}<tool_call|>", FORMS["gemma4"])
    assert with_call.calls == ([] if answer.endswith("Hm") else [Call("f", {})])
    assert parse_answer(answer, FORMS["gemma3"]).text == answer


def test_a_form_without_calls() -> None:
    assert parse_answer(LIGHT_TEXT, FORMS["gemma"]) == (LIGHT_TEXT, [], "")


@pytest.mark.parametrize("name", ["functiongemma", "gemma4_v5"])
def test_from_tokens(name: str) -> None:
    """The tokens that mean something stay, the others go, and nothing else changes."""
    tokenizer, (begin, end, quote) = tokenizer_of(name), TOKENS[name.partition("_")[0]]
    call = f"{begin}call:f{{x:{quote}ü 👍🏽{quote}}}{end}"
    ids = tokenizer(f" So:\n{call}{FORMS[name].calls_stop}<pad>", add_special_tokens=False)["input_ids"]
    assert decode_answer(tokenizer, ids) == f" So:\n{call}"
    assert answer_text(tokenizer, ids) == f"So:\n{call}"
    assert parse_answer(answer_text(tokenizer, ids), FORMS[name]).calls == [Call("f", {"x": "ü 👍🏽"})]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "So:\ncall:f{x:ü 👍🏽}"  # why it isn't enough


def test_tokens_of_gemma_3() -> None:
    tokenizer = tokenizer_of("gemma3")
    ids = tokenizer(f"<bos>Well.\n{LIGHT_TEXT}<end_of_turn>\n", add_special_tokens=False)["input_ids"]
    assert answer_text(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_native_there_and_back() -> None:
    answer = "<|channel>thought\nHm.<channel|>Well.<|tool_call>call:set_timer{minutes:5}<tool_call|>"
    message = as_message(answer, FORMS["gemma4"])
    assert message["content"] == "Well." and message["reasoning_content"] == "Hm."
    assert calls_of(message) == [TIMER]
    assert shown(answer) == "[thinking: Hm.]\nWell.\n→ set_timer(minutes=5)"


@pytest.mark.parametrize(
    ("content", "text"), [("a", "a"), ([{"type": "text", "text": t} for t in "ab"], "a b"), ({"a": "ü"}, '{"a": "ü"}')]
)
def test_content_for_people(content: Any, text: str) -> None:
    assert content_text({"role": "tool", "content": content}) == text


@pytest.mark.parametrize("text", ["{", '[{"name"', "<start_function_call>call", "<|tool_call>"])
def test_beginnings_of_calls(text: str) -> None:
    assert begins_call(text) and not begins_call("x" + text)
