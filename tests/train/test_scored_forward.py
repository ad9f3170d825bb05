"""TRL's trainers get the same numbers from our head as from TRL's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from small_models import MODELS
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from gemma_tune.models.adapters.trained_rows import tell_head
from gemma_tune.models.kernels.document_attention import by_document
from gemma_tune.models.kernels.tiled_head import HeadOptions
from gemma_tune.run.paths import ASSETS
from gemma_tune.train import scored_forward
from gemma_tune.train.scored_forward import Scoring, use_scored_forward

OUTPUTS = ("entropy", "is_top1", "mean_logits")
SCORING = Scoring(head=HeadOptions(outputs=OUTPUTS, temperature=0.8))
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"target_modules": ["q_proj"]},
    "rows": {"target_modules": ["q_proj"], "trainable_token_indices": [7, 11]},
}


@pytest.fixture(scope="module", params=ADAPTERS)
def model(request: pytest.FixtureRequest) -> Any:
    found = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny", dtype=torch.float32)
    found.config.final_logit_softcapping = 8.0
    torch.manual_seed(0)
    if options := ADAPTERS[request.param]:
        found = get_peft_model(found, LoraConfig(init_lora_weights=False, **options))
        tell_head(found)
    add_fused_lm_head(base_of(found), outputs=OUTPUTS, temperature=0.8)
    return found


def base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def batch(trained: list[range]) -> dict[str, Any]:
    ids = torch.randint(10, 1500, (len(trained), 40), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    for row, places in enumerate(trained):
        labels[row, list(places)] = ids[row, list(places)]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def outcome(model: Any, inputs: dict[str, Any], **more: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    model.zero_grad()
    found = model(**inputs, **more, fused_lm_head=True)
    (found.loss + (found.log_probs.exp() ** 2).sum()).backward()  # as losses of ratios, no sum of log-probabilities
    return found, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def both(model: Any, inputs: dict[str, Any], **more: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    base, theirs = base_of(model), base_of(model).forward
    expected = outcome(model, inputs, **more)
    use_scored_forward(base, SCORING)
    try:
        assert base.forward is not theirs
        return outcome(model, inputs, **more), expected
    finally:
        base.forward = theirs


@pytest.mark.parametrize(
    "trained",
    [
        [range(30, 40), range(12, 19)],
        [range(0, 40), range(0)],  # one row whole (its first token has nothing before it), one without a trained token
    ],
)
def test_outputs_and_gradients(model: Any, trained: list[range]) -> None:
    (ours, mine), (theirs, gradients) = both(model, batch(trained), num_items_in_batch=17)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        torch.testing.assert_close(ours[name], values, rtol=1e-5, atol=1e-5)
    assert mine.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-6)


def test_shifted_labels_and_nothing_trained(model: Any) -> None:
    inputs = batch([range(30, 40)])
    shifted = nn.functional.pad(inputs["labels"], (0, 1), value=-100)[:, 1:]
    (ours, _), (theirs, _) = both(model, {**inputs, "labels": None, "shift_labels": shifted})
    torch.testing.assert_close(ours.log_probs, theirs.log_probs)
    (ours, mine), (theirs, _) = both(model, batch([range(0), range(0)]))
    assert ours.loss == theirs.loss == 0
    assert mine and not any(gradient.any() for gradient in mine.values())


def test_other_calls_stay_the_model_s_own() -> None:
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny", dtype=torch.float32)
    ids = batch([range(5)])["input_ids"]
    logits, written = model(ids).logits, model.generate(ids, max_new_tokens=3, do_sample=False)
    add_fused_lm_head(model)
    use_scored_forward(model, Scoring())
    once = model.forward
    use_scored_forward(model, Scoring())
    assert model.forward is once
    assert torch.equal(model(ids).logits, logits)
    assert torch.equal(model.generate(ids, max_new_tokens=3, do_sample=False), written)


def test_a_head_with_a_product_of_its_own_stays_trl_s(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rounded(nn.Linear):  # type: ignore[misc]
        pass

    model = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny", dtype=torch.float32)
    head = Rounded(*model.lm_head.weight.shape[::-1], bias=False)
    head.weight = model.lm_head.weight
    add_fused_lm_head(model)
    use_scored_forward(model, Scoring())
    monkeypatch.setattr(scored_forward, "token_log_probs", lambda *args: pytest.fail("our head"))
    model.lm_head = head
    assert model(**batch([range(5, 9)]), fused_lm_head=True).loss > 0


def grouped_batch() -> dict[str, torch.Tensor]:
    """Completions of two prompts, in another order, padded on both sides as GRPO pads; one row is never scored."""
    draw = torch.Generator().manual_seed(2)
    prompts = [torch.randint(10, 1500, (n,), generator=draw).tolist() for n in (30, 12)]
    rows = []
    for which, length in ((0, 5), (1, 9), (0, 1), (0, 14), (1, 3)):
        completion = torch.randint(10, 1500, (length,), generator=draw).tolist()
        before, after = 30 - len(prompts[which]), 14 - length
        labels = [-100] * 30 + completion + [-100] * after
        rows.append(([0] * before + prompts[which] + completion + [0] * after, labels, before, after))
    rows.append((rows[0][0], [-100] * 44, 0, 9))
    mask = torch.tensor([[0] * before + [1] * (44 - before - after) + [0] * after for *_, before, after in rows])
    return {
        "input_ids": torch.tensor([ids for ids, *_ in rows]),
        "attention_mask": mask,
        "labels": torch.tensor([labels for _, labels, *_ in rows]),
    }


@pytest.mark.parametrize("tiled", [True, False])
def test_rows_share_their_prompts(model: Any, tiled: bool) -> None:
    """Gemma 3; the window of 512 is never reached, other families and windows are in test_compact_batch.py."""
    inputs, base = grouped_batch(), base_of(model)
    expected, gradients = outcome(model, inputs)
    theirs, widths = base.forward, []
    watch = base.base_model.register_forward_pre_hook(
        lambda module, args, given: widths.append(given["input_ids"].numel()), with_kwargs=True
    )
    use_scored_forward(base, replace(SCORING, tiled_head=tiled))
    try:
        with by_document(base):
            found, mine = outcome(model, inputs)
        outcome(model, inputs)  # attention of another kind
    finally:
        base.forward = theirs
        watch.remove()
    assert widths == [29 + 11 + 5 + 9 + 1 + 14 + 3, inputs["input_ids"].numel()]
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-5, atol=2e-5)
    assert mine.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (mine[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6, name


def test_no_label_at_all(model: Any) -> None:
    """All completions of a batch were cut off, say: nothing is computed for it, and gradients are 0, not missing."""
    base = base_of(model)
    inputs = grouped_batch() | {"labels": torch.full((6, 44), -100)}
    theirs, widths = base.forward, []
    watch = base.base_model.register_forward_pre_hook(
        lambda module, args, given: widths.append(given["input_ids"].numel()), with_kwargs=True
    )
    expected, wanted = outcome(model, inputs)
    use_scored_forward(base, SCORING)
    try:
        with by_document(base):
            found, gradients = outcome(model, inputs)
    finally:
        base.forward = theirs
        watch.remove()
    assert widths == [inputs["input_ids"].numel(), 1]
    assert found.keys() == expected.keys() and gradients.keys() == wanted.keys()
    assert all(torch.equal(found[name], values) for name, values in expected.items())
    assert not any(gradient.any() for gradient in gradients.values())


def test_noise_by_the_length_of_rows() -> None:
    """NEFTune's noise is of each row, and the smaller the longer the row is: its batches stay as they are."""
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny", dtype=torch.float32)
    add_fused_lm_head(model)
    use_scored_forward(model, Scoring())
    widths: list[tuple[int, ...]] = []
    model.base_model.layers[0].register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[:2]))
    inputs = grouped_batch()
    with by_document(model):
        model(**inputs, fused_lm_head=True)
        model.get_input_embeddings().neftune_noise_alpha = 5.0  # as Transformers does while it trains
        model(**inputs, fused_lm_head=True)
    assert widths == [(1, 72), (6, 44)]


