"""Answers aloud in the forms that have tokens for calls and thinking; what a scripted model says, a token at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forms_at_hand import tokenizer_of
from scripted_chat import LIMIT, Person, Scripted, user

from gemma_tune.chat import FORMS, render_prompt
from gemma_tune.chat_cli.answer import Answer, AnswerStreamer
from gemma_tune.chat_cli.conversation import Conversation
from gemma_tune.chat_cli.responder import Responder, ids_within
from gemma_tune.config import ChatConfig
from gemma_tune.errors import UserError

CALL = '<|tool_call>call:set_light{on:false,room:<|"|>kitchen<|"|>}<tool_call|>'
SHOWN = '→ set_light(on=false, room="kitchen")'
TIME = "<|tool_call>call:get_time{}<tool_call|>"
TOOLS = [{"type": "function", "function": {"name": "set_light", "parameters": {"type": "object"}}}]

# The answer, what is printed of it, and its thinking, which goes to standard error.
ANSWERS = {
    "text": ("Hello, you.\n\n  Bye [now] {or} later.", None, ""),
    "other scripts": ("Привет 你好, größer 🍎🙂👍\nนี่", None, ""),
    "nothing": ("", None, ""),
    "JSON": ('{"name": "set_light", "parameters": {}}', None, ""),
    "a call": (CALL, SHOWN, ""),
    "two calls": (CALL + TIME, f"{SHOWN}\n→ get_time()", ""),
    "text and a call": (f"I do that.\n{CALL}", f"I do that.\n{SHOWN}", ""),
    "a call within a line": (f"So: {TIME}", "So: \n→ get_time()", ""),
    "a call and text": (f"{TIME} Now I know.", "Now I know.\n→ get_time()", ""),
    "half a call": (CALL[:-12], None, ""),
    "thinking": ("<|channel>thought\nHm, so.\n<channel|>Yes.", "Yes.", "Hm, so."),
    "thinking and a call": (f"<|channel>thought\nHm.<channel|>Well.{TIME}", "Well.\n→ get_time()", "Hm."),
    "only thinking": ("<|channel>thought\nHm, so", "", "Hm, so"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Calls as calls, thinking elsewhere, everything else as it was said; and no special token of the turn."""
    said, printed, thinking = ANSWERS[name]
    tokenizer = tokenizer_of("gemma4_v5")
    stop = "<|tool_response>" if said.endswith("<tool_call|>") else "<turn|>"
    answer = Responder(Scripted(tokenizer, said, stop=stop), tokenizer, ChatConfig(), LIMIT).answer(
        user("?"), None, "here"
    )
    out, err = capsys.readouterr()
    assert out == (said if printed is None else printed) + "\n"
    assert err.startswith(f"[thinking: {thinking}" if thinking else "")
    assert bool(err) == bool(thinking) and err.endswith("]\n") == ("<channel|>" in said)
    assert answer == Answer(said.strip(), stopped=True, form=FORMS["gemma4"])
    assert answer.thinking == thinking and "<|channel>" not in answer.text
    assert answer.row(user("?")).get("thinking", "") == thinking


def test_text_is_printed_while_it_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    """Only from a call on it waits."""
    tokenizer = tokenizer_of("gemma4_v5")
    streamer = AnswerStreamer(tokenizer)
    streamer.put(torch.tensor([[5, 6, 7]]))
    seen = []
    for line in ("One two.\n", "Three.\n", TIME, "Four.\n"):
        for token in tokenizer(line, add_special_tokens=False)["input_ids"]:
            streamer.put(torch.tensor([token]))
        seen.append(capsys.readouterr().out)
    streamer.end()
    assert seen == ["One two.\n", "Three.\n", "", ""]
    assert capsys.readouterr().out == "Four.\n→ get_time()\n"


def test_functiongemma(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tokenizer_of("functiongemma")
    said = "<start_function_call>call:f{x:<escape>ü<escape>}<end_function_call>"
    model = Scripted(tokenizer, said, stop="<start_function_response>")
    answer = Responder(model, tokenizer, ChatConfig(), LIMIT).answer(user("?"), None, "here")
    assert capsys.readouterr().out == '→ f(x="ü")\n'
    assert answer.row(user("?")) == {
        "prompt": "?", "answer": said, "calls": [{"name": "f", "arguments": {"x": "ü"}}], "stopped": True,
    }  # fmt: skip


def test_results_go_on_in_the_models_turn() -> None:
    """Calls are asked for their results, which are named in their order; thinking is kept until the next question."""
    tokenizer = tokenizer_of("gemma4_v5")
    model = Scripted(tokenizer, f"<|channel>thought\nHm.\n<channel|>{CALL}{TIME}", "It is off at 9.", "Bye.")
    person = Person("Lights off!", "ok", "9:00", "Thanks")
    conversation = Conversation(Responder(model, tokenizer, ChatConfig(), LIMIT), [], TOOLS, person)
    rows = conversation.run()
    assert person.prompts == ["you> ", "result of set_light> ", "result of get_time> ", "you> ", "you> "]
    assert [c["name"] for c in rows[0]["calls"]] == ["set_light", "get_time"]
    assert rows[0]["thinking"] == "Hm." and rows[0]["answer"] == CALL + TIME
    assert model.asked[1].endswith(
        f"<|turn>model\n<|channel>thought\nHm.\n<channel|>{CALL}{TIME}"
        '<|tool_response>response:set_light{value:<|"|>ok<|"|>}<tool_response|>'
        '<|tool_response>response:get_time{value:<|"|>9:00<|"|>}<tool_response|>'
    )
    assert "Hm." not in model.asked[2] and model.asked[2].endswith("Thanks<turn|>\n<|turn>model\n")
    messages: list[Any] = conversation.messages[:-1]
    assert model.asked[2] == tokenizer.decode(render_prompt(tokenizer, messages, TOOLS))


def test_what_a_form_has_no_place_for_is_said() -> None:
    with pytest.raises(UserError, match=r"^here: a text holds <turn\|>, which the template writes itself"):
        ids_within(tokenizer_of("gemma4_v5"), user("a <turn|>"), None, LIMIT, "here")
    with pytest.raises(UserError, match="put the system text into the first user message"):
        ids_within(tokenizer_of("gemma"), [{"role": "system", "content": "x"}, *user("a")], None, LIMIT, "here")
