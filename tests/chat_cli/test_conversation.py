"""Answers aloud: streamed without a loss, calls shown as calls, conversations kept, batches in the file's order.

What the embedded model says is nowhere asserted: where words matter, a scripted model says them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_chat import LIMIT, Person, Scripted, user

from gemma_tune.chat import render_prompt
from gemma_tune.chat_cli.answer import Answer, AnswerStreamer
from gemma_tune.chat_cli.batches import _batches, answer_file
from gemma_tune.chat_cli.conversation import Conversation
from gemma_tune.chat_cli.responder import Responder, ids_within, sampling_of
from gemma_tune.config import ChatConfig, ModelConfig
from gemma_tune.data.records import Record
from gemma_tune.engines.generate import greedy_answers
from gemma_tune.errors import UserError
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_base
from gemma_tune.models.source import find_source

TOOLS = [{"type": "function", "function": {"name": "set_light", "parameters": {"type": "object"}}}]
CALL = '{"name": "set_light", "parameters": {"room": "kitchen", "on": false}}'
SHOWN = '→ set_light(room="kitchen", on=false)'
TIME = '{"name": "get_time", "parameters": {}}'


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(find_source(ModelConfig(model_name_or_path=str(tiny))))


@pytest.fixture(scope="module")
def model(tiny: Path, tokenizer: Any) -> Any:
    """The embedded model in float32, where a batch gives what its rows give alone."""
    config = ModelConfig(model_name_or_path=str(tiny), dtype="float32", device="cpu")
    return load_base(config, find_source(config), tokenizer).eval()


# The answer, what is printed of it where that isn't the answer itself, and how much is held back until the end.
ANSWERS = {
    "text": ("Hello, you.\n\n  Bye [now] {or} later.", None),
    "other scripts": ("Привет 你好, größer 🍎🙂👍\nนี่", None),
    "nothing": ("", None),
    "blanks": ("  \n ", None),
    "a call": (CALL, SHOWN),
    "a fenced call": (f"```json\n{CALL}\n```", SHOWN),
    "text and a call": (f"I do that.\n{CALL}", f"I do that.\n{SHOWN}"),
    "text and a fenced call": (f"I do that.\n\n```tool_code\n{CALL}\n```", f"I do that.\n\n{SHOWN}"),
    "a call and text": (f"{CALL}\nI did that.", f"I did that.\n{SHOWN}"),
    "two calls": (f"[{CALL}, {TIME}]", f"{SHOWN}\n→ get_time()"),
    "a call within a line": (f"So: {CALL}", f"So: {CALL}\n{SHOWN}"),
    "a call within a line and JSON": (f"So: {TIME}\n[1, 2]", f"So: {TIME}\n[1, 2]\n→ get_time()"),
    "a call within a line and another": (f"So: {TIME}\n{CALL}", f"So: {TIME}\n{CALL}\n→ get_time()\n{SHOWN}"),
    "JSON": ('{"a": [1, 2]}\nThat is it.', None),
    "JSON and a call": (f"[1, 2]\n{CALL}", f"[1, 2]\n{SHOWN}"),
    "half a call": (CALL[:-9], None),
    "a list of the people's kind": ("[ ] milk\n[x] bread", None),
    "code": ("So:\n```python\nx = {1: 2}\n```\nThat is `it`.", None),
    "an unfinished fence": ("So:\n```", None),
    "a word in code": ("`it` is\n`` `that` ``", None),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_printed(name: str, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Calls as calls, everything else as it was said; and no special token."""
    said, printed = ANSWERS[name]
    answer = Responder(Scripted(tokenizer, said), tokenizer, ChatConfig(), LIMIT).answer(user("?"), None, "here")
    assert capsys.readouterr().out == (said if printed is None else printed) + "\n"
    assert answer == Answer(said.strip(), stopped=True)


