"""The advice of `data=auto`, followed to the letter, reads the row, and names what it doesn't use."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from row_files import read, refusal, write

from gemma_tune.config import DataConfig

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "So."}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOLS = [{"name": "f", "description": "d", "parameters": {"a": {"type": "str"}}}]
CALL = {"name": "f", "arguments": {"a": 1}}


def settings(message: str) -> dict[str, Any]:
    """The keys of the first advice in a message."""
    begin = message[re.search(": data=", message).start() + 2 :]  # type: ignore[union-attr]
    words = shlex.split(re.split(r", which doesn't use|[.;](?: |$)", begin)[0])
    found: dict[str, Any] = dict(word.removeprefix("data.").split("=", 1) for word in words)
    found["format"] = found.pop("data")
    return found | ({"prompts_only": True} if found.get("prompts_only") else {})


ROWS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "SQuAD": (
        {"id": "5", "title": "t", "context": "c", "question": "Why?",
         "answers": {"text": ["So."], "answer_start": [3]}},
        ("id", "title", "context", "answers.answer_start"),
    ),
    "verl": (
        {"data_source": "s", "prompt": [USER], "ability": "math",
         "reward_model": {"style": "rule", "ground_truth": "So."},
         "extra_info": {"split": "train", "index": 7}},
        ("data_source", "ability", "reward_model.style", "extra_info"),
    ),
    "verl with answers": (
        {"prompt": [SYSTEM, USER], "reward_model": {"ground_truth": 4},
         "extra_info": {"answer": "So.", "question": "q"}},
        ("extra_info",),
    ),
    "Nemotron": (
        {"input": [USER], "output": "So.", "category": "c", "reasoning": "on", "system_prompt": "Be brief."},
        ("category", "reasoning"),
    ),
    "Nemotron as text": ({"input": "Why?", "output": "So.", "license": "l"}, ("license",)),
    "TriviaQA": (
        {"question": "Why?", "question_id": 1, "answer": {"value": "So.", "aliases": ["Thus"]}},
        ("question_id", "answer.aliases"),
    ),
    "Natural Questions": ({"query": "Why?", "answers": ["So.", "Thus."]}, ("answers.1",)),
    "OpenOrca": ({"id": "x", "system_prompt": "Be brief.", "question": "Why?", "response": "So."}, ("id",)),
    "Dolly": ({"instruction": "Why?", "context": "c", "response": "So.", "category": "d"}, ("context", "category")),
    "xLAM": ({"id": 1, "query": "Why?", "answers": json.dumps([CALL]), "tools": json.dumps(TOOLS)}, ("id",)),
    "numbers": ({"question": "1+1?", "answer": 2, "level": "easy"}, ("level",)),
    "nested": ({"id": 1, "data": {"question": "Why?", "answer": "So."}}, ("id",)),
    "a conversation of another name": ({"id": 1, "talk": [USER, ANSWER], "system": "Be brief."}, ("id",)),
    "a conversation within": ({"id": 1, "in": {"messages": [USER, ANSWER], "tools": TOOLS, "n": 1}}, ("id", "in.n")),
    "a conversation as text": ({"id": 1, "talk": json.dumps([USER, ANSWER])}, ("id",)),
    "prompts": ({"id": 1, "talk": [SYSTEM, USER]}, ("id",)),
    "names with blanks": ({"id": 1, "the talk": [USER, ANSWER]}, ("id",)),
    "a message": ({"user": USER, "assistant": ANSWER, "n": 2}, ("n",)),
    "instruction": ({"instruction": "Why?", "input": "x", "response": "So."}, ("input",)),
    "running text": ({"text": "Once.", "url": "u", "score": 0.5}, ("url", "score")),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_the_advice_reads_the_row(tmp_path: Path, name: str) -> None:
    row, unused = ROWS[name]
    file = write(tmp_path / "rows.jsonl", row)
    message = refusal(DataConfig(train_file=file))
    (record,) = read(file, **settings(message))
    assert record.unused == unused
    said = str([record.messages, record.text])
    assert any(text in said for text in ("Why?", "1+1?", "Once.")) and (
        "Be brief." in said or "Be brief." not in str(row)
    )
    assert f"which doesn't use {', '.join(unused)}." in message


def test_a_system_column_may_be_empty(tmp_path: Path) -> None:
    rows = [{"system_prompt": text, "question": "Why?", "response": "So."} for text in ("Be brief.", "", None)]
    file = write(tmp_path / "rows.jsonl", *rows)
    found = read(file, **settings(refusal(DataConfig(train_file=file))))
    assert [len(r.messages or ()) for r in found] == [3, 2, 2]


def test_rows_without_a_way(tmp_path: Path) -> None:
    """Where nothing reads the row, the advice is a form to fill in."""
    rows = {
        "…": {"a": 1, "b": 2},
        "data.prompt_column=… data.completion_column=…, which doesn't use a, b.": {"a": 1, "b": 2},
        "data.prompt_column=question data.completion_column=….": {"question": "q"},
    }
    for said, row in rows.items():
        assert said in refusal(DataConfig(train_file=write(tmp_path / "rows.jsonl", row)))


def test_an_answer_that_the_first_row_lacks(tmp_path: Path) -> None:
    """As in SQuAD's second edition."""
    rows = [{"question": "Why?", "answers": {"text": text, "answer_start": []}, "id": 1} for text in ([], ["So."])]
    file = write(tmp_path / "rows.jsonl", *rows)
    message = refusal(DataConfig(train_file=file))
    assert message.endswith("data.prompt_column=question data.completion_column=answers.text.0, which doesn't use id.")
    (record,) = read(file, **settings(message), on_bad_row="skip")
    assert record.answer == "So."


