"""A table of per-layer embeddings that is loaded to the host: nothing of it is asked onto the model's device.

A device without memory (meta) stands in for the GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from safetensors.torch import load_file
from test_memory import EIGHT, composed

from gemma_tune.config import ModelConfig
from gemma_tune.models import language_part
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.kernels.host_table import HostTable, loading_for, loads_to_host
from gemma_tune.models.load import load_config, load_tokenizer
from gemma_tune.models.load_weights import load_base
from gemma_tune.models.source import find_source

TABLE = "model.embed_tokens_per_layer"


@pytest.fixture
def to_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_part, "pick_device", lambda model: torch.device("meta"))
    monkeypatch.setattr(language_part, "_check_finite", lambda *_: None)


def loaded(folder: Path, **options: Any) -> Any:
    model = ModelConfig(str(folder), dtype="float32", **options)
    source = find_source(model)
    with loading_for(composed("lora_sft", "gemma4_e2b_it")[0]):
        return load_base(model, source, load_tokenizer(source))


@pytest.mark.usefixtures("to_gpu")
@pytest.mark.parametrize(("name", "four_bit"), [("gemma3n", False), ("gemma4_e2b", True)])
def test_the_table_alone_is_not_on_the_gpu(name: str, four_bit: bool, tmp_path: Path) -> None:
    model = loaded(small_models.save(name, tmp_path / name), load_in_4bit=four_bit)
    off = {n for n, p in model.named_parameters() if not p.is_meta}
    assert off == {f"{TABLE}.weight"} and isinstance(model.get_submodule(TABLE), HostTable)
    (stored,) = (t for n, t in load_file(tmp_path / name / "model.safetensors").items() if "tokens_per_layer" in n)
    table = model.get_submodule(TABLE)
    assert torch.equal(table.weight, stored)
    assert table.embed_scale.item() == pytest.approx(8**0.5) and table(torch.tensor([[5]])).shape == (1, 1, 6 * 8)
    kind = FAMILIES[load_config(find_source(ModelConfig(str(tmp_path / name)))).model_type].language_class
    assert type(model).__module__.startswith("transformers.") and type(model).__name__ == kind
    # No hooks of accelerate's, which would copy it to the GPU; the model is on one device as far as others ask
    assert not hasattr(model, "hf_device_map") and not any(hasattr(m, "_hf_hook") for m in model.modules())


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("full_sft", []), ("lora_sft", EIGHT), ("lora_sft", ["model.per_layer_table_on_host=false"]),
        ("qat", ["adapter=lora"]), ("lora_sft", ["adapter.target_modules='.*_per_layer'"]),
    ],
)  # fmt: skip
def test_where_it_is_trained_or_shared_it_goes_with_the_model(recipe: str, words: list[str]) -> None:
    with loading_for(composed(recipe, "gemma4_e2b_it", *words)[0]):
        assert not loads_to_host()


def test_without_a_table_or_a_gpu_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = loaded(small_models.save("gemma4_e2b", tmp_path / "e2b"), device="cpu")
    assert not isinstance(on_cpu.get_submodule(TABLE), HostTable)
    monkeypatch.setattr(language_part, "pick_device", lambda model: torch.device("meta"))
    monkeypatch.setattr(language_part, "_check_finite", lambda *_: None)
    without = loaded(small_models.save("gemma3_text", tmp_path / "gemma3"))
    assert all(p.is_meta for p in without.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_never_held_it(tmp_path: Path) -> None:
    folder = small_models.save("gemma4_e2b", tmp_path / "e2b")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = loaded(folder)
    table, all_of_it = (sum(p.nbytes for p in m.parameters()) for m in (model.get_submodule(TABLE), model))
    assert model.get_input_embeddings().weight.is_cuda and not model.get_submodule(TABLE).weight.is_cuda
    assert torch.cuda.max_memory_allocated() - before < all_of_it - table / 2
