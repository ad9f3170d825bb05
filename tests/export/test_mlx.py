"""Folders for mlx-lm: written from our codes, read back, and run by mlx-lm itself where it is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grid_models import ROWS, TINY, on_grid, source_of
from int4_models import FAMILY_MODELS, build
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, Gemma4TextConfig

from gemma_tune.config import ExportConfig
from gemma_tune.errors import UserError
from gemma_tune.export import mlx_folder
from gemma_tune.export.int4_check import CheckLine, stored_lines
from gemma_tune.export.mlx_check import mlx_lines, read_mlx
from gemma_tune.export.model_on_grid import ModelOnGrid
from gemma_tune.export.tensors import trained_tensors
from gemma_tune.export.transformers_check import TrainedForward
from gemma_tune.models.unwrap import language_part
from gemma_tune.quant.layers import put_on_grid
from gemma_tune.quant.plan import Plan, plan_of
from gemma_tune.report.artifacts import artifact_size

SLOW = pytest.mark.slow
HAS_MLX = importlib.util.find_spec("mlx_lm") is not None


def exported(trained: ModelOnGrid, folder: Path) -> Path:
    mlx_folder.export(trained, folder, ExportConfig())
    return folder


def read_back(trained: ModelOnGrid, folder: Path) -> list[CheckLine]:
    config = language_part(trained.model).config
    return stored_lines("mlx", read_mlx(folder, trained.trained, config), trained.trained, trained.plan)


def in_mlx(trained: ModelOnGrid, folder: Path) -> list[CheckLine]:
    forward = TrainedForward(trained.model, ROWS)
    with forward.stored_in(folder.parent / "logits"):
        return mlx_lines("mlx", folder, folder.parent / "logits", forward, trained.trained, trained.plan)


@pytest.mark.parametrize(
    ("grid", "embedding", "adapter"),
    [
        pytest.param("q4_0", None, False, marks=pytest.mark.slow),
        pytest.param("q4_0", "q4_0", False, marks=pytest.mark.slow),
        ("q4_0", "q8_0", True),
        pytest.param("q4_0_fp16", None, False, marks=pytest.mark.slow),
    ],
)
def test_codes_scales_and_biases_are_those_of_training(
    grid: str, embedding: str | None, adapter: bool, tmp_path: Path
) -> None:
    trained = on_grid(grid, embedding, adapter)
    folder = exported(trained, tmp_path / "mlx")
    assert [line.verdict for line in read_back(trained, folder)] == ["ok", "ok"]
    assert artifact_size(folder).weights == sum(trained.plan.sizes.values())
    if HAS_MLX:
        decoded, logits = in_mlx(trained, folder)
        assert decoded.verdict == logits.verdict == "ok", (decoded, logits)


@SLOW
@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_every_family(name: str, tmp_path: Path) -> None:
    """Experts, per-layer embeddings, layers that share keys and values; Gemma 2 has a window that mlx-lm leaves out."""
    model, tokenizer = build(name)
    plan = plan_of(model, "q4_0", "q8_0", "q4_0" if name == "gemma4_e2b" else None)
    put_on_grid(model, plan)
    trained = ModelOnGrid(model, plan, trained_tensors(model, plan), tokenizer, source_of(TINY))
    folder = exported(trained, tmp_path / "mlx")
    assert {line.verdict for line in read_back(trained, folder)} == {"ok"}
    if HAS_MLX:
        decoded, logits = in_mlx(trained, folder)
        assert decoded.verdict == "ok", decoded
        if name == "gemma2":
            assert logits.verdict == "fail" and "without its window: other answers after 16 tokens" in logits.problem
        else:
            assert logits.verdict == "ok", logits


def test_what_is_wrong_in_a_folder_is_found(tmp_path: Path) -> None:
    """Each of a layer's three tensors, a tensor that is missing, and one too many."""
    trained = on_grid()
    folder = exported(trained, tmp_path / "mlx")
    file, stem = folder / "model.safetensors", "model.layers.1.mlp.up_proj"
    whole = load_file(file)

    def found(**changed: torch.Tensor | None) -> str:
        stored = {name: tensor.clone() for name, tensor in whole.items()}
        for part, tensor in changed.items():
            if tensor is None:
                del stored[f"{stem}.{part}"]
            else:
                stored[f"{stem}.{part}"] = tensor
        save_file(stored, file)
        lines = read_back(trained, folder)
        assert any(line.verdict == "fail" for line in lines)
        return " ".join(line.problem for line in lines if line.problem)

    words = whole[f"{stem}.weight"].view(torch.int32).clone()
    words[3, 1] ^= 1 << 28  # the eighth code of a word
    assert f"{stem}.weight: 1 of 196,608 codes and 0 scales differ." in found(weight=words.view(torch.uint32))
    scales, biases = whole[f"{stem}.scales"].clone(), whole[f"{stem}.biases"].clone()
    scales[0, 0] *= 2
    assert "its biases are not -8 times its scales" in found(scales=scales)
    biases[0, 0] *= 2
    assert "0 of 196,608 codes and 1 scales differ" in found(scales=scales, biases=biases)
    assert "is not there" in found(biases=None)
    assert found(weight=None).startswith(f"{stem}.biases: the trained model has no such tensor.")
    assert found(more=torch.zeros(1)) == f"{stem}.more: the trained model has no such tensor."


