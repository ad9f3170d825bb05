"""What torchao's quantization-aware training ships, against what it trained: a section of `make bench-qat`.

torchao is no part of this project; the section is left out, with the reason, where it can't be imported.
"""

from __future__ import annotations

import copy
import importlib.metadata
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf as gguf_file
import torch
from gguf.quants import dequantize, quantize
from grid_models import TINY, with_adapter
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemma_tune.config import DataConfig
from gemma_tune.data.loading import load_held_out
from gemma_tune.export import gguf
from gemma_tune.export.read_gguf import read_gguf
from gemma_tune.export.tensors import TrainedTensors, decoded_weight, trained_tensors
from gemma_tune.quant.grid import Encoded
from gemma_tune.quant.layers import GridLora, put_on_grid
from gemma_tune.quant.plan import Plan, plan_of

GROUP, ROWS, UPDATE = 32, 32, 0.01  # weights of a scale; held-out rows; |B·A| / |W|
Weights = dict[str, torch.Tensor]


def torchao() -> dict[str, Any]:
    """All arms on the embedded model; or the reason why there are none."""
    try:
        import torchao.quantization.qat  # noqa: F401
    except ImportError as error:
        return {"skipped": f"torchao can't be imported ({error})"}
    rows = held_out()
    return {
        "version": importlib.metadata.version("torchao"),
        "rows": len(rows),
        "update": UPDATE,
        "arms": {**full(rows), **lora(rows), **own(rows)},
    }


def loaded() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


def held_out() -> list[list[int]]:
    data = DataConfig(format="messages", train_file="assets://sample/train.jsonl",
                      validation_file="assets://sample/validation.jsonl", max_eval_samples=ROWS)  # fmt: skip
    return [row.input_ids for row in load_held_out(data, AutoTokenizer.from_pretrained(TINY), 512, 42).rendered]


def log_probs(model: Any, rows: list[list[int]]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1) for ids in rows]


def with_weights(weights: Mapping[str, torch.Tensor]) -> Any:
    """The embedded model with some weights changed."""
    model = loaded()
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_parameter(name).copy_(weight)
    return model


def compared(
    trained: Weights, shipped: Weights, said: list[torch.Tensor], rows: list[list[int]], codes: float | None
) -> dict[str, Any]:
    """Weights of the projections and the logits, shipped against trained.

    Args:
        trained: What the training forward used.
        shipped: What the artifact stands for.
        said: Log-probabilities of the training forward.
        rows: Of the same tokens.
        codes: Share of codes that differ; None: the grids are not the same, so that codes say nothing.
    """
    off = sum((shipped[n] - w).square().sum().item() for n, w in trained.items())
    size = sum(w.square().sum().item() for w in trained.values())
    after = log_probs(with_weights(shipped), rows)
    kl = [(p.exp() * (p - q)).sum(-1) for p, q in zip(said, after, strict=True)]
    return {"codes": codes, "error": (off / size) ** 0.5, "kl": torch.cat(kl).mean().item()}


def naive(weights: Weights) -> Weights:
    """llama.cpp's own Q4_0 of these weights."""
    kind = gguf_file.GGMLQuantizationType.Q4_0
    return {n: torch.from_numpy(dequantize(quantize(w.numpy(), kind), kind)) for n, w in weights.items()}


# torchao


