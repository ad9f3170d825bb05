"""`recipe=qat` and `recipe=export`: from a model to files that were read back and run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from short_runs import losses, short_run

import gemma_tune
from gemma_tune import UserError
from gemma_tune.cli.compose import compose_config

SMALL = ["data.max_train_samples=8", "data.max_eval_samples=6", "quant.max_kl_samples=3", "eval.num_samples=0",
         "train.per_device_train_batch_size=2"]  # fmt: skip
HAS_LLAMA_CPP = importlib.util.find_spec("xllamacpp") is not None


def lines_of(folder: Path) -> dict[str, str]:
    verify = json.loads((folder / "result.json").read_text("utf-8"))["metrics"]["verify"]
    return {line["name"]: line["verdict"] for line in verify}


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "embedding"), [("none", "q4_0"), ("lora", "none")])
def test_trained_and_written(adapter: str, embedding: str, finished: Any) -> None:
    """Every line of the check; and in adapter mode the adapter inside the quantizer."""
    folder, result = finished("qat, lora" if adapter == "lora" else "qat, full")
    assert result.status == "finished" and set(result.artifacts) >= {"gguf", "w4a16", "merged"}
    verdicts = lines_of(folder)
    assert len(verdicts) == 12 and "fail" not in verdicts.values(), verdicts
    if HAS_LLAMA_CPP:
        assert "unverified" not in verdicts.values(), verdicts
    quality = result.metrics["quality"]
    assert quality["plain_kl"] > 0 and quality["trained_kl"] > 0 and "recovered_kl_low" in quality
    plan = json.loads((folder / "quant_plan.json").read_text("utf-8"))
    assert plan["model.layers.0.mlp.up_proj.weight"] == "q4_0"
    assert plan["model.embed_tokens.weight"] == ("16 bit" if embedding == "none" else embedding)
    assert (folder / "teacher" / "targets-00000.arrow").is_file()
    exported = result.metrics["exported"]
    assert [f["name"] for f in exported["files"]] == ["source", "gguf", "w4a16", "merged"]
    assert exported["metric"] == "held_out_loss" and exported["rows"] == 4
    source, *written = [f.get("mean") for f in exported["files"]]
    first = json.loads((folder / "eval" / "unquantised.json").read_text("utf-8"))["rows"]["held_out_loss"][:4]
    tokens = sum(row["weight"] for row in first)
    assert source == pytest.approx(sum(row["score"] * row["weight"] for row in first) / tokens)
    if HAS_LLAMA_CPP:
        assert written == pytest.approx([written[1]] * 3, rel=2e-2)
    report = (folder / "report.md").read_text("utf-8")
    assert "Quality, size and speed of the files" in report
    assert "gguf: codes and scales" in report and "trained kl" in report
    assert "llama-server --jinja -m " in report and "vllm serve " in report


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_the_format_for_phones(adapter: str, tmp_path: Path) -> None:
    """Weights on channel grids and activations of 8 bit are trained, written, and computed by Transformers."""
    words = [*SMALL, "quant=phone", "export=phone", f"adapter={adapter}", r"quant.int2_modules=['layers\.[45]\.mlp']"]
    result = short_run("qat", tmp_path, *words, "export.quality_samples=4", steps=2)
    assert set(lines_of(tmp_path).values()) == {"ok"} and len(lines_of(tmp_path)) == 5
    assert not result.failures and result.metrics["quality"]["plain_kl"] > 0
    exported = {file["name"]: file for file in result.metrics["exported"]["files"]}
    assert exported["phone"]["bits_per_weight"] < 4.3 and "mean" in exported["phone"]


@pytest.mark.slow
def test_a_live_teacher_says_the_same(tmp_path: Path) -> None:
    """The cache keeps float16: the losses are those of a live teacher within its rounding."""
    for name in ("cache", "live"):
        short_run("qat", tmp_path / name, *SMALL, f"quant.teacher={name}", "export=merged", steps=2)
    assert losses(tmp_path / "cache") == pytest.approx(losses(tmp_path / "live"), rel=2e-2, abs=2e-5)


@pytest.mark.slow
def test_a_model_as_it_is(tmp_path: Path) -> None:
    """Post-training quantization, with llama.cpp's own grid."""
    words = [
        "quant=q4_0_fp16",
        "export.formats=[w4a16,merged]",
        "data.max_eval_samples=6",
        "export.quality_samples=0",
        f"output_dir={tmp_path / 'run'}",
    ]
    result = gemma_tune.run("export", words)
    assert set(result.artifacts) == {"w4a16", "merged"}
    assert set(lines_of(tmp_path / "run").values()) == {"ok"}


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        ("qat", ["quant=none"], "quant=none with recipe=qat: choose a quantization format"),
        ("qat", ["quant=q4_0_fp16", "model.dtype=bfloat16"], "can't hold its values"),
        ("qat", ["model.train_towers=full"], "train them before, with recipe=full_sft or lora_sft"),
        ("qat", ["quant=phone", "export=w4a16"], "export.formats=w4a16 with quant.grid=int4_channel: it rounds no act"),
        ("qat", ["quant=phone", "export.formats=[mlx]"], "export.formats=mlx with quant.grid=int4_channel"),
        ("qat", ["quant=q3_0", "export.formats=[mlx]"], "q3_0 has no file format but merged"),
        ("qat", ["export=phone"], "export.formats=phone with quant.grid=q4_0: it holds one scale a channel"),
        ("qat", ["quant.embedding=int8_channel"], "needs quant.grid=int4_channel; set it"),
        ("qat", ["quant.int2_modules=[mlp]"], "quant.int2_modules has no effect with quant.grid=q4_0"),
        ("qat", ["quant=phone", "export=phone", "quant.embedding=q4_0"], "it is in blocks; use int4_channel"),
        ("qat", ["quant=phone", "export=phone", "quant.int8_modules=['(']"], "is no regular expression"),
        (
            "qat",
            ["quant=phone", "export=phone", "adapter=lora", "adapter.target_parameters=[experts.down_proj]"],
            "experts have no codes there, stay in 16 bit and are not trained",
        ),
        ("qat", ["quant=q3_0"], "q3_0 has no file format but merged"),
        ("qat", ["model.load_in_4bit=true", "adapter=lora"], "quantization rounds full weights"),
        ("qat", ["adapter=dora"], "adapter.use_dora=True with recipe=qat"),
        ("qat", ["adapter=lora", "adapter.lora_dropout=0.1"], "the adapter is inside the quantizer"),
        ("qat", ["eval.before=false"], "eval.before=false has no effect with recipe=qat"),
        ("qat", ["model.model_name_or_path=runs/nope"], "there is no such"),
        ("lora_sft", ["quant=q4_0"], "quant.grid has no effect with recipe=lora_sft"),
        ("lora_sft", ["export=gguf"], "is written of models in a quantization format"),
        ("lora_sft", ["export.formats=[mergd]"], "Did you mean merged"),
        ("export", ["export=none"], "nothing to do"),
        ("export", ["train.learning_rate=1"], "train.learning_rate has no effect"),
    ],
)
def test_mistakes(recipe: str, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_config(recipe, words)


def test_the_default_rates() -> None:
    rates = [compose_config("qat", w).train.learning_rate for w in ([], ["adapter=lora"])]
    assert rates == [1e-4, 1e-3]
    assert compose_config("qat", ["adapter=lora"]).model.dtype == "float32"
