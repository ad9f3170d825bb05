"""What a decoder layer keeps of each token for its backward pass, counted from its modules."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from gemma_tune.models.family import Family


def shares_keys(layer: Any) -> bool:
    """Whether a layer uses the keys and values of one below it."""
    return bool(getattr(layer.self_attn, "is_kv_shared_layer", False))


def kept_widths(family: Family, text: Any, layers: Any) -> dict[str, int]:
    """The widths of `ModelSize`, by their names there: of an average layer.

    A linear layer keeps its input where it or its adapter is trained: one for queries, keys and values, one for gate
    and up, one each for the other two. Attention keeps queries, keys and values, the product with the gate both of its
    factors and the activation its input. A norm keeps its input. The MLP of each expert at work keeps as
    much as a layer's own, and the rows that it is given and gives. Of Gemma 3n, each of its two mixings keeps all
    streams, and where it is trained once more.

    Args:
        family: Of the model.
        text: Its text configuration.
        layers: Its layers, perhaps on the meta device.
    """
    total: Counter[str] = Counter()
    for layer in layers:
        total.update(_of_layer(family, text, layer))
    names = ("layer_width", "norm_width", "other_width", "query_width", "key_width", "mlp_width")
    return {name: total[name] // len(layers) for name in names}


def _of_layer(family: Family, text: Any, layer: Any) -> dict[str, int]:
    hidden = text.hidden_size
    linear = {name.rpartition(".")[2]: m for name, m in layer.named_modules() if isinstance(m, nn.Linear)}
    out = {f"{n[0]}_norm": m.out_features for n, m in linear.items() if n in ("q_proj", "k_proj", "v_proj")}
    if shares_keys(layer):  # Gemma 3n has them all the same
        out |= {"k_norm": 0, "v_norm": 0}
    queries, keys = out["q_norm"], out.get("k_norm", 0) + out.get("v_norm", 0)
    inner, rows = linear["down_proj"].in_features, 0
    if any(family.is_expert(name) for name, _ in layer.named_parameters()):
        inner, rows = inner + text.top_k_experts * text.moe_intermediate_size, 2 * text.top_k_experts
    products = (2 + rows) * hidden + 2 * queries + keys + 4 * inner
    products += 3 * (getattr(text, "hidden_size_per_layer_input", 0) or 0)
    others = sum(m.in_features for name, m in linear.items() if not family.reaches(name))
    if hasattr(layer, "altup"):
        products += 2 * text.altup_num_inputs * hidden
        others += text.altup_num_inputs * hidden
    norms = [name.rpartition(".")[2] for name, m in layer.named_modules() if "RMSNorm" in type(m).__name__]
    return {
        "layer_width": products,
        "norm_width": sum(out.get(name, hidden) for name in norms if name != "v_norm" or "v_norm" in out),
        "other_width": others,
        "query_width": queries,
        "key_width": keys,
        "mlp_width": inner,
    }