def test_what_is_saved_is_read_once(model: Any) -> None:
    """TRL's offloading of activations forgets what the backward pass has read, and fails where it reads it twice."""
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> int:
        kept[number := len(kept)] = tensor.detach().clone()
        return number

    inputs = batch([range(5, 30), range(20, 38)])
    use_scored_forward(base_of(model), SCORING)
    with by_document(base_of(model)):
        wanted = outcome(model, inputs)[1]
        taken: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda n: (taken.append(n), kept[n])[1]):
            found = outcome(model, inputs)[1]
    assert len(taken) == len(set(taken)) > 0
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize("tiled", [True, False])
def test_shared_layers_see_labels_alone(tiled: bool) -> None:
    """With our head and with TRL's, which is that of a GPU."""
    torch.manual_seed(0)
    config = transformers.Gemma4TextConfig(**MODELS["gemma4_e2b"][1], attn_implementation="sdpa")
    model = transformers.Gemma4ForCausalLM(config).float().train()
    add_fused_lm_head(model, outputs=OUTPUTS)
    inputs, widths = batch([range(30, 40), range(12, 15)]), []
    expected, gradients = outcome(model, inputs)
    use_scored_forward(model, Scoring(tiled_head=tiled, head=HeadOptions(outputs=OUTPUTS)))
    for layer in model.base_model.layers:
        layer.mlp.register_forward_hook(lambda module, args, output: widths.append(output.shape[1]))
    found, mine = outcome(model, inputs)
    assert widths == [40] * 4 + [10] * 2
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        assert (mine[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6, name
    shifted = functional.pad(inputs.pop("labels")[:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(
        outcome(model, {**inputs, "shift_labels": shifted})[0].log_probs[:, :-1], found.log_probs
    )


def test_mixed_precision_is_taken_off(request: pytest.FixtureRequest) -> None:
    """Accelerate's `unwrap_model` leaves a model that answers, trains and generates as before."""
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny", dtype=torch.float32)
    given = batch([range(5, 20)])
    plain = {name: given[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        before = model(**plain).logits
    add_fused_lm_head(model)
    use_scored_forward(model, Scoring())
    AcceleratorState._reset_state()  # which all tests of a process share
    request.addfinalizer(AcceleratorState._reset_state)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    loss = accelerator.prepare_model(model)(**given, fused_lm_head=True).loss
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    with torch.no_grad():
        assert torch.equal(model(**plain).logits, before)
    assert not torch.equal(model(**given, fused_lm_head=True).loss, loss)  # in float32 again
    assert model.generate(**plain, max_new_tokens=2, do_sample=False).shape[1] == 42
