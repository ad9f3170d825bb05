"""Tokens that a model never trained: found where they are, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import short_run
from slow import slow_after
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemma_tune.models.undertrained_tokens import undertrained_tokens
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
NEW = [f"<thing{i}>" for i in range(5)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


def load() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)


def test_the_embedded_model_trained_every_token(tokenizer: Any) -> None:
    assert undertrained_tokens(load(), tokenizer, range(1, len(tokenizer))) == []


@pytest.mark.parametrize("how", ["near the mean", "by chance, small", "zero"])
def test_new_rows_are_found(tokenizer: Any, how: str) -> None:
    """However the rows of new tokens were filled: all of them, and no other."""
    model = load()
    torch.manual_seed(0)
    old = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(old + 5, mean_resizing=how == "near the mean")
    with torch.no_grad():
        rows = model.get_input_embeddings().weight[old:]
        if how.startswith("by chance"):
            rows.normal_(std=1e-3)
        elif how == "zero":
            rows.zero_()
    found = undertrained_tokens(model, tokenizer, range(1, old + 5))
    assert found == list(range(old, old + 5))
    assert undertrained_tokens(model, tokenizer, range(1, old)) == []  # not in the rows: no word of them
    assert undertrained_tokens(model, tokenizer, []) == []


def test_all_of_many_are_found(tokenizer: Any) -> None:
    model = load()
    old = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(old + 200)
    found = undertrained_tokens(model, tokenizer, range(1, old + 200))
    assert found == list(range(old, old + 200))


def test_rows_like_the_unused_ones_are_found() -> None:
    """As in the published checkpoints, where tokens without a use are all pushed the same way."""
    tokenizer, model = AutoTokenizer.from_pretrained(TINY), load()
    old = model.get_input_embeddings().weight.shape[0]
    tokenizer.add_tokens([f"<unused{i}>" for i in range(40)] + NEW)
    model.resize_token_embeddings(old + 45)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        size = rows[:old].std()
        rows[old:] = rows[:old].mean(0) + size * (torch.randn(1, rows.shape[1], generator=rng))
        rows[old:] += 0.3 * size * torch.randn(45, rows.shape[1], generator=rng)
    assert undertrained_tokens(model, tokenizer, range(1, old + 45))[-5:] == list(range(old + 40, old + 45))
    assert undertrained_tokens(model, tokenizer, range(1, old)) == []


@pytest.fixture(scope="module")
def with_new_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with five new tokens, and rows that use them."""
    folder = tmp_path_factory.mktemp("new")
    tokenizer, model = AutoTokenizer.from_pretrained(TINY), AutoModelForCausalLM.from_pretrained(TINY)
    tokenizer.add_tokens(NEW)
    model.resize_token_embeddings(len(tokenizer))
    tokenizer.save_pretrained(folder / "model")
    model.save_pretrained(folder / "model")
    rows = [[{"role": "user", "content": f"Say {t}"}, {"role": "assistant", "content": f"{t} it is."}] for t in NEW]
    lines = [json.dumps({"messages": messages}) + "\n" for messages in rows]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize("recipe", slow_after(1, ["lora_sft", "qlora_sft", "full_sft"]))
def test_the_run_warns_where_the_embedding_is_frozen(
    with_new_tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    words = ["data=messages", f"model.model_name_or_path={with_new_tokens / 'model'}", "eval=none"]
    words += [f"data.train_file={with_new_tokens / 'rows.jsonl'}"] + ["export=none"] * (recipe != "full_sft")
    short_run(recipe, tmp_path / "run", *words, steps=1)
    said = capsys.readouterr().out
    if recipe == "full_sft":
        assert "never trained" not in said
        return
    assert "5 tokens that this model never trained, 5 of them in answers" in said
    for token in NEW:
        assert token in said
    assert "adapter.trainable_token_indices=[" in said and "words that the model knows" in said  # the two ways out
