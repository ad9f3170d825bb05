"""Preference pairs: every form read, bad rows refused by file and line, rendered as the chats are, cut and counted."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from forms_at_hand import each_form, tokenizer_of
from row_files import ONE_BAD, read_records, refusal, turn, write
from transformers import AutoTokenizer

from gemma_tune.chat import FORMS, render_chat, render_prompt
from gemma_tune.config import DataConfig
from gemma_tune.data.pairs import find_pairs, load_pairs, render_pair
from gemma_tune.data.records import Record
from gemma_tune.errors import UserError
from gemma_tune.run.paths import ASSETS

PREFERENCES = ASSETS / "preferences"
ASKED = [{"role": "user", "content": "Why?"}]
CALL = {"name": "f", "arguments": {"a": 1}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ASSETS / "tiny")


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def read(path: Path, *rows: Any, form: str = "preference") -> list[Record]:
    records, _ = read_records(DataConfig(format=form, train_file=write(path / "pairs.jsonl", *rows)), seed=0)
    return records


WRITTEN = {
    "texts": {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
    "messages": {"prompt": ASKED, "chosen": said("So."), "rejected": said("No.")},
    "implicit prompt": {"chosen": turn("Why?", "So."), "rejected": turn("Why?", "No.")},
    "a null for the prompt": {"prompt": None, "chosen": turn("Why?", "So."), "rejected": turn("Why?", "No.")},
    "a prompt and whole conversations": {
        "prompt": "Why?", "chosen": turn("Why?", "So."), "rejected": turn("Why?", "No."),
    },
    "lists in cells of a table": {
        "prompt": json.dumps(ASKED), "chosen": json.dumps(said("So.")), "rejected": json.dumps(said("No.")),
    },
}  # fmt: skip


@pytest.mark.parametrize("form", ["preference", "auto"])
@pytest.mark.parametrize("row", WRITTEN.values(), ids=WRITTEN)
def test_forms_give_the_same_pair(tmp_path: Path, row: dict[str, Any], form: str) -> None:
    (record,) = read(tmp_path, row, form=form)
    assert (record.messages, record.rejected) == (turn("Why?", "So."), said("No."))
    assert record.prompt == ASKED and record.where.endswith("pairs.jsonl:1")


def test_tools_system_text_and_earlier_answers(tmp_path: Path) -> None:
    """Earlier answers are history: they weigh nothing, and stand in the prompt of both."""
    begin = [*turn("One?", "1.", system="Be short."), *ASKED]
    (record,) = read(tmp_path, {"prompt": begin, "chosen": "So.", "rejected": "No.", "tools": [TOOL]})
    assert record.tools == [TOOL]
    assert [(m["role"], m.get("weight")) for m in record.messages or ()] == [
        ("system", None), ("user", None), ("assistant", 0), ("user", None), ("assistant", None),
    ]  # fmt: skip
    assert record.rejected == said("No.")


BAD = {
    "the same answer": ({"prompt": "Why?", "chosen": "So.", "rejected": " So. "}, "the same answer"),
    "an empty answer": ({"prompt": "Why?", "chosen": "So.", "rejected": "  "}, "'rejected' is empty"),
    "an empty answer as a message": ({"prompt": "Why?", "chosen": said(""), "rejected": "No."}, "answer is empty"),
    "no prompt": ({"chosen": "So.", "rejected": "No."}, "no field 'prompt', and chosen is an answer alone"),
    "no rejected": ({"prompt": "Why?", "chosen": "So."}, "no field 'rejected'"),
    "other prompts": ({"chosen": turn("Why?", "So."), "rejected": turn("Who?", "No.")}, "part at message 1 already"),
    "a turn more": (
        {"chosen": [*turn("Why?", "So."), *turn("Why?", "So.")], "rejected": turn("Why?", "No.")},
        "part at message 2 already",
    ),
    "roles": ({"prompt": ASKED * 2, "chosen": "So.", "rejected": "No."}, "roles must alternate"),
    "no answer at the end": ({"prompt": "Why?", "chosen": [*said("So."), *ASKED], "rejected": "No."}, "end with an"),
    "another prompt beside": (
        {"prompt": "Who?", "chosen": turn("Why?", "So."), "rejected": turn("Why?", "No.")},
        "what the field 'prompt' asks isn't in it",
    ),
    "a number": ({"prompt": "Why?", "chosen": {"a": 3}, "rejected": "No."}, "neither a text nor a list"),
    "a control token": ({"prompt": "Why?", "chosen": "So.", "rejected": "<end_of_turn>"}, "holds <end_of_turn>"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD.values(), ids=BAD)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    file = write(tmp_path / "pairs.jsonl", WRITTEN["texts"], row)
    found = refusal(DataConfig(format="preference", train_file=file))
    assert found.startswith(f"{file}:2: ") and message in found


def test_rows_that_are_no_pairs_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "chats.jsonl", {"messages": turn("Why?", "So.")})
    with pytest.raises(UserError, match=rf"^{file}:1: this row is not a pair"):
        load_pairs(DataConfig(train_file=file), tokenizer, 64, seed=0)


def test_rendered_as_the_chats_are(tmp_path: Path, tokenizer: Any) -> None:
    """One <bos>, the stop token at the end of both answers and nothing after it, labels on the answers alone."""
    rows = [WRITTEN["texts"], {"prompt": [*turn("One?", "1."), *ASKED], "chosen": "So it is.", "rejected": "No."}]
    file = write(tmp_path / "pairs.jsonl", *rows)
    data = DataConfig(format="preference", train_file=file)
    train, held_out = load_pairs(data, tokenizer, 512, seed=0)
    for_reward, _ = load_pairs(data, tokenizer, 512, seed=0, for_reward=True)
    assert len(held_out.rendered) == 0 and list(for_reward.rendered) == list(train.rendered)
    stop = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    for i, record in enumerate(train.records):
        ids, joined = train.dataset[i], for_reward.dataset[i]
        assert ids["prompt_ids"] == render_prompt(tokenizer, record.prompt)
        for name, answer in (("chosen", (record.messages or [])[-1:]), ("rejected", record.rejected or [])):
            own = ids[f"{name}_ids"]
            assert own[-1] == stop and own.count(stop) == 1
            assert tokenizer.decode(own[:-1]) == answer[0]["content"]
            whole = render_chat(tokenizer, [*record.prompt, *answer])
            assert joined[f"{name}_ids"] == [*ids["prompt_ids"], *own] == whole.input_ids[: len(joined[f"{name}_ids"])]
            assert [label for label in whole.labels if label != -100] == own
        row = train.rendered[i]
        assert row.input_ids == joined["chosen_ids"] and row.input_ids.count(tokenizer.bos_token_id) == 1
        assert row.labels == [-100] * len(ids["prompt_ids"]) + ids["chosen_ids"]
    counted = [len(for_reward.dataset[i][f"{side}_ids"]) for i in range(2) for side in ("chosen", "rejected")]
    assert train.tokens == sum(counted) and train.longest == max(counted)


def test_long_pairs_are_cut_or_dropped(tmp_path: Path, tokenizer: Any) -> None:
    """The prompt stays, the answers lose their end, what doesn't differ any more is dropped; a score is never cut."""
    rows = [
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"prompt": "Why?", "chosen": "So it is and so it was.", "rejected": "No, it was not and will not be so."},
        {"prompt": "Why?", "chosen": f"{'a ' * 40}b", "rejected": f"{'a ' * 40}c"},
        {"prompt": "Why? " * 40, "chosen": "So.", "rejected": "No."},
    ]
    data = DataConfig(format="preference", train_file=write(tmp_path / "pairs.jsonl", *rows))
    whole, _ = load_pairs(data, tokenizer, 512, seed=0)
    longest = len(whole.dataset[0]["prompt_ids"]) + len(whole.dataset[0]["rejected_ids"]) + 4
    cut, _ = load_pairs(data, tokenizer, longest, seed=0)
    assert (cut.read, len(cut.rendered), cut.cut) == (4, 2, 1)
    assert [w.rpartition(":")[2] for w in cut.dropped] == ["3", "4"]
    assert cut.dataset[1]["prompt_ids"] == whole.dataset[1]["prompt_ids"]
    for name in ("chosen_ids", "rejected_ids"):
        assert cut.dataset[1][name] == whole.dataset[1][name][: longest - len(whole.dataset[1]["prompt_ids"])]
    assert any("pairs don't differ within train.max_length" in note for note in cut.notes("training rows"))
    never, _ = load_pairs(data, tokenizer, longest, seed=0, for_reward=True)
    assert (len(never.rendered), never.cut, len(never.dropped)) == (1, 0, 3)
    with pytest.raises(UserError, match=r"none of 4 pairs fits into train\.max_length=8"):
        load_pairs(data, tokenizer, 8, seed=0)


