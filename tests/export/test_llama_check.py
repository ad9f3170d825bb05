"""The lines of the table that llama.cpp gives."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from grid_models import ROWS, on_grid

from gemma_tune.export import gguf
from gemma_tune.export.engine_agreement import EngineAgreement
from gemma_tune.export.engine_lines import exact_line, gross_line
from gemma_tune.export.int4_check import FAIL, UNVERIFIED, WARN
from gemma_tune.export.llama_check import CONTROL, EXACT, GROSS, agreements_with, llama_lines, top_tokens
from gemma_tune.export.model_on_grid import ModelOnGrid
from gemma_tune.export.tensors import decoded_tensors
from gemma_tune.export.transformers_check import TrainedForward
from gemma_tune.quant.grid import GRIDS


@pytest.fixture(scope="module")
def trained() -> ModelOnGrid:
    return on_grid("q4_0", "q8_0", adapter=True)


@pytest.fixture(scope="module")
def file(trained: ModelOnGrid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(trained, trained.trained, trained.plan, tmp_path_factory.mktemp("gguf") / "tiny-q4_0.gguf")


def forward_of(trained: ModelOnGrid, rows: int) -> TrainedForward:
    return TrainedForward(trained.model, ROWS[:rows])


def exported(trained: ModelOnGrid, tensors: Any, types: Any, file: Path) -> Path:
    model = trained.model
    return gguf.export(tensors, model.config, trained.tokenizer, model.generation_config, types, file, name="tiny")


def test_llama_cpp_computes_the_training_forward(file: Path, trained: ModelOnGrid) -> None:
    """The control, the exact line and the gross one, on 96 positions: too few to be `ok`."""
    lines = llama_lines(file, forward_of(trained, 2), trained.tokenizer, trained.trained, trained.plan, threads=1)
    assert [x.name for x in lines] == [CONTROL, EXACT, GROSS]
    assert [x.verdict for x in lines] == [WARN] * 3
    for line in lines[:2]:
        assert re.search(r"KL \S+e-0[789], the same best token at 100\.00% of 96 positions, fewer than 512", line.found)
    kl = float(lines[2].found.split()[1].rstrip(","))
    assert 1e-5 < kl < 5e-3  # activations of 8 bit are seen
    assert [f.name for f in file.parent.iterdir()] == [file.name]


def test_another_grid_in_llama_cpp_fails(file: Path, trained: ModelOnGrid, tmp_path: Path) -> None:
    """Codes taken again with a positive absmax / 8, in a float32 file; and weights of 3 bit: a gross error."""

    def positive(weight: torch.Tensor) -> torch.Tensor:
        blocks = weight.unflatten(-1, (-1, 32))
        scales = blocks.abs().amax(-1, keepdim=True) / 8
        return ((blocks / scales.clamp(min=1e-9)).round().clamp(-8, 7) * scales).flatten(-2)

    decoded = decoded_tensors(trained.trained, trained.plan)
    again = {n: positive(t) if "proj" in n else t for n, t in decoded.items()}
    coarse = {n: GRIDS["q3_0"].rounded(t) if "proj" in n else t for n, t in decoded.items()}
    found: list[EngineAgreement] = []
    for tensors in (again, coarse):
        path = exported(trained, tensors, torch.float32, tmp_path / "other.gguf")
        tops = top_tokens(path, trained.model, trained.tokenizer, ROWS[:1], exact=True, threads=1)
        found += agreements_with(forward_of(trained, 1), [tops])
    assert exact_line(EXACT, found[0]).verdict == FAIL and found[0].mean_kl > 1e-4
    assert gross_line(GROSS, found[1]).verdict == FAIL


def test_without_llama_cpp_nothing_is_verified(
    file: Path, trained: ModelOnGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else found(name))
    lines = llama_lines(file, forward_of(trained, 1), trained.tokenizer, trained.trained, trained.plan)
    assert [(x.verdict, x.found) for x in lines] == [(UNVERIFIED, "not run")] * 3
    assert all("llama.cpp isn't installed: pip install" in x.problem for x in lines)
    assert [f.name for f in file.parent.iterdir()] == [file.name]
