"""Rows as people have them, each used or refused by name: those of the shared folder, and others of the same kinds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from row_files import read, refusal, row_of, write

from gemma_tune.config import DataConfig
from gemma_tune.data import reading
from gemma_tune.data.records import Record
from gemma_tune.data.remarks import remark_lines

WILD = Path(os.environ.get("GEMMA_TUNE_TEST_DATA") or "unset", "wild")
wild = pytest.mark.skipif(not WILD.is_dir(), reason="needs GEMMA_TUNE_TEST_DATA")

USER = {"role": "user", "content": "Light on in the hall."}
WHY = {"role": "user", "content": "Why?"}
CALL = {"type": "function", "function": {"name": "set_light", "arguments": {"room": "hall"}}}
SCHEMA = {"type": "object", "properties": {"room": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "set_light", "description": "Light.", "parameters": SCHEMA}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}


def refused(tmp_path: Path, row: dict[str, Any], **keys: Any) -> str:
    file = write(tmp_path / "row.jsonl", row)
    message = refusal(DataConfig(format=keys.pop("format", "auto"), train_file=file, **keys))
    assert message.startswith(f"{file}:1: ")
    return message


def trained(record: Record) -> list[str]:
    """The answers that the loss counts."""
    return [m["content"] for m in record.messages or () if m["role"] == "assistant" and m.get("weight", 1)]


@wild
@pytest.mark.parametrize(
    "name", ["01-sharegpt-weight/rows", "03-messages-loss-false/loss", "03-messages-loss-false/sharegpt_loss"]
)
def test_switched_off_answers(name: str) -> None:
    (record,) = read(WILD / f"{name}.jsonl")
    assert trained(record) == ["Four."] and "Five." in str(record.messages)


@wild
def test_files_that_are_used() -> None:
    (record,) = read(WILD / "02-conversations-openai-toolcalls" / "rows.jsonl")
    assert record.messages and record.messages[1]["tool_calls"] == [CALL] and record.tools
    for name in ("messages", "pc"):
        (record,) = read(WILD / "05-csv-python-repr" / f"{name}.csv")
        assert [m["content"] for m in record.messages or ()] == ["Hello there", "Hi, it's me"]
    for file in sorted((WILD / "08-null-arguments").glob("*.*")):
        if file.suffix != ".md":
            assert "null" not in json.dumps([[r.messages, r.tools] for r in read(file)])
    for folder in ("09-legacy-function-call", "10-toolcalls-as-text"):
        for file in sorted((WILD / folder).glob("*.jsonl")):
            (record,) = read(file)
            assert record.messages and record.messages[1]["tool_calls"] == [CALL] and record.tools == [TOOL]
    for file in sorted((WILD / "13-other-chat-shapes").glob("*.jsonl")):
        (record,) = read(file)
        assert trained(record) == ["Hi."]
    (record,) = read(WILD / "28-roles-in-a-row" / "assistant_text_then_call.jsonl")
    assert record.messages and record.messages[1] == {
        "role": "assistant",
        "content": "One moment.",
        "tool_calls": [CALL],
    }
    (record,) = read(WILD / "33-fields-beside-the-row" / "rows.jsonl")
    assert record.messages and record.messages[0] == {"role": "system", "content": "Be brief."}
    (record,) = read(WILD / "33-fields-beside-the-row" / "conversations_reasoning.jsonl")
    assert record.messages and record.messages[1]["reasoning_content"] == "It is sunny."
    (record,) = read(
        WILD / "17-rl-verl" / "rows.jsonl", format="columns", prompt_column="prompt",
        completion_column="reward_model.ground_truth",
    )  # fmt: skip
    assert trained(record) == ["4"]
    assert record.unused == ("data_source", "ability", "reward_model.style", "extra_info")


@wild
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("04-kto-label/rows", "recipe=kto data=unpaired_preference"),
        ("06-suggested-columns-drop-fields/orca", "data.system_column=system_prompt"),
        ("06-suggested-columns-drop-fields/rows", "which doesn't use context, category"),
        ("07-images-field/parts", "07-images-field/a.jpg: there is no such file (data.media_folder"),
        ("07-images-field/rows", "the field 'images.0': "),
        ("11-special-tokens-in-text/rows", "holds <pad>"),
        ("12-text-templated/rows", "data=messages"),
        ("12-text-templated/bos", "data=messages"),
        ("15-nan/rows", "'completion' is NaN, a missing value"),
        ("28-roles-in-a-row/assistant_first", "'assistant' follows 'nothing'"),
        ("28-roles-in-a-row/system_middle", "one follows 'assistant'"),
        ("28-roles-in-a-row/user_user", "'user' follows 'user': join the two messages"),
    ],
)
def test_files_that_are_refused(name: str, says: str) -> None:
    file = WILD / f"{name}.jsonl"
    message = refusal(DataConfig(format="auto", train_file=str(file)))
    assert message.startswith(f"{file}:") and says in message


@wild
def test_cells_without_a_value_are_counted() -> None:
    part = reading.training(DataConfig(format="auto", train_file=str(WILD / "15-nan" / "nan.csv")))
    first, _ = list(part)
    assert first.messages and first.messages[0]["content"] == "Say hi."
    (line,) = remark_lines(part.remarks, "training rows")
    assert "input: 2 rows; output: 1 row" in line and line.startswith("warning: ") and "nan.csv:2" in line


def switched(key: str, value: list[Any]) -> dict[str, Any]:
    return {key: value[0]} if value else {}


@pytest.mark.parametrize("key", ["weight", "loss", "train", "trainable", "training", "train_on_turn"])
@pytest.mark.parametrize(("off", "on"), [(0, 1), (False, True), ("false", "true"), (0.0, 1.0), ("0", None)])
def test_every_switch_in_every_form(tmp_path: Path, key: str, off: Any, on: Any) -> None:
    said = [("user", "a"), ("assistant", "Five.", off), ("user", "b"), ("assistant", "Four.", on)]
    openai = [{"role": r, "content": c, **switched(key, w)} for r, c, *w in said]
    shared = [{"from": r, "value": c, **switched(key, w)} for r, c, *w in said]
    rows = [{"messages": openai}, {"conversations": shared}, {"messages": json.dumps(openai)},
            {"prompt": openai[:1], "completion": openai[1:]}, {"contents": openai}]  # fmt: skip
    for row in rows:
        assert trained(row_of(tmp_path, row)) == ["Four."], row


@pytest.mark.parametrize("key", ["loss_mask", "train_on_turn", "train", "weight"])
@pytest.mark.parametrize("value", [[0, 0, 0, 1], [False, True], "[0, 1]", [None, 0, None, 1]])
def test_switches_of_a_row(tmp_path: Path, key: str, value: Any) -> None:
    messages = [USER, {"role": "assistant", "content": "Five."}, USER, {"role": "assistant", "content": "Four."}]
    assert trained(row_of(tmp_path, {"messages": messages, key: value})) == ["Four."]
    for bad in ([0, 1, 1], 0.5, "some", [0.5, 1]):
        assert f"'{key}'" in refused(tmp_path, {"messages": messages, key: bad})
    assert "no assistant message to learn from" in refused(tmp_path, {"messages": messages, key: 0})


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"mask": True}, "'messages.mask' switches training on or off"),
        ({"loss_weight": 0.5}, "'messages.loss_weight' switches"),
        ({"weight": 0.5}, "weight is 0.5, and must be 0 or 1"),
        ({"loss": True, "train": False}, "loss and train say different things"),
        ({"images": ["a.png"]}, "images, sound and video stand in the user's messages"),
    ],
)
def test_message_fields_that_cannot_be_honoured(tmp_path: Path, message: dict[str, Any], says: str) -> None:
    row = {"messages": [USER, {"role": "assistant", "content": "Hi.", **message}]}
    assert says in refused(tmp_path, row)
    names = [f"messages.{key}" for key in message]
    assert trained(row_of(tmp_path, row, ignore_fields=names)) == ["Hi."]


@pytest.mark.parametrize("label", [False, 0, "False", "false"])
def test_bad_answers_are_not_trained_as_good_ones(tmp_path: Path, label: Any) -> None:
    answer = {"role": "assistant", "content": "Go away."}
    for row in ({"prompt": "Hi", "completion": "Go away."}, {"messages": [USER, answer]}):
        assert "recipe=kto data=unpaired_preference" in refused(tmp_path, {**row, "label": label})
        assert row_of(tmp_path, {**row, "label": True}).unused == ("label",)
    assert row_of(tmp_path, {"text": "A film.", "label": label}, format="text").unused == ("label",)


def test_what_one_format_reads_every_format_reads(tmp_path: Path) -> None:
    """System text, tools, history, thinking, calls and switches, in each of them."""
    beside = {"system_prompt": "Be brief.", "functions": [TOOL["function"]], "history": [["Hi", "Hello"]],
              "reasoning_content": "Hm.", "category": "x"}  # fmt: skip
    rows = {
        "prompt_completion": {"prompt": "Why?", "completion": "So."},
        "columns": {"question": "Why?", "answer": "So."},
        "alpaca": {"instruction": "Why?", "output": "So."},
        "messages": {"messages": [{"role": "user", "content": "Why?"}, {"role": "model", "content": "So.", "reasoning": "Hm."}]},  # noqa: E501
        "sharegpt": {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So.", "thinking": "Hm."}]},  # noqa: E501
    }  # fmt: skip
    wanted = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So.", "reasoning_content": "Hm."},
    ]  # fmt: skip
    for name, row in rows.items():
        keys = {"prompt_column": "question", "completion_column": "answer"} if name == "columns" else {}
        own = {
            k: v
            for k, v in beside.items()
            if k != "reasoning_content" or name in ("prompt_completion", "columns", "alpaca")
        }
        record = row_of(tmp_path, {**own, **row}, format=name, **keys)
        assert record.messages == wanted, name
        assert record.tools == [TOOL] and record.unused == ("category",), name
    pair = {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "system": "Be brief.", "tools": [json.dumps(TOOL)]}
    record = row_of(tmp_path, pair)
    assert record.prompt[0] == wanted[0] and record.tools == [TOOL] and not record.unused


@pytest.mark.parametrize(
    ("calls", "tools"),
    [
        ({"tool_calls": [json.dumps(CALL)]}, {"tools": [json.dumps(TOOL)]}),
        ({"tool_calls": json.dumps([CALL])}, {"tools": json.dumps([TOOL])}),
        ({"tool_calls": [CALL["function"]]}, {"tools": [TOOL["function"]]}),
        ({"tool_calls": [{**CALL["function"], "id": "1", "type": "function"}]}, {"tools": [{"type": "function", **TOOL["function"]}]}),  # noqa: E501
        ({"function_call": CALL["function"]}, {"functions": [TOOL["function"]]}),
        ({"function_call": {"name": "set_light", "arguments": '{"room": "hall"}'}}, {"functions": [TOOL["function"]]}),
        ({"tool_calls": [CALL], "function_call": None}, {"tools": [{"functionDeclarations": [TOOL["function"]]}]}),
        ({"tool_calls": [CALL]}, {"tools": [{"type": "function", "function": {**TOOL["function"], "parameters": json.dumps(SCHEMA)}}]}),  # noqa: E501
    ],
)  # fmt: skip
def test_calls_and_tools_in_every_form(tmp_path: Path, calls: dict[str, Any], tools: dict[str, Any]) -> None:
    record = row_of(tmp_path, {"messages": [USER, {"role": "assistant", "content": None, **calls}], **tools})
    assert record.messages == [USER, CALLED] and record.tools == [TOOL] and not record.unused


def test_geminis_calls_and_results(tmp_path: Path) -> None:
    contents = [
        {"role": "user", "parts": [{"text": "Light on in "}, {"text": "the hall."}]},
        {"role": "model", "parts": [{"functionCall": {"name": "set_light", "args": {"room": "hall"}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "set_light", "response": {"ok": True}}}]},
        {"role": "model", "parts": [{"text": "Hm.", "thought": True}, {"text": "Done."}]},
    ]
    record = row_of(tmp_path, {"contents": contents, "system_instruction": {"parts": {"text": "Be brief."}}})
    assert record.messages == [
        {"role": "system", "content": "Be brief."}, USER, CALLED,
        {"role": "tool", "content": {"ok": True}, "name": "set_light"},
        {"role": "assistant", "content": "Done.", "reasoning_content": "Hm."},
    ]  # fmt: skip
    contents[0]["parts"] = [{"inlineData": {"mimeType": "image/png", "data": "…"}}]
    assert "message 1: image: this isn't base64" in refused(tmp_path, {"contents": contents})


def test_nulls_of_calls(tmp_path: Path) -> None:
    """A null that the schema allows, or that stands in JSON text, is the author's own."""
    properties = {
        "room": {"type": "string"},
        "until": {"type": ["string", "null"]},
        "more": {"type": "object", "properties": {"a": {"type": "string"}}},
    }
    tool = {
        "type": "function",
        "function": {"name": "set_light", "parameters": {"type": "object", "properties": properties}},
    }
    given = {"room": "hall", "until": None, "title": None, "more": {"a": None, "b": None}}

    def arguments(value: Any, tools: Any) -> Any:
        call = {"type": "function", "function": {"name": "set_light", "arguments": value}}
        record = row_of(tmp_path, {"messages": [USER, {"role": "assistant", "tool_calls": [call]}], "tools": tools})
        assert record.messages
        return record.messages[1]["tool_calls"][0]["function"]["arguments"], record.unused

    noted = ("messages.tool_calls.function.arguments (nulls)",)
    assert arguments(given, [tool]) == ({"room": "hall", "until": None, "more": {}}, noted)
    assert arguments(given, None) == ({"room": "hall", "more": {}}, noted)
    assert arguments(json.dumps(given), [tool]) == (given, ())


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_no_json(tmp_path: Path, value: str) -> None:
    for arguments in (f'{{"percent": {value}}}', json.dumps(f'{{"percent": {value}}}')):
        call = f'{{"type": "function", "function": {{"name": "f", "arguments": {arguments}}}}}'
        row = f'{{"messages": [{{"role": "user", "content": "a"}}, {{"role": "assistant", "tool_calls": [{call}]}}]}}'
        file = write(tmp_path / "row.jsonl", row)
        assert "not valid in JSON" in refusal(DataConfig(train_file=file))


