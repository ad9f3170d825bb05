"""A whole step's tensors where they are most: the estimate against what torch's allocator gives out."""

from __future__ import annotations

import ctypes
import platform
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from test_memory import composed
from torch.autograd.profiler import profile
from transformers import AutoConfig

from gemma_tune.models.contexts import training_attention
from gemma_tune.models.estimate.activations import activations, computed_tokens, of_layer
from gemma_tune.models.estimate.memory import estimate, in_unit, trained_parameters
from gemma_tune.models.estimate.size import size_of
from gemma_tune.models.estimate.step_memory import fullest_moment
from gemma_tune.models.family import BY_DOCUMENT, FAMILIES
from gemma_tune.models.kernels.allocator import hand_back_freed_memory
from gemma_tune.models.kernels.lora import FUSED_LAYERS
from gemma_tune.models.kernels.tiled_head import HeadOptions, token_log_probs
from gemma_tune.models.kernels.training_layers import training_layers
from gemma_tune.models.unwrap import language_part
from gemma_tune.quant.layers import GRID_LAYERS, put_on_grid
from gemma_tune.quant.plan import plan_of

TOKENS = 512
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "head_dim": 64, "num_attention_heads": 4, "vocab_size": 2048}
SIZES |= {"num_key_value_heads": 1, "num_hidden_layers": 4, "sliding_window": 512}


def most_allocated(step: Any) -> float:
    """Bytes of tensors at once at most, from a step on."""
    with profile(use_kineto=True, profile_memory=True) as profiled:
        step()
    most = now = 0
    for event in sorted(profiled.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize(("recipe", "recomputed"), [("full_sft", False), ("full_sft", True), ("lora_sft", False)])
def test_a_step(recipe: str, recomputed: bool) -> None:
    torch.manual_seed(0)
    text = AutoConfig.for_model("gemma3_text", **SIZES)
    model: Any = transformers.Gemma3ForCausalLM(text).train()
    base, number = model, 4.0
    if recipe == "lora_sft":
        config = LoraConfig(r=16, target_modules=[*FAMILIES["gemma3_text"].linear_layers])
        config._register_custom_module(FUSED_LAYERS)
        model, number = get_peft_model(model.bfloat16(), config), 2.0
        base = model.get_base_model()
        for weight in model.parameters():
            weight.data = weight.data.float() if weight.requires_grad else weight.data
        base.enable_input_require_grads()
    if recomputed:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = torch.randint(3, 2000, (1, TOKENS))

    def step() -> None:
        with training_attention(base, None), training_layers(base, None, None):
            states = base.model(input_ids=ids, use_cache=False).last_hidden_state[0]
            head = partial(token_log_probs, states, base.lm_head.weight, ids[0])
            head(HeadOptions())["log_probs"].mean().neg().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # which makes the optimizer's state
    words = ["train.packing=false", "train.per_device_train_batch_size=1", f"train.max_length={TOKENS}"]
    words += ["adapter.r=16"] if recipe == "lora_sft" else []
    cfg, size = composed(recipe, "gemma3_1b_it", *words, f"train.gradient_checkpointing={recomputed}")[0], size_of(text)
    parts = {name: gib * 2**30 for name, gib in estimate(cfg, size, False, TOKENS).items()}
    counted = fullest_moment(cfg, size, number, number, TOKENS, parts)
    assert counted == pytest.approx(most_allocated(step), rel=0.1)
    together = counted + parts["weights"] + parts["optimizer"]
    assert together < parts["total"] < 1.3 * together  # with holes in the heap


def test_accumulated_gradients_are_there_all_the_time() -> None:
    words = ["train.packing=false", "train.per_device_train_batch_size=1", "model.dtype=float32"]
    text = AutoConfig.for_model("gemma3_text", **SIZES)
    cfgs = [composed("full_sft", "gemma3_1b_it", *words, f"train.gradient_accumulation_steps={n}")[0] for n in (1, 2)]
    once, twice = (estimate(cfg, size_of(text), False, TOKENS) for cfg in cfgs)
    assert -once["gradients"] <= once["reused"] < 0 and twice["reused"] == 0
    assert in_unit(once["reused"]).startswith("-") and twice["total"] > once["total"]


@pytest.mark.parametrize("adapted", [False, True])
def test_qat_keeps_rounded_weights(adapted: bool) -> None:
    """Beside what tuning keeps; the embedding, which the files hold in 16 bit, isn't trained."""
    torch.manual_seed(0)
    text = AutoConfig.for_model("gemma3_text", **SIZES)
    model: Any = transformers.Gemma3ForCausalLM(text).train()
    plan = plan_of(model, "q4_0", None)
    words = ["train.packing=false", "train.per_device_train_batch_size=1", f"train.max_length={TOKENS}"]
    if adapted:
        config = LoraConfig(r=16, target_modules=[*FAMILIES["gemma3_text"].linear_layers])
        config._register_custom_module(GRID_LAYERS)
        model, words = get_peft_model(model, config), [*words, "adapter=lora", "adapter.r=16"]
    put_on_grid(model, plan)
    base = language_part(model)
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def look(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    look_at = torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor)
    with training_attention(base, None), training_layers(base, None, None), look_at:
        base.model(input_ids=torch.randint(3, 2000, (1, TOKENS)), use_cache=False)
    cfg, size = composed("qat", "gemma3_1b_it", *words)[0], size_of(text)
    assert activations(cfg, size, 4.0, 4.0, TOKENS, on_gpu=False) == pytest.approx(sum(kept.values()), rel=0.1)
    assert trained_parameters(cfg, size) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    several = composed("qat", "gemma3_1b_it", *words, "quant=q4_0_embedding")[0]
    assert adapted or trained_parameters(several, size) == size.parameters


def test_completions_meet_their_whole_prompt() -> None:
    words = ["train.per_device_train_batch_size=8", "train.num_generations=8", "train.max_completion_length=128"]
    cfg, _ = composed("grpo", "gemma3_1b_it", *words, "adapter=lora", "data=arithmetic")
    size = size_of(AutoConfig.for_model("gemma3_text", **SIZES))
    of_layers = of_layer(cfg, size, 2.0, 2.0, BY_DOCUMENT, fused=True) * (512 + 8 * 128)
    blocks = sum(64 * (at + 64) for at in range(0, 512, 64)) + 8 * sum(64 * (512 + at + 64) for at in range(0, 128, 64))
    found = activations(cfg, size, 2.0, 2.0, 640, on_gpu=False) / size.num_hidden_layers
    biases = found - of_layers - blocks * size.num_attention_heads * 2
    assert 0 <= biases < 0.03 * found


@pytest.mark.parametrize(("passes", "prompts"), [(1, 1), (4, 4), (16, 8)])
def test_prompts_of_a_pass(passes: int, prompts: int) -> None:
    """TRL deals completions of a generation out to its passes: of 8 at most so many prompts are others."""
    words = ["train.per_device_train_batch_size=8", "train.num_generations=8", "train.max_completion_length=128"]
    cfg, _ = composed("gspo", "gemma3_1b_it", *words, f"train.steps_per_generation={passes}", "data=arithmetic")
    size = size_of(AutoConfig.for_model("gemma3_text", **SIZES))
    assert computed_tokens(cfg, size, 640, on_gpu=False) == prompts * 512 + 8 * 128


def test_freed_memory_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []

    class Library:
        def malloc_trim(self, room: int) -> int:
            trimmed.append(room)
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    for name in ("glibc", "libc"):
        monkeypatch.setattr(platform, "libc_ver", lambda name=name: (name, ""))
        hand_back_freed_memory()
    assert trimmed == [0]
