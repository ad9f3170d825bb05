"""`recipe=models`: the list is that of configs/model, a download says what stops it, an inspection what is wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import small_models
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

import gemma_tune
from gemma_tune.catalog import fetching
from gemma_tune.catalog.listing import known_models
from gemma_tune.cli.compose import compose_config
from gemma_tune.errors import UserError
from gemma_tune.run.paths import ASSETS, CONFIGS


@pytest.mark.slow
def test_the_list_is_what_the_files_say(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Name, place, context and licence as in the comment of each YAML, which were written from the Hub's pages."""
    result = gemma_tune.run("models")
    found = {one["model"]: one for one in result.metrics["models"]}
    assert found.keys() == {f.stem for f in (CONFIGS / "model").glob("*.yaml")} - {"tiny", "tiny_vision"}
    for name, one in found.items():
        text = (CONFIGS / "model" / f"{name}.yaml").read_text("utf-8")
        assert f"model_name_or_path: {one['hub']}\n" in text
        assert re.findall(r"context (\d+)K", text) == [str(one["context"] // 1024)]
        terms = {"Apache-2.0": "Apache-2.0", "Health AI Developer Foundations": "HAI-DEF"}
        assert one["licence"] == next((said for words, said in terms.items() if words in text), "Gemma")
    assert found["gemma3_27b_it"]["qlora_gb"] == 24
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    assert list(folder.iterdir()) == []


def test_a_checkpoint(tmp_path: Path) -> None:
    facts = inspected("assets://tiny")
    assert facts["family"] == "Gemma 3" and facts["template"].startswith("gemma3 ") and facts["towers"] == "none"
    assert facts["kind"] == "a checkpoint, no adapter" and "tokens" in facts["context"]
    with_towers = inspected(str(small_models.save("gemma3", tmp_path / "medgemma-4b-it")))
    assert "for images or audio, loaded for rows with media" in with_towers["towers"]
    assert facts["licence"].startswith("Gemma,") and with_towers["licence"].startswith("HAI-DEF,")


def inspected(name: str) -> dict[str, str]:
    result = gemma_tune.run("models", [f"models.inspect={name}"])
    assert result.metrics["problems"] == [] and result.failures == {}
    return dict(result.metrics["facts"])


def test_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each fault alone, with all that can be said beside it."""
    for name, spoil, said in (
        ("cut", cut_off, "not fully covered"),
        ("tokenizer", lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer"),
        ("family", lambda f: change(f, model_type="llama"), "its model_type is llama"),
        ("layers", lambda f: change(f, num_hidden_layers=40, layer_types=["full_attention"] * 40), "missing"),
    ):
        place = tmp_path / name
        shutil.copytree(ASSETS / "tiny", place)
        spoil(place)
        result = gemma_tune.run("models", [f"models.inspect={place}"])
        assert any(said in problem for problem in result.metrics["problems"]), (name, result.metrics)
        assert all("model.model_name_or_path" not in problem for problem in result.metrics["problems"])
        assert result.failures
    assert "✗ models.inspect=" in capsys.readouterr().out


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])


def change(folder: Path, **values: Any) -> None:
    stored = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(stored | values), encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["models.fetch=gemma3_1b"], "neither an option of model nor owner/name.*Did you mean gemma3_1b_"),
        (["models.fetch=gemma3_1b_it"], "^no network: models.fetch=google/gemma-3-1b-it: .*hf download"),
        (["models.inspect=gemma3_1b_it"], "^no network: models.inspect=google/gemma-3-1b-it: "),
        (["models.inspect=no/such/folder"], "^models.inspect=.*no/such/folder: there is no such model folder"),
        (["models.inspect=no_such.gguf"], "^models.inspect=.*no_such.gguf: there is no such file"),
        (["models.fetch=tiny"], "^models.fetch=tiny: the embedded model is part of the package"),
        (["models.fetch=assets://tiny"], "the embedded model is part of the package"),
        (["models.fetch=a/b", "models.inspect=a/b"], "both set"),
        (["models.revision=main"], "no effect without"),
        (["output_dir=x"], "output_dir has no effect"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        gemma_tune.run("models", words)


class Answer:
    """What the Hub's errors ask of a response."""

    status_code, headers, request, text = 403, {}, None, ""


def test_a_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is asked for, and what the Hub's refusals mean."""
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(fetching, "no_network", lambda: None)
    monkeypatch.setattr(fetching, "snapshot_download", download)
    result = gemma_tune.run("models", ["models.fetch=gemma3_1b_it", "models.revision=abc"])
    assert result.artifacts["model"] == str(tmp_path) and asked["name"] == "google/gemma-3-1b-it"
    assert asked["revision"] == "abc" and not any(p.endswith((".bin", ".gguf")) for p in asked["allow_patterns"])
    for error, said in (
        (GatedRepoError("no", response=Answer()), "accept the licence at https://huggingface.co/google/gemma-3-1b-it"),
        (RepositoryNotFoundError("no", response=Answer()), "the Hub has no such model"),
        (OSError("Connection reset"), r"the download failed \(Connection reset\); the same command goes on"),
    ):

        def refuse(name: str, error: Exception = error, **options: Any) -> str:
            raise error

        monkeypatch.setattr(fetching, "snapshot_download", refuse)
        with pytest.raises(UserError, match=said):
            fetching.fetch("google/gemma-3-1b-it", None)


def test_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "no_network", lambda: None)
    monkeypatch.setattr(fetching, "free_disk", lambda path: 2**30)
    with pytest.raises(UserError, match=r"it has about 1\.9 GiB, and 1\.0 GiB are free"):
        fetching.fetch("google/gemma-3-1b-it", None)


def test_known_models_need_no_network() -> None:
    assert len(known_models()) > 30
    assert compose_config("models").models.fetch is None