@pytest.mark.parametrize(
    "token", ["<pad>", "<unk>", "<mask>", "<start_of_image>", "<image_soft_token>", "<audio_soft_token>"]
)
def test_tokens_that_no_text_may_hold(tmp_path: Path, token: str) -> None:
    assert f"holds {token}" in refused(tmp_path, {"prompt": "Hi", "completion": f"It is {token}."})
    assert f"holds {token}" in refused(tmp_path, {"text": f"It is {token}."})


@pytest.mark.parametrize(
    "text",
    [
        "<|turn>user\nHi<turn|>\n", "<|im_start|>user\nHi<|im_end|>", "[INST] Hi [/INST] Hello", "### Human: Hi\n### Assistant: Hello",  # noqa: E501
        "Below is an instruction.\n\n### Instruction:\nHi\n\n### Response:\nHello", "<|user|>\nHi\n<|assistant|>\nHello",  # noqa: E501
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    ],
)  # fmt: skip
def test_text_that_is_a_rendered_chat(tmp_path: Path, text: str) -> None:
    assert "the turns of a chat" in refused(tmp_path, {"text": text})


def test_running_text_is_no_guess_beside_other_columns(tmp_path: Path) -> None:
    message = refused(tmp_path, {"conversation": "1", "time": "2026-01-01", "sender": "ann", "text": "Hi"})
    assert "data=chat_log data.sender_column=sender data.message_column=text" in message
    assert "data=text, which doesn't use url" in refused(tmp_path, {"text": "Once", "url": "x"})
    assert row_of(tmp_path, {"text": "Once", "url": "x"}, ignore_fields=["url"]).text == "Once"
    assert row_of(tmp_path, {"body": "Once", "url": "x"}, text_column="body").unused == ("url",)