def test_config_has_what_mlx_lm_reads_by_older_names() -> None:
    """It has defaults of its own for them: 27B's RoPE would be computed without its factor."""
    config = Gemma3TextConfig(
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
        },
    )
    found = mlx_folder.mlx_config(config, Plan({}, {}, {}))
    assert (found["rope_theta"], found["rope_local_base_freq"], found["sliding_window_pattern"]) == (2e5, 5e3, 2)
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert found["quantization"] == {"group_size": 32, "bits": 4, "mode": "affine"}
    config.layer_types = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    with pytest.raises(UserError, match=r"full attention in every n-th layer, and here it is in the layers \[0, 3\]"):
        mlx_folder.check_config(config)
    four = Gemma4TextConfig(num_hidden_layers=6, num_global_key_value_heads=1, attention_k_eq_v=True)
    found = mlx_folder.mlx_config(four, Plan({}, {}, {}))
    assert (found["global_head_dim"], found["num_global_key_value_heads"]) == (512, 1)
    with pytest.raises(UserError, match="mlx-lm has no model for llama"):
        mlx_folder.check_config(SimpleNamespace(model_type="llama"))


def test_fused_experts_are_three_layers() -> None:
    shape = (4, 64, 96)
    found = mlx_folder.stored_as_parts("model.layers.0.experts.gate_up_proj", shape, "gemma4_text")
    stem = "model.layers.0.experts.switch_glu"
    assert found == {f"{stem}.gate_proj.weight": slice(0, 32), f"{stem}.up_proj.weight": slice(32, None)}
    assert list(mlx_folder.stored_as_parts("model.layers.0.experts.down_proj", (4, 96, 32), "gemma4_text")) == [
        f"{stem}.down_proj.weight"
    ]


def test_without_mlx_the_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    forward: Any = SimpleNamespace(rows=[], positions=0, model=SimpleNamespace(config=Gemma3TextConfig()))
    (line,) = mlx_lines("mlx", Path(), Path(), forward, {}, Plan({}, {}, {}))
    assert line.verdict == "unverified" and "pip install 'gemma_tune[mlx]'" in line.problem


@SLOW
@pytest.mark.skipif(not HAS_MLX, reason="mlx-lm is not installed: pip install 'gemma_tune[mlx]'")
def test_windows_and_scaled_rope_in_mlx_lm(tmp_path: Path) -> None:
    """A width whose root bfloat16 rounds, rows longer than the window; another RoPE fails, so the line can."""
    config = Gemma3TextConfig(
        vocab_size=1536, hidden_size=96, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, num_hidden_layers=4, max_position_embeddings=512, sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
        },
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plan = plan_of(model, "q4_0", None)
    put_on_grid(model, plan)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    trained = ModelOnGrid(model, plan, trained_tensors(model, plan), tokenizer, source_of(TINY))
    folder = exported(trained, tmp_path / "mlx")
    decoded, logits = in_mlx(trained, folder)
    assert decoded.verdict == logits.verdict == "ok" and "rounds the factor" in logits.found, logits
    stored = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**stored, "rope_scaling": None}), "utf-8")
    decoded, logits = in_mlx(trained, folder)
    assert (decoded.verdict, logits.verdict) == ("ok", "fail")
