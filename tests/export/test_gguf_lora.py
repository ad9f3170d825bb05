"""A GGUF LoRA file adds to each layer what PEFT's adapter adds, in llama.cpp, too; a wrong one fails by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from grid_models import ROWS, TINY, source_of
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemma_tune.cli.compose import compose_config
from gemma_tune.errors import RunError, UserError
from gemma_tune.export.gguf_lora import added_line, export
from gemma_tune.export.int4_check import FAIL, OK
from gemma_tune.export.lora_check import ON_TRAINED, lora_lines
from gemma_tune.export.transformers_check import TrainedForward, layers_in_float32
from gemma_tune.models.gguf_header import read_gguf_header

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"lora_alpha": 8},
    "rsLoRA and patterns": {
        "lora_alpha": 6, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"o_proj": 20}
    },
}  # fmt: skip


def adapted(seed: int = 2, **options: Any) -> Any:
    """The embedded model with an adapter as after training."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    torch.manual_seed(seed)
    found = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "o_proj", "down_proj"], **options))
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.02)
    return found.eval()


def written(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return export(folder / "adapter", model.config, folder / "tiny-lora.gguf", "tiny")


@pytest.mark.parametrize("kind", list(KINDS))
def test_it_is_the_trained_adapter(kind: str, tmp_path: Path) -> None:
    model = adapted(**KINDS[kind])
    file = written(model, tmp_path)
    reader = GGUFReader(file)
    said = {key: field.contents() for key, field in reader.fields.items()}
    assert (said["general.type"], said["adapter.type"], said["general.architecture"]) == ("adapter", "lora", "gemma3")
    tensors = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    assert len(tensors) == 2 * 3 * 6
    for its, layer in (
        ("attn_q", "self_attn.q_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_down", "mlp.down_proj"),
    ):
        a, b = (tensors[f"blk.3.{its}.weight.lora_{part}"] for part in "ab")
        module = model.base_model.model.model.layers[3].get_submodule(layer)
        own = module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight
        assert torch.allclose(b @ a * said["adapter.lora.alpha"] / len(a), own, rtol=1e-5, atol=1e-8)
    assert added_line(file, model).verdict == OK
    pytest.importorskip("xllamacpp")
    rows = torch.randint(10, 1500, (2, 260), generator=torch.Generator().manual_seed(0)).tolist()
    forward = TrainedForward(model, rows, layers_in_float32)
    lines = lora_lines(file, forward, AutoTokenizer.from_pretrained(TINY), source_of(TINY))
    assert [line.verdict for line in lines] == [OK, OK], lines
    assert [f.name for f in sorted(tmp_path.iterdir())] == ["adapter", "tiny-lora.gguf"]


def test_another_adapter_fails_by_name(tmp_path: Path) -> None:
    """One of another training; one with another alpha; one of another architecture, which llama.cpp refuses."""
    model, tokenizer = adapted(**KINDS["plain"]), AutoTokenizer.from_pretrained(TINY)
    forward = TrainedForward(model, ROWS[:1], layers_in_float32)
    for other in (adapted(seed=3, lora_alpha=8), adapted(lora_alpha=10)):
        line = added_line(written(other, tmp_path), model)
        assert (line.verdict, line.found) == (FAIL, "0 of 18 layers")
        assert line.problem.startswith("model.layers.0.self_attn.q_proj: it adds other numbers")
    pytest.importorskip("xllamacpp")
    lines = lora_lines(tmp_path / "tiny-lora.gguf", forward, tokenizer, source_of(TINY))
    assert [(line.name, line.verdict) for line in lines][1:] == [(ON_TRAINED, FAIL)]
    file = written(model, tmp_path)
    file.write_bytes(file.read_bytes().replace(b"gemma3", b"gemma2", 1))
    lines = lora_lines(file, forward, tokenizer, source_of(TINY))
    assert [line.verdict for line in lines] == [FAIL, FAIL]
    assert "it is of type adapter, lora, gemma2" in lines[0].problem and "can't load it" in lines[1].problem


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    model = adapted(lora_alpha=8)
    file = written(model, tmp_path)
    file.write_bytes(file.read_bytes()[:-4000])
    with pytest.raises(RunError, match=r"tiny-lora\.gguf: it can't be read"):
        added_line(file, model)


def test_it_is_no_model_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is an adapter, and no model"):
        read_gguf_header(written(adapted(lora_alpha=8), tmp_path))


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"trainable_token_indices": [7]}, {"modules_to_save": ["norm"]}]
)
def test_stored_adapters_that_no_such_file_holds(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds products of two matrices alone, and .* use gguf_f16"):
        written(adapted(lora_alpha=8, **options), tmp_path)


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        ("full_sft", [], "there is no adapter"),
        ("lora_sft", ["adapter=dora"], "DoRA rescales the rows"),
        ("lora_sft", ["adapter.modules_to_save=[norm]"], "modules_to_save are whole layers"),
        ("lora_sft", ["model.added_tokens=[<x>]"], "rows of the embedding are trained"),
        ("lora_sft", ["adapter=pissa"], r"afterwards, recipe=export export=gguf_lora"),
        ("qlora_sft", ["adapter=loftq"], "makes up for the rounding of its 4-bit base"),
        ("export", ["quant=q4_0"], r"quant=none export\.formats=\[gguf_lora\]"),
    ],
)
def test_what_is_refused_before_training(recipe: str, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_config(recipe, ["export=gguf_lora", *words])
    assert compose_config("export", ["export=gguf_lora"]).quant.grid == "none"