def projections(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers but the head, by the names of their weights in the model that was loaded."""
    found = {n.removesuffix(".base_layer"): m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    layers = {n.removeprefix("base_model.model."): m for n, m in found.items() if "lora_" not in n}
    return {f"{n}.weight": m for n, m in layers.items() if "lm_head" not in n}


def prepared(model: Any) -> Any:
    """torchao's QAT of int4 weights, on the projections."""
    from torchao.quantization import Int4WeightOnlyConfig, quantize_
    from torchao.quantization.qat import QATConfig

    ours = set(map(id, projections(model).values()))
    quantize_(model, QATConfig(Int4WeightOnlyConfig(group_size=GROUP), step="prepare"), lambda m, n: id(m) in ours)
    return model


def forward_weights(model: Any) -> Weights:
    with torch.no_grad():
        return {n: m.weight_fake_quantizer(m.weight).clone() for n, m in projections(model).items()}


def converted(model: Any, dtype: torch.dtype) -> tuple[Weights, Weights]:
    """The weights and codes of torchao's int4 layers for CPUs, from a prepared model."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    names = list(projections(model))
    model = copy.deepcopy(model).to(dtype)
    quantize_(model, QATConfig(PrototypeInt4WeightOnlyConfig(group_size=GROUP), step="convert"))
    weights, codes = {}, {}
    for name in names:
        layer = model.get_submodule(name.removesuffix(".weight"))
        with torch.no_grad():
            seen = layer(torch.eye(layer.in_features, dtype=dtype)).float().T  # its kernel's product with one
        scale, zero = (t.float().T.unsqueeze(-1) for t in layer.weight.scale_and_zero.unbind(-1))
        blocks = seen.unflatten(-1, (-1, GROUP))
        codes[name] = ((blocks - zero) / scale).round().flatten(-2)
        weights[name] = (codes[name].unflatten(-1, (-1, GROUP)) * scale + zero).flatten(-2)
    return weights, codes


def asymmetric_codes(weights: Weights) -> Weights:
    """Codes of the training forward: -8 stands for the smallest weight of a block, 7 for the largest."""
    found = {}
    for name, weight in weights.items():
        blocks = weight.unflatten(-1, (-1, GROUP))
        low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
        found[name] = (((blocks - low) / ((high - low).clamp_min(1e-6) / 15)).round() - 8).flatten(-2)
    return found


def different(a: Weights, b: Weights) -> float:
    return sum((a[n] != b[n]).sum().item() for n in a) / sum(t.numel() for t in a.values())


def full(rows: list[list[int]]) -> dict[str, Any]:
    """All weights: prepared, and converted in two types; and what llama.cpp makes of what was trained."""
    model = prepared(loaded())
    trained, said = forward_weights(model), log_probs(model, rows)
    masters = {n: m.weight.detach().clone() for n, m in projections(model).items()}
    codes = asymmetric_codes(masters)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        shipped, written = converted(model, dtype)
        name = f"torchao, converted in {str(dtype).removeprefix('torch.')}"
        found[name] = compared(trained, shipped, said, rows, different(codes, written))
    found["torchao, its rounded weights as a naive Q4_0"] = compared(trained, naive(trained), said, rows, None)
    found["torchao, its float weights as a naive Q4_0"] = compared(trained, naive(masters), said, rows, None)
    return found


def lora(rows: list[list[int]]) -> dict[str, Any]:
    """An adapter beside the quantizer, merged and then converted: Q(W)x + B·A·x is trained, Q(W + B·A) is shipped."""
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules="all-linear")
    model = get_peft_model(loaded(), config)
    updates: Weights = {}
    with torch.no_grad():
        for name, base in projections(model).items():
            layer = model.base_model.model.get_submodule(name.removesuffix(".weight"))
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            b.normal_()
            b.mul_(UPDATE * base.weight.norm() / (b @ a).norm())
            updates[name] = b @ a
    prepared(model).eval()
    rounded, said = forward_weights(model), log_probs(model, rows)
    trained = {n: w + updates[n] for n, w in rounded.items()}
    masters = {n: m.weight.detach() + updates[n] for n, m in projections(model).items()}
    shipped, written = converted(prepared(with_weights(masters)), torch.float32)
    codes = asymmetric_codes({n: m.weight.detach() for n, m in projections(model).items()})
    of = compared(trained, shipped, said, rows, different(codes, written))
    size = sum(u.square().sum().item() for u in updates.values()) ** 0.5
    off = sum((shipped[n] - w).square().sum().item() for n, w in trained.items()) ** 0.5
    return {"torchao with an adapter, merged and converted in float32": of | {"of_update": off / size}}


# Ours


def own(rows: list[list[int]]) -> dict[str, Any]:
    """The codes of a GGUF file that was written and read back, and a naive Q4_0 of the trained weights."""
    found = {}
    for name, adapter in (("gemma_tune", False), ("gemma_tune with an adapter", True)):
        base = loaded()
        plan = plan_of(base, "q4_0", None)
        model = with_adapter(base, GridLora) if adapter else base
        put_on_grid(model, plan)
        said, parts = log_probs(model, rows), trained_tensors(model, plan)
        trained = {n: decoded_weight(n, parts, plan) for n in plan.grids}
        codes = {n: e.codes for n, e in parts.items() if isinstance(e, Encoded)}
        stored = written(parts, base, plan)
        shipped = {n: plan.grids[n].decode(e) for n, e in stored.items()}
        off = different(codes, {n: e.codes for n, e in stored.items()})
        found[f"{name}, GGUF"] = compared(trained, shipped, said, rows, off)
        again = naive(trained)
        off = different(codes, {n: plan.grids[n].encode(w).codes for n, w in again.items()})
        found[f"{name}, its rounded weights as a naive Q4_0"] = compared(trained, again, said, rows, off)
    return found


def written(parts: TrainedTensors, model: Any, plan: Plan) -> dict[str, Encoded]:
    """What a GGUF file holds of the projections."""
    with tempfile.TemporaryDirectory() as folder:
        config, file = model.config.get_text_config(), Path(folder) / "model.gguf"
        tokenizer = AutoTokenizer.from_pretrained(TINY)
        gguf.export(parts, config, tokenizer, model.generation_config, plan, file, name="model")
        return {n: s.encoded for n, s in read_gguf(file, list(parts)) if n in plan.grids and s.encoded is not None}


def torchao_text(found: dict[str, Any]) -> str:
    """The table, or why there is none."""
    if "skipped" in found:
        return f"## What is shipped compared with what was trained\n\nNot measured: {found['skipped']}.\n"
    lines = []
    for name, of in found["arms"].items():
        codes = "other grid" if of["codes"] is None else f"{of['codes']:.3%}"
        update = f"{of['of_update']:.1f}" if "of_update" in of else ""
        lines.append(f"| {name} | {codes} | {of['error']:.2e} | {update} | {of['kl']:.2e} |")
    return f"""## What is shipped compared with what was trained

torchao {found["version"]} on the embedded model, float32, projections only: its QAT of `Int4WeightOnlyConfig` with
groups of {GROUP} (`QATConfig`, prepare), and its int4 layers for CPUs (`PrototypeInt4WeightOnlyConfig`, convert).
"Trained" is what the forward pass of training computes; no training step was taken. Adapters are random; in
torchao's arm the norm of the update is {found["update"]:.0%} of each weight's norm: torchao trains Q(W)x + B·A·x
and ships Q(W + B·A). The error is |shipped − trained| over all projections, relative to |trained| and then to
|B·A|. KL is from the forward pass of training, in nats per token, over {found["rows"]} rows of the sample task.

| shipped | codes that differ | error relative to the weights | relative to the update | KL |
| --- | --- | --- | --- | --- |
{chr(10).join(lines)}
"""
