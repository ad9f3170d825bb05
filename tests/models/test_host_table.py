"""The table of per-layer embeddings off the GPU: the same numbers, and it stays where it is."""

from __future__ import annotations

from typing import Any

import pytest
import small_models
import torch
import transformers
from peft import LoraConfig, get_peft_model
from test_memory import KINDS
from transformers import AutoConfig

from gemma_tune.models.family import FAMILIES
from gemma_tune.models.kernels.host_table import HostTable, keep_table_on_host

IDS = torch.arange(10, 40).view(2, 15)


def language(name: str) -> Any:
    torch.manual_seed(0)
    text = AutoConfig.for_model(KINDS[name], **small_models.MODELS[name][1])
    return getattr(transformers, FAMILIES[KINDS[name]].language_class)(text).eval()


def adapted(name: str) -> Any:
    return get_peft_model(language(name), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))


def gradients(model: Any) -> list[torch.Tensor]:
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["gemma3n", "gemma4_e2b"])
def test_loss_and_gradients_are_the_same(name: str) -> None:
    model = adapted(name)
    names, before = [n for n, _ in model.named_parameters()], gradients(model)
    table = model.get_base_model().model.embed_tokens_per_layer
    keep_table_on_host(model, None)  # a model on the CPU: nothing to do
    assert model.get_base_model().model.embed_tokens_per_layer is table
    keep_table_on_host(model, True)
    placed = model.get_base_model().model.embed_tokens_per_layer
    assert isinstance(placed, HostTable) and placed.weight is table.weight
    assert names == [n for n, _ in model.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(model), strict=True)) and before[0].norm() > 0


def test_it_stays_where_it_is() -> None:
    """Rows go to another device (here one without memory); a change of type is followed, a move is not."""
    table = language("gemma4_e2b").model.embed_tokens_per_layer.requires_grad_(False)
    rows, narrow = table(IDS), table.weight.bfloat16()
    placed = HostTable(table, torch.device("cpu"), torch.device("meta"))
    assert placed(IDS).is_meta and placed(IDS).shape == rows.shape
    moved: list[torch.Size] = []

    def to_gpu(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor.shape)
        return tensor.bfloat16()

    torch.nn.Sequential(placed)._apply(to_gpu)
    assert moved == [torch.Size([0])] and torch.equal(placed.weight, narrow)
    assert torch.nn.Sequential(placed).to("meta")[0].weight.is_meta


def test_a_table_that_is_trained_stays_with_the_model() -> None:
    model = language("gemma4_e2b")
    keep_table_on_host(model, True)
    assert not isinstance(model.model.embed_tokens_per_layer, HostTable)
    without = language("gemma3_text").requires_grad_(False)
    keep_table_on_host(without, True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_only_rows_travel() -> None:
    model = adapted("gemma4_e2b").bfloat16().cuda()
    weight = model.get_base_model().model.embed_tokens_per_layer.weight
    with torch.no_grad():
        before = model(input_ids=IDS.cuda()).logits
        keep_table_on_host(model, None)
        model.to("cuda")
        assert weight.device.type == "cpu" and torch.equal(before, model(input_ids=IDS.cuda()).logits)
