"""What is refused or left out is said with its true reason and the setting that helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from forms_at_hand import tokenizer_of
from row_files import row_of, write

from gemma_tune.config import DataConfig
from gemma_tune.data.loading import load_held_out, load_rows
from gemma_tune.data.pairs import load_pairs
from gemma_tune.errors import UserError

ASK, SAY = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
OFF = [ASK, {**SAY, "weight": 1}, ASK, {**SAY, "weight": 0}]


def test_the_last_answer_alone_is_trained_and_switched_off(tmp_path: Path) -> None:
    said = r"the last answer, the only one to train with data\.answers=last, is switched off .* data\.answers=all"
    with pytest.raises(UserError, match=said):
        row_of(tmp_path, {"messages": OFF}, answers="last")
    assert row_of(tmp_path, {"messages": OFF}, answers="last", prompts_only=True).messages


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": OFF}, "messages"), ({"conversations": OFF}, "conversations"),
        ({"prompt": "a", "completion": "b"}, "prompt"), ({"prompt": "a", "completion": "b"}, "completion"),
        ({"instruction": "a", "output": "b"}, "output"), ({"text": "a"}, "text"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "prompt"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen"),
    ],
)  # fmt: skip
def test_a_field_that_the_format_needs_is_not_ignored(tmp_path: Path, row: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=f"the field '{name}' is what this format reads, and data.ignore_fields has it"):
        row_of(tmp_path, row, ignore_fields=[name])


THINKS = {**SAY, "reasoning_content": "Hm."}


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"messages": [ASK, THINKS]}, ["messages.reasoning_content"]),
        ({"conversations": [ASK, {**SAY, "thinking": "Hm."}, ASK, THINKS]},
         ["conversations.thinking", "conversations.reasoning_content"]),
        ({"prompt": "Why?", "completion": "So.", "reasoning": "Hm."}, ["reasoning"]),
        ({"prompt": "Why?", "chosen": [THINKS], "rejected": "No."}, ["chosen.reasoning_content"]),
    ],
)  # fmt: skip
def test_thinking_that_the_model_has_no_place_for(tmp_path: Path, row: dict[str, Any], names: list[str]) -> None:
    """The setting that is named reads the row."""
    data = DataConfig(train_file=write(tmp_path / "rows.jsonl", row))
    loads = [load_pairs, load_rows] if "chosen" in row else [load_rows]
    for load in loads:
        data.ignore_fields = []
        with pytest.raises(UserError) as caught:
            load(data, tokenizer_of("gemma3"), 64, 0)
        assert str(caught.value).endswith(f" data.ignore_fields=[{','.join(names)}] reads the rows without it.")
        data.ignore_fields = names
        assert load(data, tokenizer_of("gemma3"), 64, 0)[0].read == 1


@pytest.mark.parametrize("copies", [1, 2])
def test_pairs_where_only_the_better_answer_is_used(tmp_path: Path, copies: int) -> None:
    rows = [{"prompt": f"Why {i}?", "chosen": "So.", "rejected": "No."} for i in range(copies)]
    data = DataConfig(train_file=write(tmp_path / "rows.jsonl", *rows, {"prompt": "a", "chosen": "b", "rejected": "c"}))
    data = DataConfig(train_file=data.train_file, validation_file=data.train_file, max_train_samples=copies)
    train, held_out = load_rows(data, tokenizer_of("gemma3"), 64, 0)
    which = "1 row has" if copies == 1 else "2 rows have"
    (said,) = [note for note in train.notes("training rows") if "recipe=dpo" in note]
    assert said.startswith(f"training rows: {which} a worse answer, too (rejected), which isn't used here; recipe=dpo")
    others = [
        held_out,
        load_held_out(data, tokenizer_of("gemma3"), 64, 0),
        *load_pairs(data, tokenizer_of("gemma3"), 64, 0),
    ]
    assert not [note for rows in others for note in rows.notes("rows") if "recipe=dpo" in note]


def test_no_row_with_an_answer_to_train(tmp_path: Path) -> None:
    """Not for want of length."""
    (tmp_path / "mine.py").write_text(
        "from gemma_tune.data.records import Record\n"
        "def read(path, data):\n"
        "    messages = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]\n"
        "    return [Record('x:1', messages=messages)]\n",
        encoding="utf-8",
    )
    data = DataConfig(format=f"{tmp_path}/mine.py:read", train_file=write(tmp_path / "rows.jsonl", {}))
    with pytest.raises(UserError, match=r"none of 1 row has a trained token within train\.max_length=3; raise it"):
        load_rows(data, tokenizer_of("gemma3"), 3, 0)
    data.prompts_only = True
    (tmp_path / "mine.py").write_text(
        (tmp_path / "mine.py").read_text("utf-8").replace("'b'", "'b', 'weight': 0"), encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"no row has an answer to train: each is switched off \(`weight`\), or empty"):
        load_rows(data, tokenizer_of("gemma3"), 64, 0)