def test_a_chat_log(tmp_path: Path) -> None:
    rows = [
        ("2", "10", "ann", "Hello?"), ("1", "12", "agent", "Try again."), ("1", "9", "agent", "Welcome."),
        ("1", "10", "bob", "It is"), ("1", "11", "bob", "broken."), ("2", "11", "agent", "Hi."),
    ]  # fmt: skip
    file = tmp_path / "log.csv"
    file.write_text("conversation,time,sender,text\n" + "\n".join(map(",".join, rows)), encoding="utf-8")
    second, first = read(file, format="chat_log", time_column="time", assistant_senders=["agent"])
    assert first.messages == [USER | {"content": "It is\nbroken."}, {"role": "assistant", "content": "Try again."}]
    assert first.unused == ("messages before the user's first",) and first.where == f"{file}:3"
    assert second.messages == [USER | {"content": "Hello?"}, {"role": "assistant", "content": "Hi."}]
    (unordered,) = read(file, format="chat_log", assistant_senders=["agent"], on_bad_row="skip")
    assert unordered.unused == ("time",) and unordered.messages == second.messages
    for keys, says in (
        ({}, "the sender 'ann' is no known role"),
        ({"assistant_senders": ["bot"]}, "its senders: ann, agent. Name those of the assistant"),
        ({"sender_column": "who"}, "Set data.sender_column."),
        ({"time_column": "text", "assistant_senders": ["agent"]}, "no number and no time"),
        ({"conversation_column": "id"}, "Set data.conversation_column."),
    ):
        assert says in refusal(DataConfig(format="chat_log", train_file=str(file), **keys))  # type: ignore[arg-type]


