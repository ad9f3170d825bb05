"""Shared layers at the labels' positions against plain Transformers: loss and gradients."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from document_models import text_model
from peft import LoraConfig, get_peft_model
from small_models import MODELS
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from gemma_tune.models.contexts import attention
from gemma_tune.models.head import head_of, nll, trained_states
from gemma_tune.models.kernels.document_attention import by_document
from gemma_tune.models.kernels.label_positions import at_labels, compute_all_positions, positions_of
from gemma_tune.models.unwrap import language_part

CLASSES = {"gemma4_e2b": "Gemma4", "gemma3n": "Gemma3n"}
TOKENS = 48


@pytest.fixture(scope="module", params=[f"{name}, {kind}" for name in CLASSES for kind in ("full", "lora")])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    name, kind = request.param.split(", ")
    config = getattr(transformers, f"{CLASSES[name]}TextConfig")(**MODELS[name][1], attn_implementation="sdpa")
    found = getattr(transformers, f"{CLASSES[name]}ForCausalLM")(config).float()
    if kind == "lora":
        found = get_peft_model(found, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    return found.train()


def batch(form: str) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 1500, (3, TOKENS), generator=draw)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=draw) > 0.25, -100)
    labels[1] = -100  # a row without a label
    if form == "packed":
        positions = torch.cat([torch.arange(n) for n in (17, 13, TOKENS - 30)])[None]
        return {"input_ids": ids[:1], "labels": labels[:1].masked_fill(positions == 0, -100), "position_ids": positions}
    if form == "plain":
        return {"input_ids": ids, "labels": labels}
    mask = torch.ones_like(ids)
    for row in range(3):
        mask[row, slice(TOKENS - 7 * row, None) if form == "right" else slice(0, 7 * row)] = 0
    return {"input_ids": ids, "labels": labels.masked_fill(mask == 0, -100), "attention_mask": mask}


def plain_loss(base: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    given = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    logits = base(**given, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), inputs["labels"][:, 1:].flatten(), reduction="sum")


def narrowed_loss(base: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    hidden, labels = trained_states(base, inputs)
    return nll(hidden, head_of(base), labels, "sum")


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kernel", ["sdpa", "by_document"])
@pytest.mark.parametrize("form", ["plain", "right", "left", "packed"])
def test_loss_and_gradients(model: Any, form: str, kernel: str) -> None:
    """By document the scores are summed as in eager attention, which is 1e-5 from SDPA in Gemma 4's small model."""
    base, inputs = language_part(model), batch(form)
    with attention(base, "eager" if kernel == "by_document" else "sdpa"):
        expected = plain_loss(base, inputs)
        theirs = gradients(model, expected)
    places = inputs["labels"][:, 1:] != -100
    with at_labels(base, functional.pad(places, (0, 1))) as found:
        assert found is not None and found.index.shape[1] == places.sum(1).max()
    with by_document(base) if kernel == "by_document" else nullcontext():
        loss = narrowed_loss(base, inputs)
        ours = gradients(model, loss)
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("name", ["gemma3_text", "gemma4_31b"])
def test_the_last_layer(name: str) -> None:
    """Where no layers share keys and values, behind the attention of the last one."""
    base = text_model(name)
    for form in ("packed", "right"):
        inputs = batch(form)
        expected = plain_loss(base, inputs)
        theirs = gradients(base, expected)
        places = functional.pad(inputs["labels"][:, 1:] != -100, (0, 1))
        with at_labels(base, places) as found:
            assert found is not None
            assert base.base_model(**{n: x for n, x in inputs.items() if n != "labels"}).last_hidden_state.shape[
                :2
            ] == (found.index.shape)
        loss = narrowed_loss(base, inputs)
        ours = gradients(base, loss)
        torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
        for parameter, gradient in theirs.items():
            assert (ours[parameter] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, parameter
    base.gradient_checkpointing_enable({"use_reentrant": False})  # its hooks would be gone in the second pass
    with at_labels(base, places) as found:
        assert found is None


def test_recomputed_layers(model: Any) -> None:
    base, inputs = language_part(model), batch("right")
    expected = gradients(model, narrowed_loss(base, inputs))
    base.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        found = gradients(model, narrowed_loss(base, inputs))
    finally:
        base.gradient_checkpointing_disable()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm() + 1e-8, name


def test_hooks_that_are_part_of_what_is_repeated(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers 5.17 checkpoints `__call__`, with its hooks; 5.23 `forward`."""
    base = language_part(model)
    read = functional.pad(torch.ones(1, 3, dtype=torch.bool), (0, 9))
    base.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        with at_labels(base, read) as found:
            assert found is not None
        monkeypatch.setattr(GradientCheckpointingLayer, "__call__", torch.nn.Module.__call__, raising=False)
        with at_labels(base, read) as found:
            assert found is None
    finally:
        base.gradient_checkpointing_disable()


def test_layers_in_wrappers_that_repeat_them() -> None:
    """As FSDP2's activation checkpointing does: hooks inside would be gone in the second pass."""
    for name in ("gemma3_text", "gemma4_e2b"):
        base = text_model(name)
        layers, read = base.base_model.layers, functional.pad(torch.ones(1, 3, dtype=torch.bool), (0, 9))
        for number, layer in enumerate(layers):
            layers[number] = checkpoint_wrapper(layer)
        with at_labels(base, read) as found:
            assert found is None
            base.base_model(torch.zeros(1, 12, dtype=torch.long), use_cache=False)


def test_off_where_it_is_no_use(model: Any) -> None:
    base = language_part(model)
    none, most = torch.zeros(2, 9, dtype=torch.bool), torch.ones(2, 9, dtype=torch.bool)
    some = none.clone()
    some[0, 3] = True
    for read in (none, most):
        with at_labels(base, read) as found:
            assert found is None
    with at_labels(base, some) as found:
        assert found is not None
    vars(base)["all_positions"] = False
    compute_all_positions(base)
    with at_labels(base, some) as found:
        assert found is None
    del vars(base)["all_positions"]


def test_positions_ascend() -> None:
    read = torch.tensor([[0, 0, 1, 0, 1, 1], [0, 1, 0, 0, 0, 0]]).bool()
    index, kept = positions_of(read)
    assert index.tolist() == [[2, 4, 5], [0, 1, 2]]
    assert kept.tolist() == [[True] * 3, [False, True, False]]


def test_long_rows_are_filled() -> None:
    """To a multiple of 16, as far as there are positions."""
    read = torch.zeros(1, 120, dtype=torch.bool)
    read[0, 40:107] = True  # 67
    index, kept = positions_of(read)
    assert index.tolist() == [[*range(13), *range(40, 107)]]
    assert kept.tolist() == [[False] * 13 + [True] * 67]
    assert positions_of(read[:, 36:110]).index.tolist() == [[*range(74)]]
