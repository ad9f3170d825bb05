"""The tensors of a GGUF file by the tensors of the language part: names, shapes, stacks, constants.

Most are the same tensor under another name. Others are several of ours in one (Gemma 3n's AltUp), longer than ours (its
per-layer embeddings), a constant that llama.cpp reads from the file (rotary frequencies), or zeros that it asks for and
never uses (keys and values of layers that share those of others).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from gguf import TensorNameMap, get_tensor_name_map

from gemma_tune.export.gguf_metadata import architecture_of, head_sizes
from gemma_tune.models.estimate.size import empty_model
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.unwrap import stored_tensors

Shape = tuple[int, ...]

_LAYER = re.compile(r"^.*\.layers\.\d+\.")
# The order of a layer's tensors in the file: that of the forward pass.
_LAYER_ORDER = ("input_", "self_attn.", "post_attention_", "pre_feedforward_", "mlp.", "post_feedforward_")
# One tensor of each of them in the file: [matrices, out, in]
_STACKED = re.compile(r"^(model\.altup_(?:unembed_)?projections)\.\d+\.weight$")
# What gguf's map of names doesn't have: llama.cpp's names, as patterns of ours
_OWN_NAMES = {
    r"^model\.layers\.(\d+)\.router\.scale$": r"blk.\1.ffn_gate_inp.scale",
    r"^model\.layers\.(\d+)\.router\.per_expert_scale$": r"blk.\1.ffn_down_exps.scale",
}
_UNROTATED = 1e30  # a frequency divided by it turns nothing


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file.

    Attributes:
        name: llama.cpp's name of it.
        shape: Its shape in the file, as torch writes shapes.
        parts: The language part's tensors that it holds, one after another along its first axis; none: `constant`.
        constant: What it holds, float32; None beside parts, and where it is zeros.
    """

    name: str
    shape: Shape
    parts: tuple[str, ...] = ()
    constant: torch.Tensor | None = None

    @property
    def of(self) -> str:
        """The name in the language part that its type goes by."""
        return self.parts[0] if self.parts else self.name


def gguf_tensors(config: Any) -> list[GgufTensor]:
    """Every tensor of a language model's file, in the order of the file.

    Args:
        config: The language part's configuration.

    Raises:
        ValueError: llama.cpp has no name for a tensor.
    """
    names, found = GgufNames(config), [*_constants(config)]
    stacks: dict[str, list[str]] = {}
    shapes = tensor_shapes(config)
    for own, shape in shapes.items():
        name = names.of(own)
        if name is None:
            raise ValueError(f"{own}: llama.cpp has no such tensor in {names.architecture}")
        if name in stacks:
            stacks[name].append(own)
            continue
        if _STACKED.match(own):
            stacks[name] = [own]
        found.append(GgufTensor(name, _padded(config, own, shape), (own,)))
    stacked = {name: GgufTensor(name, (len(parts), *shapes[parts[0]]), tuple(parts)) for name, parts in stacks.items()}
    return [stacked.get(tensor.name, tensor) for tensor in found]


class GgufNames:
    """llama.cpp's names of a language part's tensors.

    Args:
        config: The language part's configuration.
    """

    def __init__(self, config: Any) -> None:
        self.architecture = FAMILIES[config.model_type].gguf
        self._known: TensorNameMap = get_tensor_name_map(architecture_of(self.architecture), config.num_hidden_layers)

    def of(self, own: str) -> str | None:
        """The name in the file; None where llama.cpp has no such tensor."""
        for pattern, name in _OWN_NAMES.items():
            if re.match(pattern, own):
                return re.sub(pattern, name, own)
        if stacked := _STACKED.match(own):
            own = f"{stacked[1]}.weight"
        named = own if own.endswith(".weight") else f"{own}.weight"  # experts and buffers have no such end
        found: str | None = self._known.get_name(named, try_suffixes=(".weight",))
        return found


def _padded(config: Any, own: str, shape: Shape) -> Shape:
    """llama.cpp wants a row of every embedding for each token; Gemma 3n has no per-layer embeddings of its media."""
    if "embed_tokens" in own:
        return max(shape[0], config.vocab_size), *shape[1:]
    return shape


def _constants(config: Any) -> Iterator[GgufTensor]:
    family = FAMILIES[config.model_type]
    if family.gguf == "gemma4":
        size = head_sizes(config)["full_attention"]
        rotary = config.rope_parameters["full_attention"]
        turned = int(size * rotary.get("partial_rotary_factor", 1.0) / 2)
        frequencies = torch.tensor([1.0] * turned + [_UNROTATED] * (size // 2 - turned))
        yield GgufTensor("rope_freqs.weight", (size // 2,), constant=frequencies)
    if family.gguf == "gemma3n":
        width = config.num_key_value_heads * config.head_dim
        for i in range(config.num_hidden_layers - config.num_kv_shared_layers, config.num_hidden_layers):
            for end, shape in (
                ("k", (width, config.hidden_size)),
                ("v", (width, config.hidden_size)),
                ("k_norm", (config.head_dim,)),
            ):
                yield GgufTensor(f"blk.{i}.attn_{end}.weight", shape)


def tensor_shapes(config: Any) -> dict[str, Shape]:
    """Every tensor of a language part with its shape, in the order of the file; of a tied pair there is the embedding.

    The names and shapes are those of the model on the meta device.
    """
    _, head = FAMILIES[config.model_type].tied
    shapes = {name: tuple(p.shape) for name, p in stored_tensors(empty_model(config))}
    if config.tie_word_embeddings:
        shapes.pop(head, None)
    found: dict[str, Shape] = {}
    ordered = sorted(shapes, key=_layer_number)  # buffers follow the parameters
    for layer, names in groupby(ordered, _layer_of):
        found |= {name: shapes[name] for name in (sorted(names, key=_place_in_layer) if layer else names)}
    return found


def _layer_of(name: str) -> str:
    found = _LAYER.match(name)
    return found.group() if found else ""


def _layer_number(name: str) -> tuple[int, int]:
    """Embeddings, layers by their numbers, what follows them."""
    if layer := _layer_of(name):
        return 1, int(layer.rsplit(".", 2)[1])
    return (0 if "embed_tokens" in name else 2), 0


def _place_in_layer(name: str) -> int:
    own = _LAYER.sub("", name)
    return next((i for i, start in enumerate(_LAYER_ORDER) if own.startswith(start)), len(_LAYER_ORDER))