def test_nested_fields_and_numbers(tmp_path: Path) -> None:
    keys = {"format": "columns", "prompt_column": "ticket.question.text", "completion_column": "answers.text.0"}
    row = {"ticket": {"question": {"text": "2+2?", "id": 7}, "by": "ann"}, "answers": {"text": [4, "four"]}}
    record = row_of(tmp_path, row, **keys)
    assert record.messages == [USER | {"content": "2+2?"}, {"role": "assistant", "content": "4"}]
    assert record.unused == ("ticket.question.id", "ticket.by", "answers.text.1")
    literal = row_of(tmp_path, {**row, "ticket.question.text": "3+3?"}, **keys)
    assert literal.messages and literal.messages[0]["content"] == "3+3?" and "ticket" in literal.unused
    cell = row_of(tmp_path, {**row, "ticket": json.dumps(row["ticket"])}, **keys)
    assert cell.messages == record.messages
    assert "no field 'ticket.question.text'" in refused(tmp_path, {"ticket": 1, "answers": {"text": ["4"]}}, **keys)


@pytest.mark.parametrize("column", ["completion", "chosen", "rejected", "messages"])
def test_lists_as_python_and_numpy_print_them(tmp_path: Path, column: str) -> None:
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It's so."}]
    row = {"completion": {"prompt": "Why?", "completion": str(said[1:])}, "messages": {"messages": str(said)}}.get(
        column, {"prompt": "Why?", "chosen": "Yes.", "rejected": "No.", column: str(said[1:])}
    )
    record = row_of(tmp_path, row)
    assert said[1] in [*(record.messages or ()), *(record.rejected or ())]
    numpy = str(said).replace("}, {", "}\n {")
    printed = (
        numpy
        if column == "messages"
        else "[{'role': 'assistant', 'content': 'So.'}\n {'role': 'user', 'content': 'a'}]"
    )
    assert refused(tmp_path, {**row, column: printed})


