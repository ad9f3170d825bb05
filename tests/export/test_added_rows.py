"""Models whose embedding has other rows than the tokenizer has tokens, exported to GGUF and checked in llama.cpp.

Input 32 of the test data (`32-export-with-added-tokens`), made here of the embedded model.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, TokenType
from transformers import AutoModelForCausalLM, AutoTokenizer

import gemma_tune
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
NEW = ["<h1>", "<h2>", "<h3>"]


def saved(folder: Path, tokens: list[str], rows: int) -> Path:
    """The embedded model with new tokens and so many rows of the embedding, as Transformers writes it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.add_tokens(tokens)
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():  # rows that training has changed, and no two alike
        model.get_input_embeddings().weight[1536:] += 0.1 * torch.randn(rows - 1536, 256)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def exported(folder: Path, model: Path) -> tuple[gemma_tune.RunResult, dict[str, Any]]:
    """The result of recipe=export, and the fields of its GGUF file."""
    said = [f"Say {mark} twice." for mark in (*NEW, "it")] * 8
    rows = [{"messages": [{"role": "user", "content": s}, {"role": "assistant", "content": s[4:7] * 2}]} for s in said]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = gemma_tune.run(
        "export",
        [f"model.model_name_or_path={model}", "export=gguf", "model.device=cpu", f"output_dir={folder / 'run'}",
         "data=auto", f"data.validation_file={file}", "data.test_files={}", "eval.evaluators=[]"],
    )  # fmt: skip
    path = next((folder / "run" / "export").rglob("*.gguf"))
    return result, {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp")
@pytest.mark.parametrize(
    ("tokens", "rows"),
    [(NEW, 1539), (NEW, 1600), ([*NEW, "<image>"], 1539)],
    ids=["a row for each", "61 rows unused", "a token more than rows"],
)
def test_32_export_with_added_tokens(tmp_path: Path, tokens: list[str], rows: int) -> None:
    result, found = exported(tmp_path, saved(tmp_path / "model", tokens, rows))
    assert result.status == "finished"
    names, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(names) == len(kinds) == len(found["tokenizer.ggml.scores"]) == rows
    assert names[1536:1539] == NEW and kinds[1536:1539] == [TokenType.USER_DEFINED] * 3
    assert all(kind == TokenType.UNUSED for kind in kinds[1539:])
    *exact, gross = result.metrics["verify"]
    assert [line["verdict"] for line in exact] == ["ok"] * 6 and gross["verdict"] != "fail"