def test_text_is_printed_while_it_is_made(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line is out before the next one begins; a call waits for the end."""
    streamer = AnswerStreamer(tokenizer)
    streamer.put(torch.tensor([[5, 6, 7]]))
    seen = []
    for line in ("One two.\n", "Three.\n", CALL, "\nFour."):
        for token in tokenizer(line, add_special_tokens=False)["input_ids"]:
            streamer.put(torch.tensor([token]))
        seen.append(capsys.readouterr().out)
    streamer.end()
    streamer.end()  # said twice, as after an interruption, it changes nothing
    assert seen == ["One two.\n", "Three.\n", "", ""]
    assert capsys.readouterr().out == f"Four.\n{SHOWN}\n"


def test_streamed_is_the_unstreamed_answer(model: Any, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    chat = ChatConfig(max_new_tokens=40)
    for text in ("How much are 3 bananas?", "Hello!", "Tell me: what is 4 plus 3? Then count to nine."):
        prompt = render_prompt(tokenizer, user(text))
        (ids,) = greedy_answers(model, tokenizer, [prompt], 40)
        answer = Responder(model, tokenizer, chat, LIMIT).answer(user(text), None, "here")
        assert capsys.readouterr().out == tokenizer.decode(ids, skip_special_tokens=True) + "\n"
        assert answer == Answer.of(tokenizer, ids)
        assert len(ids) > 1


def test_an_answer_that_is_cut_says_so(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    said = "One two three four five six."
    length = len(tokenizer(said, add_special_tokens=False)["input_ids"])
    chat, prompt = ChatConfig(max_new_tokens=length), len(render_prompt(tokenizer, user("?")))
    for limit, room, message in (
        (LIMIT, length, f"(cut at chat.max_new_tokens={length})\n"),
        (prompt + 2, 2, f"(cut: the conversation fills the model's {prompt + 2:,} tokens)\n"),
    ):
        answer = Responder(Scripted(tokenizer, said), tokenizer, chat, limit).answer(user("?"), None, "here")
        out, err = capsys.readouterr()
        assert not answer.stopped and err == message
        assert out.strip() == answer.text and said.startswith(answer.text)
        assert len(tokenizer(answer.text, add_special_tokens=False)["input_ids"]) == room
    chat = ChatConfig(max_new_tokens=length + 1)  # room for the stop token
    assert Responder(Scripted(tokenizer, said), tokenizer, chat, LIMIT).answer(user("?"), None, "here").stopped
    assert capsys.readouterr().err == ""


def test_no_room_is_an_error(tokenizer: Any) -> None:
    ids = render_prompt(tokenizer, user("Hello"))
    assert ids_within(tokenizer, user("Hello"), None, len(ids) + 1, "here") == ids
    with pytest.raises(UserError, match=rf"^here: {len(ids)} tokens leave no room .* takes {len(ids)} in all"):
        ids_within(tokenizer, user("Hello"), None, len(ids), "here")


def test_interrupted_alone_nothing_is_lost(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Outside a conversation Ctrl-C ends the command, after what was held back."""
    length = len(tokenizer(CALL[:20], add_special_tokens=False)["input_ids"])
    voice = Responder(Scripted(tokenizer, CALL, interrupted=length), tokenizer, ChatConfig(), LIMIT)
    with pytest.raises(KeyboardInterrupt):
        voice.answer(user("?"), None, "here")
    out = capsys.readouterr().out
    assert len(out) > 10 and CALL.startswith(out[:-1])


def test_sampling_words() -> None:
    assert sampling_of(ChatConfig()) == {"do_sample": False, "top_k": None, "top_p": None}
    sampled = sampling_of(ChatConfig(temperature=0.7, top_k=0, top_p=1.0))
    assert sampled == {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0}


def test_out_of_memory_is_said(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """With what helps; a conversation goes on."""

    def full(**_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model, "generate", full)
    chat, prompt = ChatConfig(batch_size=2), render_prompt(tokenizer, user("Hi"))
    with pytest.raises(UserError, match=rf"batch_size=2: 1 prompts of up to {len(prompt)} tokens don't fit"):
        answer_file(Responder(model, tokenizer, chat, LIMIT), [Record("p:1", messages=user("Hi"))], [prompt])
    voice = Responder(model, tokenizer, chat, LIMIT)
    with pytest.raises(UserError, match=r"^here: .*load_in_4bit"):
        voice.answer(user("Hi"), None, "here")
    assert Conversation(voice, [], None, Person("Hi", "Hi")).run() == []
    assert capsys.readouterr().err.count("Your turn is forgotten") == 2


# Conversations


def talk(
    tokenizer: Any,
    says: Sequence[str],
    lines: Sequence[str | type[BaseException]],
    opening: Sequence[dict[str, Any]] = (),
    limit: int = LIMIT,
    **kwargs: Any,
) -> tuple[Scripted, Person, Conversation, list[dict[str, Any]]]:
    """A conversation of scripted people, to its end."""
    model, person = Scripted(tokenizer, *says, **kwargs), Person(*lines)
    conversation = Conversation(Responder(model, tokenizer, ChatConfig(), limit), list(opening), TOOLS, person)
    return model, person, conversation, conversation.run()


def test_the_whole_conversation_is_asked_each_time(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    system = [{"role": "system", "content": "Be brief."}]
    model, person, conversation, rows = talk(
        tokenizer, ["Hello.", "Yes."], ["Hi!", "", "  ", " Is it on? ", "/quit", "never said"], system
    )
    messages = [
        *system, *user("Hi!"), {"role": "assistant", "content": "Hello."},
        *user("Is it on?"), {"role": "assistant", "content": "Yes."},
    ]  # fmt: skip
    assert conversation.messages == messages
    for asked, n in zip(model.asked, (2, 4), strict=True):
        assert asked == tokenizer.decode(render_prompt(tokenizer, messages[:n], TOOLS))
    assert "Be brief." in model.asked[1] and '"name": "set_light"' in model.asked[1] and "Hi!" in model.asked[1]
    assert person.prompts == ["you> "] * 5
    assert capsys.readouterr().out == "Hello.\nYes.\n"
    assert rows == [
        {"prompt": "Hi!", "answer": "Hello.", "calls": [], "stopped": True},
        {"prompt": "Is it on?", "answer": "Yes.", "calls": [], "stopped": True},
    ]


def test_results_of_calls(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each call's result is asked for; given ones are tool messages, and the model goes on."""
    model, person, conversation, rows = talk(
        tokenizer, [f"[{CALL}, {TIME}]", "It is off at 9.", "Bye."], ["Lights off!", "ok", "9:00", "Thanks"]
    )
    assert person.prompts == ["you> ", "result of set_light> ", "result of get_time> ", "you> ", "you> "]
    roles = [m["role"] for m in conversation.messages]
    assert roles == ["user", "assistant", "tool", "tool", "assistant", "user", "assistant"]
    assert [c["function"]["name"] for c in conversation.messages[1]["tool_calls"]] == ["set_light", "get_time"]
    assert conversation.messages[1]["tool_calls"][0]["function"]["arguments"] == {"room": "kitchen", "on": False}
    assert conversation.messages[2:4] == [{"role": "tool", "content": "ok"}, {"role": "tool", "content": "9:00"}]
    assert "<tool_response>\nok\n</tool_response>\n<tool_response>\n9:00" in model.asked[1]
    assert f"[{CALL}, {TIME}]" in model.asked[1]
    assert rows[0]["calls"][0] == {"name": "set_light", "arguments": {"room": "kitchen", "on": False}}
    assert capsys.readouterr().out == f"{SHOWN}\n→ get_time()\nIt is off at 9.\nBye.\n"


@pytest.mark.parametrize(
    ("lines", "results", "prompts"),
    [
        (["", "Never mind"], [], ["result of set_light> ", "you> "]),
        (["ok", "", "Thanks"], ["ok"], ["result of set_light> ", "result of get_time> ", "you> "]),
    ],
)
def test_no_result(tokenizer: Any, lines: list[str], results: list[str], prompts: list[str]) -> None:
    """An empty line ends the results; without any it is the user's turn."""
    _, person, conversation, _ = talk(tokenizer, [f"[{CALL}, {TIME}]", "Fine.", "Good."], ["Off!", *lines])
    assert person.prompts[1 : 1 + len(prompts)] == prompts
    assert [m["content"] for m in conversation.messages if m["role"] == "tool"] == results
    assert [m["content"] for m in conversation.messages if m["role"] == "user"] == ["Off!", lines[-1]]


def test_commands(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model, person, conversation, rows = talk(
        tokenizer,
        ["One.", CALL, "Two."],
        ["a", "/help", "/nwe", "b", "/new", "/usr/bin is what?", "/quit"],
        [{"role": "system", "content": "Be brief."}],
    )
    assert person.prompts == ["you> "] * 4 + ["result of set_light> "] + ["you> "] * 2
    assert [m["content"] for m in conversation.messages] == ["Be brief.", "/usr/bin is what?", "Two."]
    assert "One." not in model.asked[2] and "Be brief." in model.asked[2]
    assert len(rows) == 3
    out, err = capsys.readouterr()
    assert "/new" not in out and err.count("/quit") == 2  # the list after /help, and after a command that is none
    assert "no command /nwe. Did you mean /new?" in err and "new conversation" in err


def test_the_end(tokenizer: Any) -> None:
    """Ctrl-D and Ctrl-C at any prompt end the conversation, and all answers come back."""
    for end in (EOFError, KeyboardInterrupt):
        for says, lines in ((["Hi."], ["a", end]), ([CALL], ["a", end]), ([], [end])):
            _, _, _, rows = talk(tokenizer, says, lines)
            assert len(rows) == len(says)


def test_a_person_who_writes_control_tokens(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model, _, conversation, _ = talk(tokenizer, [CALL, "Good."], ["a <end_of_turn> b", "\udce4", "Off!", "<bos>", "ok"])
    assert len(model.asked) == 2
    assert [m["content"] for m in conversation.messages] == ["Off!", "", "ok", "Good."]
    err = capsys.readouterr().err
    assert "<end_of_turn>" in err and "not UTF-8" in err and "<bos>" in err


def test_ctrl_c_stops_an_answer(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What was said so far is kept, and it goes on."""
    said = "One two three four five six."
    _, person, conversation, rows = talk(tokenizer, [said, "Good."], ["Count!"], interrupted=4)
    assert person.prompts == ["you> ", "you> "]
    assert [m["role"] for m in conversation.messages] == ["user", "assistant"]
    assert said.startswith(conversation.messages[1]["content"]) and conversation.messages[1]["content"]
    assert not rows[0]["stopped"]
    out, err = capsys.readouterr()
    assert out.strip() == conversation.messages[1]["content"] and "(stopped)" in err and "cut" not in err


def test_ctrl_c_before_the_first_word(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no answer to keep; roles would no longer alternate."""
    _, _, conversation, _ = talk(tokenizer, ["One.", "Two."], ["a", "b"], interrupted=0)
    assert conversation.messages == []
    assert capsys.readouterr().err.count("your turn is forgotten") == 2


def test_a_conversation_that_grows_too_long(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said, the long turn is forgotten, and a shorter one or /new goes on."""
    limit = len(render_prompt(tokenizer, user("Hi there"), TOOLS)) + 20
    model, _, conversation, rows = talk(
        tokenizer, ["Yes.", "No."], ["Hi there", "many words " * 30, "/new", "Hi there"], limit=limit
    )
    assert len(model.asked) == 2 and len(rows) == 2
    assert [m["content"] for m in conversation.messages] == ["Hi there", "No."]
    err = capsys.readouterr().err
    assert f"the model takes {limit:,} in all" in err and "/new begins another conversation" in err


# Batches


def test_batches_are_of_like_length() -> None:
    """Every place once; near the limit one by one, so that no row has less room than alone."""
    lengths = [30, 5, 95, 7, 31, 6, 92, 29]
    chat = ChatConfig(batch_size=3, max_new_tokens=10)
    found = list(_batches(list(zip(lengths, range(8), strict=True)), chat, 100))
    assert found == [[1, 5, 3], [7, 0, 4], [2], [6]]


@pytest.fixture
def asked(tokenizer: Any) -> Iterator[tuple[list[Record], list[list[int]]]]:
    texts = ["Hello!", "How much are 3 bananas?", "Is it?", "What is 4 plus 3, and who says that, please?", "Go on."]
    records = [Record(f"p.txt:{i}", messages=user(text)) for i, text in enumerate(texts)]
    yield records, [render_prompt(tokenizer, r.messages or []) for r in records]


def test_a_batch_gives_what_single_prompts_give(
    model: Any, tokenizer: Any, asked: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the file's order, to the file or to standard output."""
    records, prompts = asked
    chat = ChatConfig(batch_size=2, max_new_tokens=24, output_file="out.jsonl")
    rows = answer_file(Responder(model, tokenizer, chat, LIMIT), records, prompts)
    for row, record, prompt in zip(rows, records, prompts, strict=True):
        (ids,) = greedy_answers(model, tokenizer, [prompt], 24)
        assert row == Answer.of(tokenizer, ids).row(record.messages or [])
    written = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert written == rows and len({row["answer"] for row in rows}) > 1
    assert [row["prompt"] for row in rows] == [r.messages[0]["content"] for r in records if r.messages]
    assert capsys.readouterr().out == ""
    chat.output_file = None
    assert answer_file(Responder(model, tokenizer, chat, LIMIT), records, prompts) == rows
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows


def test_windows_change_no_answer(
    model: Any, tokenizer: Any, asked: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Long files are answered a part at a time."""
    records, prompts = asked
    chat = ChatConfig(batch_size=1, max_new_tokens=8)
    whole = answer_file(Responder(model, tokenizer, chat, LIMIT), records, prompts)
    monkeypatch.setattr("gemma_tune.chat_cli.batches._BATCHES", 2)
    assert answer_file(Responder(model, tokenizer, chat, LIMIT), records, prompts) == whole
    assert "answers were cut at chat.max_new_tokens=8" in capsys.readouterr().err


def test_an_interrupted_file_keeps_what_was_answered(
    model: Any, tokenizer: Any, asked: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    records, prompts = asked
    monkeypatch.setattr("gemma_tune.chat_cli.batches._BATCHES", 1)
    generate, left = model.generate, [None, None, KeyboardInterrupt]

    def twice(**kwargs: Any) -> Any:
        if end := left.pop(0):
            raise end
        return generate(**kwargs)

    monkeypatch.setattr(model, "generate", twice)
    chat = ChatConfig(batch_size=2, max_new_tokens=4, output_file="out.jsonl")
    with pytest.raises(KeyboardInterrupt):
        answer_file(Responder(model, tokenizer, chat, LIMIT), records, prompts)
    assert len(Path("out.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    assert "4 of 5 answers were written to out.jsonl" in capsys.readouterr().err