def test_the_last_answer_alone(tmp_path: Path) -> None:
    row = {"messages": [USER, {"role": "assistant", "content": "One."}, USER, {"role": "assistant", "content": "Two."}]}
    assert trained(row_of(tmp_path, row)) == ["One.", "Two."]
    assert trained(row_of(tmp_path, row, answers="last")) == ["Two."]


def test_the_advice_names_what_it_leaves_out(tmp_path: Path) -> None:
    row = {"query": "a", "response": "b", "context": "c", "tools": "[]", "history": "[]", "system": "d"}
    message = refused(tmp_path, row)
    assert "data.prompt_column=query data.completion_column=response data.system_column=system" in message
    assert message.endswith("which doesn't use context.")
    assert "data.messages_column=talk" in refused(tmp_path, {"talk": [USER]})


USER_SAID = {"from": "human", "value": "x"}


@pytest.mark.parametrize("answer", [
    {"from": "gpt", "value": "BAD"}, {"role": "model", "content": "BAD"}, {"role": "Assistant ", "content": "BAD"},
    {"role": None, "from": "gpt", "value": "BAD"},
])  # fmt: skip
def test_answers_before_the_last_under_any_name(tmp_path: Path, answer: dict[str, Any]) -> None:
    prompt = [USER_SAID, answer, USER_SAID]
    assert trained(row_of(tmp_path, {"prompt": prompt, "completion": "c"})) == ["c"]
    keys = {"format": "columns", "prompt_column": "q", "completion_column": "a"}
    assert trained(row_of(tmp_path, {"q": prompt, "a": "c"}, **keys)) == ["c"]
    last = {"role": "assistant", "content": "c"}
    for said in ([*prompt, last], [json.dumps(m) for m in [*prompt, last]]):
        assert trained(row_of(tmp_path, {"id": "x", "messages": said, "loss_mask": [0, 1]})) == ["c"]
        assert "every answer is switched off" in refused(tmp_path, {"id": "x", "messages": said, "train": 0})
        beside = {"system": "S", "history": [["a", "b"]]}
        assert trained(row_of(tmp_path, {"id": "x", "messages": said, "loss_mask": [0, 0, 0, 1], **beside})) == [
            "b",
            "c",
        ]


