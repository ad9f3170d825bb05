"""Exports are written, read and compared some rows at a time, and hold the same bytes as written at once."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grid_models import ROWS, on_grid
from transformers import AutoModelForCausalLM

from gemma_tune.chat import Rendered
from gemma_tune.config import ExportConfig
from gemma_tune.errors import RunError
from gemma_tune.export import file_tensor, gguf, merged_from_grid, w4a16
from gemma_tune.export.formats import some_rows
from gemma_tune.export.int4_check import OK, forward_line, stored_lines
from gemma_tune.export.read_back import StoredTensor, read_folder
from gemma_tune.export.read_gguf import read_gguf
from gemma_tune.export.tensors import decoded_tensors, trained_tensors
from gemma_tune.export.transformers_check import TrainedForward, transformers_line, transformers_lines
from gemma_tune.quant.grid import Encoded
from gemma_tune.quant.layers import OnGrid


@pytest.mark.parametrize("at_once", [20_000, pytest.param(3000, marks=pytest.mark.slow)])
def test_blocks_of_few_rows(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All formats, with an adapter: the same files, and every line of the check, whatever the size of a block."""
    trained = on_grid("q4_0", "q8_0", adapter=True)

    def write(folder: Path) -> dict[str, bytes]:
        base = trained.model.get_base_model()
        for name, writer in (("merged", merged_from_grid), ("w4a16", w4a16)):
            (folder / name).mkdir(parents=True)
            writer.export(trained, folder / name, ExportConfig())
        given = (base.config, trained.tokenizer, base.generation_config, trained.plan)
        gguf.export(trained.trained, *given, folder / "x.gguf", name="x")
        return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}

    whole = write(tmp_path / "whole")
    weights = dict(trained.trained)
    monkeypatch.setattr(file_tensor, "AT_ONCE", at_once)
    assert write(tmp_path / "blocks") == whole
    for name, tensor in trained_tensors(trained.model, trained.plan).items():
        pairs = zip(tensor, weights[name], strict=True) if isinstance(tensor, Encoded) else [(tensor, weights[name])]
        assert all(torch.equal(a, b) for a, b in pairs), name
    lines = [forward_line(trained.model, trained.trained, trained.plan)]
    for name in ("merged", "w4a16"):
        lines += stored_lines(name, read_folder(tmp_path / "blocks" / name), trained.trained, trained.plan)
    stored = read_gguf(tmp_path / "blocks" / "x.gguf", trained.model.config)
    lines += stored_lines("gguf", stored, trained.trained, trained.plan)
    assert [x for x in lines if x.verdict != OK or "(100%)" not in x.found] == [] and len(lines) == 7


def test_differences_in_several_blocks_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = on_grid("q4_0", None)
    monkeypatch.setattr(file_tensor, "AT_ONCE", 3000)
    name = "model.layers.1.mlp.up_proj.weight"
    values = decoded_tensors(trained.trained, trained.plan)[name].clone()
    values[0, 0] += 1
    values[-1, 5] += 1
    others = ((n, t) for n, t in decoded_tensors(trained.trained, trained.plan).items() if n != name)

    def stored(changed: torch.Tensor) -> Any:
        for n, tensor in [*others, (name, changed)]:
            shape = tuple(tensor.shape)
            yield from ((n, StoredTensor(tensor[rows], whole=shape)) for rows in file_tensor.row_blocks(shape))

    (line,) = stored_lines("x", stored(values), trained.trained, trained.plan)
    assert line.problem == f"{name}: 2 of {values.numel():,} weights differ."


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same_lines(tmp_path: Path) -> None:
    """From logits in a file; no layer keeps a rounded weight; a folder that can't be loaded is an error."""
    trained = on_grid("q4_0", "q4_0")
    for name, writer in (("merged", merged_from_grid), ("w4a16", w4a16)):
        (tmp_path / name).mkdir()
        writer.export(trained, tmp_path / name, ExportConfig())
    wrong = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        wrong.model.norm.weight[0] = math.nan
    wrong.save_pretrained(tmp_path / "wrong")
    rows = [ROWS[0], ROWS[1][:7]]
    forward = TrainedForward(trained.model, rows)
    folders = {name: tmp_path / name for name in ("merged", "w4a16", "wrong")}
    expected = [transformers_line(name, folder, forward) for name, folder in folders.items()]
    assert [x.verdict for x in expected] == [OK, OK, "fail"] and "55 positions" in expected[0].found
    assert all(m._kept is None for m in trained.model.modules() if isinstance(m, OnGrid))
    with forward.stored_in(tmp_path / "logits"):
        assert transformers_lines(folders, tmp_path / "logits", forward) == expected
        with pytest.raises(RunError, match=r"can't run what was exported \(none\)\. It said:(?s:.*)none"):
            transformers_lines({"none": tmp_path / "none"}, tmp_path / "logits", forward)
    assert not (tmp_path / "logits").exists()


@pytest.mark.parametrize(
    ("lengths", "context", "expected"),
    [
        ([100] * 20, 2048, [100] * 6), ([600] * 3, 2048, [512]), ([500, 600, 30], 2048, [500, 512]),
        ([30], 2048, [30]), ([], 2048, []), ([600] * 3, 512, [504, 504]),
    ],
)  # fmt: skip
def test_rows_of_the_check_are_as_long_as_they_are(lengths: list[int], context: int, expected: list[int]) -> None:
    """But for what an engine has no room for, which needs a few tokens more."""
    text = SimpleNamespace(max_position_embeddings=context)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    rows: Any = SimpleNamespace(rendered=[Rendered(list(range(n)), []) for n in lengths])
    assert [len(row) for row in some_rows([rows], model)] == expected
