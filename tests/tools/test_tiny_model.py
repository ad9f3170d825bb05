"""`python -m tools.tiny_model` for two steps: a whole model folder, evaluated, and below its limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.tiny_model.__main__ import main
from tools.tiny_model.measure import LIMITS

slow = pytest.mark.slow  # `make test-slow`: together they take minutes


@slow
def test_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--output", "built", "--documents", "300", "--max-steps", "2", "--max-samples", "8"]) == 1
    said = capsys.readouterr()
    assert "unseen spans copied right" in said.err
    figures = json.loads((tmp_path / "built" / "figures.json").read_text(encoding="utf-8"))
    assert figures["steps"] == 4 and set(LIMITS) <= set(figures["figures"])
    folder = tmp_path / "built" / "tiny"
    assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == 256
    assert AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "<eos>", "<bos>"]
    assert (folder / "chat_template.jinja").is_file() and (folder / "generation_config.json").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["built"]
    assert sorted(p.name for p in (tmp_path / "built").iterdir()) == ["figures.json", "tiny"]
    for what, _, _ in LIMITS.values():
        assert what.split(",")[0][:30] in said.out


@slow
def test_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--output", "built", "--documents", "50", "--dry-run"]) == 0
    assert "1,536 tokens, 5,118,976 weights" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--output"),
        (["--output", "."], "exists already"),
        (["--output", "built", "--documents", "0"], "at least 1"),
    ],
)
def test_mistakes(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert message in capsys.readouterr().err
