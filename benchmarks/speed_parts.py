"""`make bench-speed`, its other parts: single speed-ups on and off in one process, the two taking turns.

Suffixes of shapes: B rows, S tokens of a row.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from bench_sft import interval
from peft import LoraConfig, get_peft_model
from step_lines import counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Gemma4ForCausalLM, Gemma4TextConfig
from trl.trainer.utils import add_fused_lm_head

from gemma_tune.models.contexts import training_attention
from gemma_tune.models.kernels.label_positions import compute_all_positions
from gemma_tune.models.kernels.lora import Linear
from gemma_tune.train.scored_forward import Scoring, use_scored_forward

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLIDING, FULL = "sliding_attention", "full_attention"
DOCUMENTS = "by_document"
Scores = Callable[[dict[str, torch.Tensor]], Any]


def gemma3(layers: int, vocab: int, types: list[str] | None = None, window: int = 512) -> Any:
    """The layers of Gemma 3 270M, bfloat16."""
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=vocab, hidden_size=640, intermediate_size=2048, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, sliding_window=window, layer_types=types,
            max_position_embeddings=32_768, tie_word_embeddings=True, pad_token_id=0,
        )
    ).to(DEVICE, torch.bfloat16)  # fmt: skip


def e2b() -> Any:
    """Gemma 4 E2B with a hidden size of 512: 35 layers, of which 20 share keys and values; float32."""
    return Gemma4ForCausalLM(
        Gemma4TextConfig(
            vocab_size=65_536, vocab_size_per_layer_input=1024, hidden_size=512, intermediate_size=2048,
            num_hidden_layers=35, num_kv_shared_layers=20, layer_types=([SLIDING] * 4 + [FULL]) * 7,
            num_attention_heads=4, num_key_value_heads=1, head_dim=128, global_head_dim=256, sliding_window=512,
            hidden_size_per_layer_input=64, use_double_wide_mlp=True, final_logit_softcapping=30.0,
            max_position_embeddings=4096, pad_token_id=0,
        )
    ).to(DEVICE)  # fmt: skip


def adapters() -> LoraConfig:
    """On every linear layer of a model."""
    return LoraConfig(r=16, lora_alpha=32, target_modules=r".*layers\.\d+\.(self_attn|mlp)\..*_proj")


def prepared(model: Any) -> tuple[Any, dict[bool, Scores]]:
    """A model with our adapters, and the pass that scores tokens, by whether batches are compact."""
    config = adapters()
    config._register_custom_module({torch.nn.Linear: Linear})
    get_peft_model(model, config).train()
    add_fused_lm_head(model)
    theirs, passes = model.forward, {}
    for short in (False, True):
        model.forward = theirs
        use_scored_forward(model, Scoring(tiled_head=True, compact_batches=short))
        ours = model.forward
        passes[short] = lambda batch, ours=ours: ours(**batch, fused_lm_head=True)
    return model, passes


def plain_trl(model: Any) -> tuple[Any, Scores]:
    """A model with PEFT's adapters, and the pass that scores tokens as TRL computes it: its head, SDPA, all rows."""
    get_peft_model(model, adapters()).train()
    add_fused_lm_head(model)
    return model, lambda batch: model(**batch, fused_lm_head=True)


def labelled(ids_BS: torch.Tensor, trained_BS: torch.Tensor) -> dict[str, torch.Tensor]:
    """A batch without padding."""
    return {
        "input_ids": ids_BS,
        "attention_mask": torch.ones_like(ids_BS),
        "labels": ids_BS.masked_fill(~trained_BS, -100),
    }


def with_gradients(score: Scores, batch: dict[str, torch.Tensor], model: Any) -> Callable[[], float]:
    """A forward and backward pass of the mean loss of the labels, which it gives."""

    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = score(batch).loss
        loss.backward()
        return float(loss.detach())

    return step


def without_gradients(score: Scores, batch: dict[str, torch.Tensor]) -> Callable[[], float]:
    """The forward pass."""

    def step() -> float:
        with torch.no_grad():
            return float(score(batch).loss)

    return step


def timed(step: Callable[[], float]) -> float:
    """Its seconds."""
    begun = time.perf_counter()
    step()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def compared(
    arms: dict[str, Callable[[], float]], rounds: int, head: float = 0.0, bodies: dict[str, float] | None = None
) -> dict[str, Any]:
    """Arms in turns, after one pass each whose operations are counted.

    Args:
        arms: `plain`, without the speed-up; `fast`, with it; and perhaps `trl`, without anything of ours, and `all`.
        rounds: Measured passes of each.
        head: Operations of the head, which aren't those of the body.
        bodies: Operations of the body of arms with another head.
    """
    found: dict[str, Any] = {name: {} for name in arms}
    for name, step in arms.items():
        with counter() as counted:
            found[name]["loss"] = step()
        found[name]["body_flops"] = (bodies or {}).get(name, counted.get_total_flops() - head)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for n in range(rounds):
        for name in list(arms)[:: -1 if n % 2 else 1]:
            seconds[name].append(timed(arms[name]))
    for name in arms:
        found[name]["seconds"] = seconds[name]
    for name, of, by in (("ratio", "plain", "fast"), ("trl_ratio", "trl", "all")):
        if of in arms:
            each = [a / b for a, b in zip(seconds[of], seconds[by], strict=True)]
            found[name] = list(interval(each)) if rounds > 1 else each
            found[name.replace("ratio", "flops_ratio")] = found[of]["body_flops"] / found[by]["body_flops"]
    return found


def head_operations(trained: int, vocab: int, gradients: bool) -> float:
    """Of the tiled head: the logits, and with gradients those of the hidden states, 640 wide."""
    return 2.0 * trained * 640 * vocab * (2 if gradients else 1)