def test_rows_of_a_step_are_found(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": f"Why {n}?", "chosen": "So.", "rejected": "No."} for n in range(4)]
    data = DataConfig(format="preference", train_file=write(tmp_path / "pairs.jsonl", *rows))
    train, _ = load_pairs(data, tokenizer, 512, seed=0, for_reward=True)
    wanted = [train.dataset[2]["rejected_ids"], train.dataset[1]["chosen_ids"]]
    assert [w.rpartition(":")[2] for w in find_pairs(data, tokenizer, 512, wanted)] == ["2", "3"]


def test_a_reader_of_the_users(tmp_path: Path) -> None:
    reader = tmp_path / "mine.py"
    reader.write_text(
        "from gemma_tune.data.records import Record\n"
        "def read(source, data):\n"
        "    for n, worse in enumerate(('No.', 'So.')):\n"
        "        m = [{'role': 'user', 'content': 'Why?'}, {'role': 'assistant', 'content': 'So.'}]\n"
        "        yield Record(f'{source}:{n + 1}', messages=m, rejected=[{'role': 'assistant', 'content': worse}])\n",
        encoding="utf-8",
    )
    file = write(tmp_path / "rows.any", "x")
    found = refusal(DataConfig(format=f"{reader}:read", train_file=file))
    assert found == f"{file}:2: chosen and rejected are the same answer; there is nothing to prefer.{ONE_BAD}"


def rows_of(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (PREFERENCES / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ASSETS)  # as when it is run
    spec = importlib.util.spec_from_file_location("make_preferences", ASSETS / "make_preferences.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_writes_the_sample(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_preferences.py", "--seed", "0", "--out", str(tmp_path)])
    script.main()
    for split in ("train", "test"):
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (PREFERENCES / f"{split}.jsonl").read_bytes()


def test_the_sample_is_what_it_says() -> None:
    """No prompt of the test in training, the chosen answer right by its tools, the rejected one wrong by its kind."""
    asked = {s: {row["prompt"][0]["content"].lower() for row in rows_of(s)} for s in ("train", "test")}
    assert len(asked["train"]) == 400 and len(asked["test"]) == 200 and not asked["train"] & asked["test"]
    kinds: Counter[str] = Counter()
    for row in [*rows_of("train"), *rows_of("test")]:
        declared = {t["function"]["name"]: t["function"]["parameters"]["properties"] for t in row["tools"]}
        right, wrong = ((row[side][0].get("tool_calls") or [None])[0] for side in ("chosen", "rejected"))
        right, wrong = (call and call["function"] for call in (right, wrong))
        kinds[row["mistake"]] += 1
        if right is None:
            assert row["mistake"] == "call" and wrong["name"] in declared
            continue
        assert right["arguments"].keys() == declared[right["name"]].keys()
        if row["mistake"] == "apology":
            assert wrong is None
            continue
        same = wrong["name"] == right["name"]
        more, less = (
            wrong["arguments"].keys() - right["arguments"].keys(),
            right["arguments"].keys() - wrong["arguments"].keys(),
        )
        changed = [k for k, v in wrong["arguments"].items() if k in right["arguments"] and v != right["arguments"][k]]
        found = {
            "wrong_value": same and not more and not less and len(changed) == 1,
            "wrong_tool": not same and wrong["name"] in declared,
            "missing": same and not more and len(less) == 1 and not changed,
            "extra": same and len(more) == 1 and not less and not changed,
            "wrong_name": same and len(more) == len(less) == 1 and not changed,
            "as_text": same and not more and not less and len(changed) == 1,
        }
        assert found[row["mistake"]], row
    assert min(kinds.values()) > 60 and len(kinds) == 8


@each_form
@pytest.mark.parametrize("with_tools", [False, True])
def test_every_form_begins_both_answers_with_the_prompt(name: str, with_tools: bool) -> None:
    """Of every family: the prompt as a server writes it, and an answer of labelled tokens up to the stop token."""
    chats, form = tokenizer_of(name), FORMS[name]
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}
    messages = [*turn("One?", "1."), *ASKED, call if with_tools else said("So.")[0]]
    record = Record("x:1", messages=messages, rejected=said("No, it is not."), tools=[TOOL] if with_tools else None)
    if with_tools and form.calls is None:
        pytest.skip("the form has no place for tools")
    pair = render_pair(record, chats)
    stops = chats.convert_tokens_to_ids(list(form.stop_tokens))
    for answer, ids in ((messages[-1:], pair.chosen), (record.rejected or [], pair.rejected)):
        whole = render_chat(chats, [*record.prompt, *answer], record.tools)
        assert whole.input_ids[: len(pair.prompt) + len(ids)] == [*pair.prompt, *ids]
        assert whole.labels[len(pair.prompt) : len(pair.prompt) + len(ids)] == ids and ids[-1] in stops
