"""Test rows through a whole run: answered before, after and by the export; and every mistake in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from short_runs import short_run

from gemma_tune import UserError
from gemma_tune.cli.compose import compose_config
from gemma_tune.cli.runner import run_recipe
from gemma_tune.data.reading import read_tests

TESTED = ["eval.evaluators=[held_out_loss,answers]", "eval.max_new_tokens=8", "eval.max_samples=3"]
SMALL = ["data.max_train_samples=4", "data.max_eval_samples=2", "train.per_device_train_batch_size=1"]


@pytest.mark.slow
def test_a_run_with_test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    result = short_run("lora_sft", folder, *TESTED, *SMALL, "eval.num_samples=2", steps=1)
    assert result.headline["name"] == "test_exact_match"
    for figures in (result.metrics["before"], result.metrics["after"], result.metrics["export"]):
        assert 0 <= figures["test_exact_match"] <= 1 and 0 <= figures["new_phrasings_exact_match"] <= 1
        assert figures["test_rows"] == figures["new_phrasings_rows"] == 3
    for when in ("before", "after"):
        stored = json.loads((folder / "eval" / f"{when}.json").read_text("utf-8"))
        tests = {name: rows for name, rows in stored["rows"].items() if name != "held_out_loss"}
        named = {"test_exact_match": 3, "new_phrasings_exact_match": 3}
        assert {name: len(rows) for name, rows in tests.items()} == named
        assert not [row for rows in tests.values() for row in rows if row["score"] and not row["stopped"]]
        assert stored["answers"] == tests["test_exact_match"][:2]
        kept = stored["rows"]["held_out_loss"]
        mean = sum(row["score"] * row["weight"] for row in kept) / sum(row["weight"] for row in kept)
        assert mean == pytest.approx(stored["figures"]["held_out_loss"], rel=1e-9)
    said, report = capsys.readouterr().out, (folder / "report.md").read_text("utf-8")
    assert "test exact" in said and "new phrasings" in said and "%" in said
    assert "→ " in said  # the wanted calls, as calls
    assert "test_exact_match: " in report and "new_phrasings_stopped" in report


def test_null_leaves_one_out() -> None:
    cfg = compose_config("lora_sft", [*TESTED, "data.test_files.new_phrasings=null"])
    assert list(read_tests(cfg.data)) == ["test"]


def test_a_path_as_it_is_typed(tmp_path: Path) -> None:
    file = tmp_path / "a (b), c=1.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2."}]}\n')
    words = ["data=messages", f"data.train_file={file}", f"data.test_files.mine={file}"]
    assert compose_config("lora_sft", words).data.test_files == {"mine": str(file)}


@pytest.mark.parametrize(
    ("text", "reader", "message"),
    [
        ("", "messages", "data.test_files.mine=.*holds no rows"),
        ('{"messages": 3}\n', "messages", "mine.jsonl:1"),
        ('{"text": "a"}\n', "text", "running text"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, reader: str, message: str) -> None:
    file, train = tmp_path / "mine.jsonl", tmp_path / "train.jsonl"
    file.write_text(text)
    good = {"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2."}], "text": "a"}
    train.write_text(json.dumps(good) + "\n")
    words = [f"data={reader}", f"data.train_file={train}", f"data.test_files.mine={file}", "dry_run=true"]
    with pytest.raises(UserError, match=message):
        run_recipe(compose_config("lora_sft", words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.test_files.mine=nix.jsonl"], "data.test_files.mine=nix.jsonl: there is no such file"),
        (["data.test_files.a b=assets://sample/test.jsonl"], "can't be read|letters, digits"),
        (["data.train_file=README.md", "data.validation_file=README.md"], "some are yours"),
    ],
)  # fmt: skip
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_config("lora_sft", words)