@pytest.mark.parametrize("label", [0.0, "0.0", "no"])
@pytest.mark.parametrize("name", ["label", "kto_tag", "desirable"])
def test_labels_of_tables(tmp_path: Path, name: str, label: Any) -> None:
    assert "a bad one" in refused(tmp_path, {"prompt": "p", "completion": "bad", name: label})


def test_a_switch_that_a_format_cannot_honour(tmp_path: Path) -> None:
    pair = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
    log = {"conversation": "1", "sender": "user", "text": "a"}
    for row, keys in ((pair, {}), (log, {"format": "chat_log"}), ({"text": "a"}, {"format": "text"})):
        assert "aren't to be trained" in refused(tmp_path, {**row, "train": False}, **keys)
        assert "aren't to be trained" not in refused(tmp_path, {**row, "images": ["a"]}, **keys)


@pytest.mark.parametrize(
    "text",
    ["### Human: hi### Assistant: yo", "USER: hi ASSISTANT: yo", "Human: hi\n\nAssistant: yo",
     "[{'role': 'user', 'content': 'a'}\n {'role': 'assistant', 'content': 'b'}]"],
)  # fmt: skip
def test_text_that_is_a_chat_in_words(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, {"text": text})
    assert row_of(tmp_path, {"text": "# Manual\n### User guide\n...\n### Response codes"}).text


@pytest.mark.parametrize("schema", [{"anyOf": 5}, {"oneOf": True}, {"type": ["string", "null"]}])
def test_odd_schemas_and_depths_are_no_tracebacks(tmp_path: Path, schema: dict[str, Any]) -> None:
    tool = {"name": "f", "input_schema": {"type": "object", "properties": {"a": schema}}}
    call = {"name": "f", "arguments": {"a": None}}
    record = row_of(tmp_path, {"messages": [USER, {"role": "assistant", "tool_calls": [call]}], "tools": [tool]})
    assert record.tools and record.tools[0]["function"]["parameters"] == tool["input_schema"]
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"a": deep}
    call = {"name": "f", "arguments": deep | {"b": 1}}
    assert "nested too deeply" in refused(tmp_path, {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]})


def test_results_by_number_and_calls_one_by_one(tmp_path: Path) -> None:
    calls = [
        {"role": "assistant", "tool_calls": [{"id": i, "name": n, "arguments": {}}]} for i, n in ((1, "f"), (2, "g"))
    ]
    results = [{"role": "tool", "tool_call_id": i, "content": str(i)} for i in (2, 1)]
    record = row_of(tmp_path, {"messages": [USER, *calls, *results, {"role": "assistant", "content": "Done."}]})
    assert record.messages and len(record.messages) == 5 and len(record.messages[1]["tool_calls"]) == 2
    assert [m["name"] for m in record.messages if m["role"] == "tool"] == ["g", "f"]
    for bad in ({"name": "f", "kwargs": {"a": 1}}, {"name": "f", "arguments": {}, "args": {"a": 1}}):
        assert "under `arguments` alone" in refused(
            tmp_path, {"messages": [USER, {"role": "assistant", "tool_calls": [bad]}]}
        )
    inside = {"function": {"name": "f"}, "arguments": {"a": 1}}
    record = row_of(tmp_path, {"messages": [USER, {"role": "assistant", "tool_calls": [inside]}]})
    assert record.messages and record.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}


def test_answers_that_are_json_stay_texts(tmp_path: Path) -> None:
    for text in (
        '{"role": "engineer", "content": "lead"}',
        '{"role":"assistant","content":"lead","shift":"night"}',
        '[{"role": "CEO"}] who?',
    ):
        assert trained(row_of(tmp_path, {"prompt": "Extract the job", "completion": text})) in ([text], ["lead"])
    assert trained(row_of(tmp_path, {"prompt": "a", "completion": '{"role": "engineer", "x": 1}'})) == [
        '{"role": "engineer", "x": 1}'
    ]