@pytest.mark.parametrize("names", [("Question", "Answer"), ("QUESTION", "ANSWER"), ("Prompt", "Response")])
def test_names_in_any_letter_case(tmp_path: Path, names: tuple[str, str]) -> None:
    question, answer = names
    file = write(tmp_path / "rows.jsonl", {question: "Why?", answer: "So.", "Category": "x"})
    message = refusal(DataConfig(train_file=file))
    assert f"data.prompt_column={question} data.completion_column={answer}, which doesn't use Category." in message
    (record,) = read(file, **settings(message))
    assert record.messages == [USER, ANSWER]


def test_the_column_of_a_conversation(tmp_path: Path) -> None:
    """Told by names and by values: not what is the same in all rows, nor what is another in each."""
    rows = [
        {"chat_id": str(n), "case_id": "all", "created_at": f"2026-01-01T10:0{n}:00", "author": who, "body": said,
         "channel": "email", "Ticket_ID": f"t{n // 2}"}
        for n, (who, said) in enumerate([("ann", "Why?"), ("agent", "So."), ("bob", "Why?"), ("agent", "So.")])
    ]  # fmt: skip
    file = write(tmp_path / "log.jsonl", *rows)
    message = refusal(DataConfig(train_file=file))
    assert "data.conversation_column=Ticket_ID data.time_column=created_at;" in message
    found = read(file, **settings(message), assistant_senders=["agent"])
    assert [record.messages for record in found] == [[USER, ANSWER]] * 2
    others = [{key: value for key, value in row.items() if key != "Ticket_ID"} for row in rows]
    message = refusal(DataConfig(train_file=write(tmp_path / "others.jsonl", *others)))
    assert "data.conversation_column=" not in message and "conversation_column names the field" in message


def test_a_chat_log(tmp_path: Path) -> None:
    rows = [{"message_tree_id": "a", "role": r, "text": t} for r, t in (("prompter", "Why?"), ("assistant", "So."))]
    file = write(tmp_path / "rows.jsonl", *rows)
    found = settings(refusal(DataConfig(train_file=file)))
    assert found["conversation_column"] == "message_tree_id"
    (record,) = read(file, **found)
    assert record.messages == [USER, ANSWER]
    file = write(tmp_path / "people.jsonl", {"sender": "ann", "text": "Why?"})
    message = refusal(DataConfig(train_file=file))
    assert "data.conversation_column names" in message and "data.assistant_senders=[…]" in message


def test_a_field_without_a_name_is_not_advised(tmp_path: Path) -> None:
    """No key can name it."""
    file = write(tmp_path / "rows.jsonl", {"answer": "4", "": [{"role": "user", "content": "2+2?"}]})
    said = refusal(DataConfig(format="auto", train_file=file))
    assert "prompt_column= " not in said and "data.messages_column= " not in said and "data=" in said


def test_a_role_that_is_no_text(tmp_path: Path) -> None:
    """It can't be looked up among the known roles."""
    row = {"prompt": [{"content": "2+2?", "role": [None]}], "answer": "4"}
    file = write(tmp_path / "rows.jsonl", row)
    data = DataConfig(format="columns", train_file=file, prompt_column="prompt", completion_column="answer")
    assert "rows.jsonl:1" in refusal(data)
