"""GGUF files without blocks: the numbers of the grid in wider types, to hold the int4 file against."""

from __future__ import annotations

from pathlib import Path

import pytest

import gemma_tune
from gemma_tune.cli.compose import compose_config
from gemma_tune.errors import UserError

WORDS = ["tracker=none", "data.max_train_samples=24", "data.max_eval_samples=8", "export.quality_samples=0"]


def export(formats: list[str], folder: Path) -> gemma_tune.RunResult:
    """Exports in these formats, each of which passes every check."""
    pytest.importorskip("xllamacpp")
    words = [*WORDS, "quant=q4_0", f"export.formats=[{','.join(formats)}]", f"output_dir={folder}"]
    result = gemma_tune.run("export", words)
    assert result.status == "finished" and set(formats) <= result.artifacts.keys()
    assert {line["verdict"] for line in result.metrics["verify"]} == {"ok"}
    return result


@pytest.mark.slow
def test_the_same_numbers_in_float32(tmp_path: Path) -> None:
    export(["gguf_f32"], tmp_path / "run")
    assert (tmp_path / "run/export/gguf_f32/tiny-f32.gguf").is_file()


@pytest.mark.slow
def test_the_same_numbers_in_wider_types(tmp_path: Path) -> None:
    formats = ["gguf_f32", "gguf_f16", "gguf_bf16"]
    result = export(formats, tmp_path / "run")
    sizes = [next((tmp_path / "run" / result.artifacts[f]).glob("*.gguf")).stat().st_size for f in formats]
    assert sizes[0] > 1.7 * sizes[1] and sizes[1] == pytest.approx(sizes[2], rel=0.01)


def test_bfloat16_cannot_hold_llama_cpps_own_scales() -> None:
    with pytest.raises(UserError, match="can't hold its values; use gguf_f32"):
        compose_config("export", [*WORDS, "quant=q4_0_fp16", "export.formats=[gguf_bf16]"])
