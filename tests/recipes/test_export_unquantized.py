"""GGUF files at the end of a training, and of a run that is there: written, checked, measured, and how to use them."""

from __future__ import annotations

from pathlib import Path

import pytest
from short_runs import short_run
from small_models import save

import gemma_tune
from gemma_tune.errors import UserError
from gemma_tune.export.lora_check import ON_SERVED, ON_TRAINED

FILES = "export.formats=[merged,gguf_f16,gguf_q8_0,gguf_lora]"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A QLoRA run with GGUF files, whose dropout and 4-bit base the check has to hold to the files."""
    pytest.importorskip("xllamacpp")
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    result = short_run("qlora_sft", folder, FILES, "model.dtype=bfloat16", steps=2)
    assert {"merged", "gguf_f16", "gguf_q8_0", "adapter"} <= result.artifacts.keys()
    lines = {line["name"]: line["verdict"] for line in result.metrics["verify"]}
    assert set(lines.values()) <= {"ok", "warn"}  # `warn`: fewer positions than 512
    assert {"gguf_f16 in llama.cpp", "gguf_q8_0: codes and scales", "gguf_q8_0 in llama.cpp"} <= lines.keys()
    assert {ON_TRAINED, ON_SERVED} <= lines.keys()  # the base in 4 bit, and as it is published
    return folder


@pytest.mark.slow
def test_the_report_says_how_to_use_them(run: Path) -> None:
    report = (run / "report.md").read_text(encoding="utf-8")
    file = run / "export" / "gguf_f16" / "tiny-f16.gguf"
    assert file.is_file() and f"llama-server --jinja -m {file}" in report
    assert f"llama-quantize {file} {file.parent / 'tiny-Q4_K_M.gguf'} Q4_K_M" in report
    assert f"--lora {run / 'export' / 'gguf_lora' / 'tiny-lora.gguf'}" in report
    assert "ollama create tiny-q8_0 -f" in report


@pytest.mark.slow
def test_a_run_is_exported_and_its_files_are_measured(run: Path, tmp_path: Path) -> None:
    """As it was trained: over its 4-bit base, so the float16 file holds the same numbers as the run's own."""
    words = [f"model.model_name_or_path={run}", "tracker=none", FILES, f"output_dir={tmp_path / 'again'}"]
    result = gemma_tune.run("export", words)
    assert result.status == "finished"
    assert {line["verdict"] for line in result.metrics["verify"]} <= {"ok", "warn"}
    rows = {file["name"]: file for file in result.metrics["exported"]["files"]}
    assert list(rows) == ["source", "merged", "gguf_f16", "gguf_q8_0", "gguf_lora"]
    assert rows["gguf_f16"]["mean"] == pytest.approx(rows["source"]["mean"], rel=1e-2)
    name = "export/gguf_f16/tiny-f16.gguf"
    assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()


def test_what_llama_cpp_computes_otherwise_is_refused_before_training(tmp_path: Path) -> None:
    model = save("gemma3n", tmp_path / "gemma3n")  # smaller than what llama.cpp has built in
    words = [f"model.model_name_or_path={model}", "export=gguf_f16", f"output_dir={tmp_path / 'x'}"]
    with pytest.raises(UserError, match=r"llama.cpp can't compute hidden_size_per_layer_input=8, .*export=merged"):
        gemma_tune.run("lora_sft", words)
    assert not (tmp_path / "x").exists()