def everywhere(model: Any, step: Callable[[], float]) -> Callable[[], float]:
    """The same without layers at label positions alone."""

    def all_positions() -> float:
        compute_all_positions(model)
        try:
            return step()
        finally:
            del model.all_positions

    return all_positions


def label_positions(rounds: int, tokens: int = 512) -> dict[str, Any]:
    """Line 2: layers that share keys and values, at label positions alone and at all."""
    torch.manual_seed(0)
    model, passes = prepared(e2b())
    ids = torch.randint(3, 1000, (1, tokens), device=DEVICE)
    place = torch.arange(tokens, device=DEVICE)
    shares = {"at the end": place >= tokens * 3 // 4, "in turns": place % 64 >= 48}

    found = {}
    with training_attention(model, DOCUMENTS):
        for name, trained in shares.items():
            step = with_gradients(passes[False], labelled(ids, trained[None]), model)
            found[f"25 % labels {name}"] = compared({"plain": everywhere(model, step), "fast": step}, rounds)
    return found


def group(rounds: int, prompt: int = 512, answers: int = 8, tokens: int = 256, layers: int = 6) -> dict[str, Any]:
    """Line 3: completions of one prompt, scored and updated, with a vocabulary of 32k."""
    return shared_prompts(rounds, prompt, answers, tokens, layers, 32_768)


def pair(rounds: int, prompt: int = 512, tokens: int = 128, layers: int = 6) -> dict[str, Any]:
    """Line 4: a chosen and a rejected answer, with a vocabulary of 32k, and the shape of Gemma 3 270M."""
    found = shared_prompts(rounds, prompt, 2, tokens, layers, 32_768)
    whole = shared_prompts(rounds, prompt, 2, tokens, 18 if layers == 6 else layers, 262_144)
    return {f"32k: {name}": one for name, one in found.items()} | {f"270M: {name}": one for name, one in whole.items()}


def shared_prompts(rounds: int, prompt: int, answers: int, tokens: int, layers: int, vocab: int) -> dict[str, Any]:
    """Rows that begin with one prompt: as TRL computes them, ours without sharing it, with, and with layers at labels.

    Without those this key's own part doesn't depend on what another one saves.
    """
    torch.manual_seed(0)
    model, passes = prepared(gemma3(layers, vocab))
    torch.manual_seed(0)
    theirs, score = plain_trl(gemma3(layers, vocab))
    ids = torch.randint(3, vocab, (answers, prompt + tokens), device=DEVICE)
    ids[:, :prompt] = ids[0, :prompt]
    batch = labelled(ids, (torch.arange(prompt + tokens, device=DEVICE) >= prompt).expand_as(ids))
    own = {"trl": (theirs, score), "plain": (model, passes[False]), "fast": (model, passes[True])}
    own["all"] = own["fast"]
    found = {}
    with training_attention(model, DOCUMENTS):
        for kind, trains in (("scoring", False), ("update", True)):
            steps = {
                n: with_gradients(s, batch, m) if trains else without_gradients(s, batch) for n, (m, s) in own.items()
            }
            steps |= {name: everywhere(model, steps[name]) for name in ("plain", "fast")}
            head = head_operations(answers * tokens, vocab, trains)
            found[kind] = compared(steps, rounds, head, {"trl": body_operations(theirs, batch, trains)})
    return found


def body_operations(model: Any, batch: dict[str, torch.Tensor], gradients: bool) -> float:
    """Of a pass of the layers without a head."""
    inputs = {name: x for name, x in batch.items() if name != "labels"}
    with counter() as counted, torch.set_grad_enabled(gradients):
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
        if gradients:
            hidden.float().mean().backward()
    model.zero_grad(set_to_none=True)
    return float(counted.get_total_flops())


class Largest(TorchDispatchMode):  # type: ignore[misc]
    """Remembers how many entries the largest tensor has that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.entries = max([self.entries, *(x.numel() for x in tree_leaves(found) if isinstance(x, torch.Tensor))])
        return found


def window(rounds: int, lengths: tuple[int, ...] = (2048, 4096, 8192), layers: int = 4) -> dict[str, Any]:
    """Line 5: sliding layers of Gemma 3 with a window of 512 over packed rows, by_document and sdpa."""
    torch.manual_seed(0)
    model = gemma3(layers, 1024, [SLIDING] * layers)
    model.requires_grad_(False)
    found: dict[str, Any] = {}
    for attention in (DOCUMENTS, "sdpa"):
        with training_attention(model, attention), _kernel(model, attention):
            for length in lengths:
                step = _body(model, length)
                with Largest() as largest:
                    step()
                seconds = min(timed(step) for _ in range(rounds))
                found.setdefault(attention, {})[length] = {
                    "seconds": seconds, "largest_tensor": largest.entries, "square": length * length,
                }  # fmt: skip
    return found


@contextlib.contextmanager
def _kernel(model: Any, attention: str) -> Iterator[None]:
    """`training_attention` takes SDPA from the model's own setting."""
    own = model.config._attn_implementation
    if attention != DOCUMENTS:
        model.set_attn_implementation(attention)
    yield
    if attention != DOCUMENTS:
        model.set_attn_implementation(own)


def _body(model: Any, length: int) -> Callable[[], float]:
    """A forward and backward pass of the layers over a row of two documents, a quarter and the rest of it."""
    states = torch.randn(1, length, 640, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    lengths = [length // 4, length - length // 4]
    positions = torch.cat([torch.arange(n, device=DEVICE) for n in lengths])[None]

    def step() -> float:
        states.grad = None
        found = model.base_model(inputs_embeds=states, position_ids=positions, use_cache=False).last_hidden_state
        found.float().square().mean().backward()
        return 0.0

    return step
