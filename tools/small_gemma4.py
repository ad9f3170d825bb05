"""Small Gemma 4 models that can learn the sample task, to measure what quantization-aware training takes back.

    python tools/small_gemma4.py e2b FOLDER        # per-layer embeddings, shared keys and values, wide MLPs
    python tools/small_gemma4.py experts FOLDER    # eight experts, two of them at work, beside the dense MLP
    python -m gemma_tune recipe=full_sft model.model_name_or_path=FOLDER

They begin with the weights of the embedded Gemma 3 where the families have the same layers: from nothing, this size
learns to copy from a prompt late or never. Norms become w·x, the scale of queries goes into their norm, and experts
begin as parts of the dense MLP; attention with other keys and the rest is learned in training.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma4ForCausalLM, Gemma4TextConfig

from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
_SLIDING, _FULL = "sliding_attention", "full_attention"
_E2B: dict[str, Any] = {
    "layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING, _SLIDING, _FULL], "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True, "hidden_size_per_layer_input": 32,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {
    "layer_types": [_SLIDING] * 5 + [_FULL], "hidden_size_per_layer_input": 0, "enable_moe_block": True,
    "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 192,
}  # fmt: skip
KINDS = {"e2b": _E2B, "experts": _EXPERTS}
_SAME = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
    "num_key_value_heads", "sliding_window", "max_position_embeddings", "rms_norm_eps", "pad_token_id", "bos_token_id",
    "eos_token_id",
)  # fmt: skip
# What is new begins small beside what is known
_NEW = 0.1


def build(kind: str) -> Any:
    """The model in float32, before it is trained.

    Args:
        kind: A key of `KINDS`.
    """
    old = Gemma3ForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    c = old.config
    values = {key: getattr(c, key) for key in _SAME} | KINDS[kind]
    config = Gemma4TextConfig(**values, global_head_dim=c.head_dim, vocab_size_per_layer_input=c.vocab_size)
    torch.manual_seed(0)
    model = Gemma4ForCausalLM(config).float()
    model.generation_config = old.generation_config
    known = old.state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _begin(name, parameter, known, c.query_pre_attn_scalar)
    return model


def _begin(name: str, parameter: torch.Tensor, known: dict[str, torch.Tensor], scalar: float) -> None:
    """Sets a parameter to what it is in the embedded model, as far as that has it."""
    old = known.get(name)
    if name.endswith(("layernorm_1.weight", "layernorm_2.weight", "per_layer_input_norm.weight")):
        parameter.fill_(1.0 if "layernorm_1" in name else _NEW)
    elif "norm" in name and old is not None:
        parameter.copy_((1 + old) * (scalar**-0.5 if name.endswith("q_norm.weight") else 1))
    elif ".experts." in name:
        _begin_experts(name, parameter, known)
    elif old is not None and old.shape == parameter.shape:
        parameter.copy_(old)
    elif old is not None and ".mlp." in name:  # twice as wide: the second half adds nothing yet
        parameter.mul_(0.0 if name.endswith("down_proj.weight") else 1.0)
        parameter[tuple(map(slice, old.shape))] = old


def _begin_experts(name: str, parameter: torch.Tensor, known: dict[str, torch.Tensor]) -> None:
    """Each expert is a part of the dense MLP; there are twice as many as parts."""
    layer, width = name.split(".experts.")[0], parameter.shape[1] // 2
    gate, up, down = (known[f"{layer}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
    width = width if "gate_up" in name else parameter.shape[2]
    for expert in range(len(parameter)):
        part = slice(start := expert * width % len(gate), start + width)
        parameter[expert] = torch.cat([gate[part], up[part]]) if "gate_up" in name else down[:, part]
    parameter.add_(0.02 * parameter.std() * torch.randn_like(parameter))


def main() -> None:
    """Writes a model's folder."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    build(asked.kind).save_pretrained(asked.folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(asked.folder)


if __name__ == "__main__":
    main()