def test_empty_cells_say_nothing(tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "b", "images": [], "tools": [], "system": "", "videos": [None], "functions": [TOOL],  # noqa: E501
           "system_prompt": "S", "history": "nan", "weight": "nan", "function_call": {"name": None, "arguments": None}}  # fmt: skip  # noqa: E501
    record = row_of(tmp_path, row)
    assert record.tools == [TOOL] and record.messages and record.messages[0] == {"role": "system", "content": "S"}
    assert not record.unused and record.missing == ("history",)


def test_a_system_text_of_the_prompt_of_pairs(tmp_path: Path) -> None:
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}]
    sides = {name: [prompt[1], {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    assert row_of(tmp_path, {"prompt": prompt, **sides}).prompt == prompt


@pytest.mark.parametrize(
    "turn",
    [
        [{"human": "Why?", "assistant": "So."}], [{"User": "Why?", "AI": "So."}], [{"input": "Why?", "output": "So."}],
        [{"speaker": "user", "text": "Why?"}, {"speaker": "bot", "text": "So."}],
        [{"author": "user", "content": "Why?"}, {"author": "Chatbot", "content": "So."}],
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["conversation", "conversations", "turns", "messages"])
def test_other_names_of_roles(tmp_path: Path, turn: list[Any], name: str) -> None:
    so = {"role": "assistant", "content": "So."}
    record = row_of(tmp_path, {name: [*turn, *[{**m, "x": 1} for m in turn]], "loss_mask": [0, 1]})
    assert record.messages == [WHY, {**so, "weight": 0}, WHY, so] and record.unused == (f"{name}.x",)


def test_turns_under_the_names_of_roles(tmp_path: Path) -> None:
    """As XTuner and others write them; a name of a role that isn't one is no message."""
    first = {"system": "Be brief.", "input": "Why?", "output": "So.", "id": 7}
    record = row_of(tmp_path, {"conversation": [first, {"system": "", "input": "And?", "output": "Thus."}]})
    assert record.messages == [
        {"role": "system", "content": "Be brief."}, WHY, {"role": "assistant", "content": "So."},
        {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Thus."},
    ]  # fmt: skip
    assert record.unused == ("conversation.id",)
    assert trained(row_of(tmp_path, {"prompt": [{"user": "a", "assistant": "b"}, {"role": "user", "content": "c"}],
                                     "completion": "d"})) == ["d"]  # fmt: skip
    for odd in (
        {"user": "Why?", "assistant": "So.", "model": "v4"},
        {"assistant": "So."},
        {"user": "Why?", "assistant": 5},
    ):
        assert "has the role None" in refused(tmp_path, {"conversation": [odd]})


@pytest.mark.parametrize(
    ("asked", "says", "unused"),
    [
        ({"question": "Why?"}, "Why?", ()), ({"instruction": "Why?", "input": "Now."}, "Why?\n\nNow.", ()),
        ({"query": "Why?", "input": "x"}, "Why?", ("input",)),
        ({"prompt": "Why?", "question": "x"}, "Why?", ("question",)),
    ],
)  # fmt: skip
def test_pairs_whose_prompt_has_another_name(tmp_path: Path, asked: Any, says: str, unused: tuple[str, ...]) -> None:
    record = row_of(tmp_path, {"system": "S", **asked, "chosen": "So.", "rejected": "No."})
    assert record.prompt[1:] == [{"role": "user", "content": says}] and record.unused == unused
    whole = [WHY, {"role": "assistant", "content": "So."}]  # its own prompt
    record = row_of(tmp_path, {"question": "x", "chosen": whole, "rejected": [WHY, {**whole[1], "content": "No."}]})
    assert record.prompt == [WHY] and record.unused == ("question",)


@pytest.mark.parametrize("name", ["sample_weight", "sample_weights", "example_weight"])
def test_weights_of_rows(tmp_path: Path, name: str) -> None:
    row = {"prompt": "Why?", "completion": "So."}
    assert row_of(tmp_path, {**row, name: 1.0}).unused == (name,)
    for value in (0, 0.5, "0", [1, 0]):
        assert f"'{name}' weighs the row" in refused(tmp_path, {**row, name: value})
