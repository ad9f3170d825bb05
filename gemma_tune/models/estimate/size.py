"""Parameter counts and sizes of a language model, taken from an instance on the meta device (no memory)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig

from gemma_tune.errors import UserError, first_line
from gemma_tune.models.estimate.layer_widths import kept_widths, shares_keys
from gemma_tune.models.estimate.tower_size import TowerSize, tower_size
from gemma_tune.models.family import FAMILIES, PER_LAYER_TABLE, Family
from gemma_tune.models.published import published

FEW = 500_000_000  # 4-bit weights whose decoded form, 2 bytes each, is kept unless it is said otherwise


def keeps_decoded(asked: bool | None, on_cpu: bool, weights: int) -> bool:
    """Whether training keeps 4-bit weights decoded.

    Args:
        asked: `model.keep_decoded`.
        on_cpu: Whether it trains on a CPU.
        weights: In 4 bit.
    """
    return on_cpu and weights <= FEW if asked is None else asked


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a language part.

    Attributes:
        hidden_size: Size of the residual stream.
        num_hidden_layers: Blocks.
        vocab_size: Rows of the embedding.
        parameters: All weights; a tied matrix counts once.
        linear_parameters: Weights of the linear layers that 4-bit quantization and adapters reach.
        linear_layers: How many such layers there are.
        adapted_widths: Sum of in + out over these layers: an adapter of rank r has r times as many weights.
        expert_widths: The same over all experts of the fused tensors.
        expert_parameters: Weights of these.
        num_attention_heads: Query heads.
        attention: The kernel that computes its attention by default.
        layer_width: Numbers that an average block keeps of each token for the backward pass, in the type of products.
        norm_width: Those that its norms are given, which Transformers' keep in float32, whatever the others are.
        other_width: What linear layers without adapters are given besides, which is kept where they are trained.
        query_width: Queries of an average block, numbers of each token; `key_width`: its keys and values.
        mlp_width: Numbers of each token between the two halves of an average block's MLP and of its experts at work.
        computed_parameters: Weights that a token is multiplied with: linear layers, the head, the experts at work.
        shared_layer_parameters: Those among them in layers that share keys and values with a layer below.
        tower_parameters: Weights of the towers for images and audio, which are not loaded for rows of text.
        layer_parameters: Weights of the largest decoder layer, with all of its experts.
        outer_parameters: Weights outside of the decoder layers: embeddings, per-layer embeddings, final norm, head.
        stream_width: Numbers that a decoder layer is given for each token: Gemma 3n's is four residual streams, and
            some have a row of the per-layer embeddings beside it.
        sliding_window: Tokens that sliding layers see; 0 where there are none.
        sliding_layers: How many layers are sliding.
        table_parameters: Weights of the table of per-layer embeddings (Gemma 3n, Gemma 4 E2B and E4B).
        towers: Sizes of the towers; None: there are none, or no more is known than `tower_parameters`.
        media_tokens: Soft tokens of media that a row of a batch has at most, as far as rows were read; with 0 towers
            aren't loaded.
    """

    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    parameters: int
    linear_parameters: int
    linear_layers: int
    adapted_widths: int
    layer_width: int
    num_attention_heads: int
    attention: str
    norm_width: int = 0
    other_width: int = 0
    query_width: int = 0
    key_width: int = 0
    mlp_width: int = 0
    expert_widths: int = 0
    expert_parameters: int = 0
    computed_parameters: int = 0
    shared_layer_parameters: int = 0
    tower_parameters: int = 0
    layer_parameters: int = 0
    outer_parameters: int = 0
    stream_width: int = 0
    sliding_window: int = 0
    sliding_layers: int = 0
    table_parameters: int = 0
    towers: TowerSize | None = None
    media_tokens: int = 0

    def lora_parameters(self, r: int, experts: bool = False) -> int:
        """Weights of rank-r adapters on every linear layer that they reach, and on every expert: r·(in + out) each."""
        return r * (self.adapted_widths + (self.expert_widths if experts else 0))


def empty_model(text_config: Any) -> Any:
    """The language part on the meta device: every name and shape, no memory."""
    cls: Any = getattr(transformers, FAMILIES[text_config.model_type].language_class)
    with torch.device("meta"):
        return cls(text_config)


def size_of(config: Any, tower_parameters: int = 0) -> ModelSize:
    """The sizes of the language part of a configuration, of a whole model or of the part alone.

    Raises:
        UserError: They make no model.
    """
    text = config.get_text_config()
    try:
        family, model = FAMILIES[text.model_type], empty_model(text)
    except Exception as error:  # sizes that don't go together fail the classes of Transformers in any way
        raise UserError(
            f"model.model_name_or_path={config.name_or_path}: the sizes in its config.json don't make a model "
            f"({first_line(error)}); fetch the checkpoint again."
        ) from error
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and family.reaches(n)}
    layers = [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
    parameters = sum(p.numel() for p in model.parameters())
    towers = tower_size(config)
    return ModelSize(
        hidden_size=text.hidden_size,
        num_hidden_layers=text.num_hidden_layers,
        vocab_size=text.vocab_size,
        parameters=parameters,
        linear_parameters=sum(m.weight.numel() for m in linear.values()),
        linear_layers=len(linear),
        adapted_widths=sum(m.in_features + m.out_features for m in linear.values()),
        **kept_widths(family, text, model.model.layers),
        num_attention_heads=text.num_attention_heads,
        expert_widths=sum(p.shape[0] * sum(p.shape[1:]) for n, p in model.named_parameters() if family.is_expert(n)),
        expert_parameters=sum(p.numel() for n, p in model.named_parameters() if family.is_expert(n)),
        attention=family.attention[0],
        computed_parameters=_computed(family, text, model),
        shared_layer_parameters=sum(
            _computed(family, text, layer) for layer in model.model.layers if shares_keys(layer)
        ),
        tower_parameters=towers.parameters if towers else tower_parameters,
        layer_parameters=max(layers),
        outer_parameters=parameters - sum(layers),
        stream_width=text.hidden_size * getattr(text, "altup_num_inputs", 1)
        + (getattr(text, "hidden_size_per_layer_input", 0) or 0),
        sliding_window=getattr(text, "sliding_window", None) or 0,
        sliding_layers=(getattr(text, "layer_types", None) or []).count("sliding_attention"),
        table_parameters=sum(p.numel() for n, p in model.named_parameters() if n == PER_LAYER_TABLE),
        towers=towers,
    )


def _computed(family: Family, text: Any, model: nn.Module) -> int:
    linear: int = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))  # the head is one of them
    experts: int = sum(p.numel() for name, p in model.named_parameters() if family.is_expert(name))
    return linear + (experts * int(text.top_k_experts) // int(text.num_experts) if experts else 0)


@cache
def published_size(name: str) -> ModelSize | None:
    """The shape of a published checkpoint by its Hub name, or None: known before anything is downloaded."""
    found = published(name)
    if found is None:
        return None
    return size_of(AutoConfig.for_model(found.model_type, **found.text), found.tower_parameters)
