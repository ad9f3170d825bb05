"""`quant=q4_0_checkpoint`: from a QAT checkpoint of the published kind to files with its codes, trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import qat_checkpoint
import resumed
import torch
from short_runs import short_run
from transformers import AutoConfig

import gemma_tune
from gemma_tune import UserError
from gemma_tune.cli.compose import compose_config
from gemma_tune.export.read_back import read_folder
from gemma_tune.export.read_gguf import read_gguf

SMALL = ["data.max_train_samples=8", "data.max_eval_samples=6", "quant.max_kl_samples=3", "eval.num_samples=0",
         "export.quality_samples=0"]  # fmt: skip


def changed_blocks(made: dict[str, tuple[Any, Any]], stored: Any) -> dict[str, torch.Tensor]:
    """Which blocks of a file have other codes than the checkpoint; all scales are its own."""
    found: dict[str, Any] = {}
    for name, tensor in stored:
        if tensor.encoded is not None:
            found.setdefault(name, []).append(tensor.encoded)
    changed = {}
    for name, parts in found.items():
        codes, scales = made[name]
        assert torch.equal(torch.cat([part.scales for part in parts]), scales.squeeze(-1)), name
        same = torch.cat([part.codes for part in parts]).float() == codes.flatten(-2)
        changed[name] = ~same.unflatten(-1, (-1, 32)).all(-1)
    return changed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (False, ["adapter=lora", "adapter.layers_to_transform=[1]", "train.learning_rate=0.05"]),
        (True, ["train.learning_rate=0.02"]),
    ],
)
def test_trained_on_and_written(packed: bool, words: list[str], tmp_path: Path) -> None:
    made = (qat_checkpoint.save_packed if packed else qat_checkpoint.save)(tmp_path / "in")
    name = f"model.model_name_or_path={tmp_path / 'in'}"
    result = short_run("qat", tmp_path / "run", *SMALL, name, "quant=q4_0_checkpoint", *words, steps=2)
    lines = result.metrics["verify"]
    assert {line["verdict"] for line in lines} <= {"ok", "warn", "unverified"}, lines
    assert not any("naively" in line["name"] for line in lines)
    assert abs(result.metrics["quality"]["plain_kl"]) < 1e-6 < result.metrics["quality"]["trained_kl"]
    assert "recovered_kl" not in result.metrics["quality"] and result.headline["name"] == "held_out_loss"
    plan = json.loads((tmp_path / "run" / "quant_plan.json").read_text("utf-8"))
    assert {own for own, kind in plan.items() if kind == "q4_0_checkpoint"} == made.keys()
    export = tmp_path / "run" / "export"
    in_gguf = changed_blocks(
        made,
        read_gguf(
            next((export / "gguf").glob("*.gguf")), AutoConfig.from_pretrained(tmp_path / "in").get_text_config()
        ),
    )
    assert in_gguf.keys() == made.keys() and any(blocks.any() for blocks in in_gguf.values())
    in_w4a16 = changed_blocks(made, read_folder(export / "w4a16"))
    assert all(torch.equal(blocks, in_gguf[own]) for own, blocks in in_w4a16.items())
    for own, blocks in in_gguf.items():
        if packed:  # Adam moves a weight by the learning rate at most, twice
            assert not blocks[(made[own][1] > 0.1).squeeze(-1)].any()
        else:
            assert ".layers.1." in own or not blocks.any()


@pytest.mark.slow
def test_a_resumed_run_and_an_export_of_it_have_the_same_codes(tmp_path: Path) -> None:
    """The scales come from the checkpoint each time; of the run's own files they are found again."""
    qat_checkpoint.save(tmp_path / "in")
    name = f"model.model_name_or_path={tmp_path / 'in'}"
    words = [*SMALL, name, "quant=q4_0_checkpoint", "export=merged", "train.learning_rate=0.02", "train.save_steps=1"]
    words.append("train.save_total_limit=null")
    short_run("qat", tmp_path / "whole", *words)
    resumed.stopped_at(tmp_path / "whole", tmp_path / "cut", 2)
    short_run("qat", tmp_path / "cut", *words)
    assert resumed.weights(tmp_path / "whole") == resumed.weights(tmp_path / "cut") != {}
    words = [f"model.model_name_or_path={tmp_path / 'whole'}", "quant=q4_0_checkpoint", "export=merged", SMALL[-1]]
    gemma_tune.run("export", [*words, f"output_dir={tmp_path / 'again'}"])
    again = dict(read_folder(tmp_path / "again" / "export" / "merged"))
    for own, tensor in read_folder(tmp_path / "whole" / "export" / "merged"):
        assert torch.equal(tensor.values, again[own].values), own


@pytest.mark.slow
def test_rounded_and_written_as_it_is(tmp_path: Path) -> None:
    """`recipe=export`: the checkpoint's own codes; with derived scales a warning stands in the report."""
    made = qat_checkpoint.save(tmp_path / "in")
    for quant in ("q4_0_checkpoint", "q4_0"):
        words = [f"model.model_name_or_path={tmp_path / 'in'}", f"quant={quant}", "export.formats=[w4a16]"]
        out = tmp_path / quant
        result = gemma_tune.run("export", [*words, "data.max_eval_samples=6", SMALL[-1], f"output_dir={out}"])
        assert {line["verdict"] for line in result.metrics["verify"]} == {"ok"}
        warned = "derives other scales" in (out / "report.md").read_text("utf-8")
        assert warned == (quant == "q4_0")
    assert not any(
        x.any() for x in changed_blocks(made, read_folder(tmp_path / "q4_0_checkpoint/export/w4a16")).values()
    )


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        ("qat", ["quant.grid=q4_0_checkpoint"], "set quant.cross_entropy=1"),
        ("qat", ["quant.embedding=q4_0_checkpoint"], "needs quant.grid=q4_0_checkpoint"),
        ("tune_to_int4", ["quant=q4_0_checkpoint"], "recipe=qat quant=q4_0_checkpoint trains on"),
    ],
)
def test_mistakes(recipe: str, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_config(recipe, words)
