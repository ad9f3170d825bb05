"""`make figures-int4`: bytes of the int4 files of every published Gemma, memory, and what fits, by calculation.

Shapes are those of the model on the meta device, formats those of its plan (quant/plan.py), the tensors of a GGUF file
those that are written (export/gguf_tensors.py). What a machine needs besides weights and keys and values is assumed:
the options of this program, which its output names. It prints its tables, or puts them into a page:

    python benchmarks/int4_sizes.py --models google/gemma-3-4b-it --phones 12 --gpus 12 --contexts 8192 65536
    python benchmarks/int4_sizes.py --write docs/int4.md
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

import page_tables
from gguf import GGML_QUANT_SIZES
from transformers import AutoConfig

from gemma_tune.config import QuantConfig
from gemma_tune.config.quant import CHANNEL
from gemma_tune.export.gguf import tensor_type
from gemma_tune.export.gguf_tensors import GgufTensor, gguf_tensors
from gemma_tune.export.mlx_folder import idle_tensors
from gemma_tune.models import published as published_sizes
from gemma_tune.models.estimate.size import empty_model
from gemma_tune.models.family import EXPERTS, FAMILIES, FLOAT32, LINEAR, TENSOR_KINDS
from gemma_tune.models.published import published
from gemma_tune.models.unwrap import stored_tensors
from gemma_tune.quant.channels import channel_plan
from gemma_tune.quant.plan import Plan, plan_of

GIB = 2**30
# Names of `quant.embedding` and `quant.per_layer_embedding`, and what the tables call them
EMBEDDINGS: Mapping[str | None, str] = {None: "16 bit", "q8_0": "8 bit", "q4_0": "4 bit"}
# Of which tensors a folder holds codes, if the plan has them on a grid
_CODED = {
    "w4a16": (LINEAR, EXPERTS),
    "w4a16_transformers": (LINEAR,),
    "mlx": TENSOR_KINDS,
    "merged": (),
}
_PHONE = QuantConfig(grid=CHANNEL, embedding=CHANNEL, per_layer_embedding=CHANNEL)
# Bytes of a block's scale, and of compressed-tensors' record of a matrix's shape
_BLOCK, _SCALE, _SHAPE = 32, 2, 16


def options() -> argparse.ArgumentParser:
    """What is assumed, each with its default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--models", nargs="+", default=None, help="published checkpoints; all by default")
    parser.add_argument("--contexts", type=int, nargs=2, default=[4096, 32_768], help="tokens of a conversation")
    parser.add_argument("--phones", type=float, nargs="+", default=[4, 6, 8], help="GiB of memory")
    parser.add_argument("--phone-share", type=float, default=0.5, help="of a phone's memory that one app can have")
    parser.add_argument("--gpus", type=float, nargs="+", default=[8, 16, 24], help="GiB of memory")
    parser.add_argument("--gpu-kept", type=float, default=1.5, help="GiB of a GPU for its driver and for activations")
    parser.add_argument("--write", type=Path, help="a page with the comments that name the tables")
    return parser


class Sized:
    """A language part without its weights.

    Args:
        name: Its name in the tables.
        config: Its configuration.
        beside: Weights in the checkpoint that are not its own: of towers, and keys and values that nothing reads.
    """

    def __init__(self, name: str, config: Any, beside: int = 0) -> None:
        self.name, self.config, self.beside = name, config, beside

    @cached_property
    def model(self) -> Any:
        """On the meta device."""
        return empty_model(self.config)

    def plan(self, embedding: str | None) -> Plan:
        """With this grid for the embedding and the table of per-layer embeddings."""
        return plan_of(self.model, "q4_0", embedding, embedding)

    @cached_property
    def gguf_bytes(self) -> dict[str | None, int]:
        """By the grid of the embeddings; with what llama.cpp asks for and nobody trains (rotary frequencies)."""
        family, tensors = FAMILIES[self.config.model_type], gguf_tensors(self.config)

        def bytes_of(tensor: GgufTensor, plan: Plan) -> int:
            block, size = GGML_QUANT_SIZES[tensor_type(family, tensor.of, tensor.shape, plan)]
            return prod(tensor.shape) // block * size

        plans = {embedding: self.plan(embedding) for embedding in EMBEDDINGS}
        return {embedding: sum(bytes_of(tensor, plan) for tensor in tensors) for embedding, plan in plans.items()}

    def folder_bytes(self, kind: str, embedding: str | None = None) -> int:
        """Bytes of all tensors of a folder: `w4a16`, `w4a16_transformers`, `mlx`, `phone` or `merged`.

        What else is in the checkpoint is in 16 bit, and not in `mlx`. In `phone` whatever can be is in 4 bit.
        """
        if kind == "phone":
            return channel_plan(self.model, _PHONE).bytes + 2 * self.beside
        family, plan = FAMILIES[self.config.model_type], self.plan(embedding)
        idle = sum(map(prod, idle_tensors(self.config).values()))
        total = 2 * (idle if kind == "mlx" else self.beside)
        for name, tensor in stored_tensors(self.model):
            what, count = family.kind_of(name, tensor.ndim), tensor.numel()
            if what not in _CODED[kind] or name not in plan.grids:
                total += count * (4 if what == FLOAT32 else 2)
                continue
            codes = count * max(plan.grids[name].bits, 4) // 8
            if kind == "mlx":  # a bias beside each scale
                total += codes + count // _BLOCK * 2 * _SCALE
            else:
                total += codes + count // _BLOCK * _SCALE + _SHAPE * _matrices(name, tensor.shape)
        return total

    def cache_bytes(self, tokens: int) -> int:
        """Of keys and values in float16: a sliding layer holds its window, a layer that shares another's none."""
        return sum(4 * min(tokens, held) * width for held, width in self._layers())

    def _layers(self) -> Iterator[tuple[float, int]]:
        """Of each layer that has keys of its own: how many tokens it holds at most, and the width of a key."""
        c = self.config
        kinds = getattr(c, "layer_types", None) or ["full_attention"] * c.num_hidden_layers
        for i, kind in enumerate(kinds[: c.num_hidden_layers - (getattr(c, "num_kv_shared_layers", 0) or 0)]):
            of = layer_of(c, i)
            held = c.sliding_window if kind == "sliding_attention" else float("inf")
            yield held, of.num_key_value_heads * of.head_dim

    def context(self, tokens: int) -> int:
        """So many tokens, or as many as it can hold."""
        return min(tokens, int(self.config.max_position_embeddings))

    def memory(self, embedding: str | None, tokens: int) -> float:
        """GiB of weights as in the GGUF file, with keys and values."""
        return (self.gguf_bytes[embedding] + self.cache_bytes(self.context(tokens))) / GIB


def _matrices(name: str, shape: Sequence[int]) -> int:
    """How many matrices of w4a16 a tensor is: fused experts are three each, one in `down_proj` and two in the other."""
    return (2 if name.endswith("gate_up_proj") else 1) * prod(shape[:-2])


def models(names: Sequence[str] | None) -> Iterator[Sized]:
    """The published checkpoints by name, or all; those with the same sizes are one."""
    if names is None:
        stored = json.loads(Path(published_sizes.__file__).with_name("published.json").read_text(encoding="utf-8"))
        same = {name: [n for n, entry in stored.items() if name in (n, entry.get("same_as"))] for name in stored}
        named = {name: ", ".join(same[name]) for name, entry in stored.items() if "same_as" not in entry}
    else:
        named = {name: name.split("/")[-1] for name in names}
    for name, label in named.items():
        found = published(name)
        if found is None:
            raise SystemExit(f"--models {name}: no published checkpoint")
        config = AutoConfig.for_model(found.model_type, **found.text)
        yield Sized(label, config, found.tower_parameters + stored_idle(config))


def stored_idle(config: Any) -> int:
    """Weights of the keys and values that a published checkpoint stores of layers that use those of others."""
    shared = getattr(config, "num_kv_shared_layers", 0) or 0
    layers = (layer_of(config, i) for i in range(config.num_hidden_layers - shared, config.num_hidden_layers))
    return sum((2 * config.hidden_size * of.num_key_value_heads + 1) * of.head_dim for of in layers)


def layer_of(config: Any, i: int) -> Any:
    """What has the sizes of a layer's attention."""
    return config.per_layer_config[i] if config.model_type.startswith("gemma4") else config


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, figures at the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def files_table(all_models: Sequence[Sized]) -> str:
    """Bytes on disk, a row for each model."""
    folders = (("w4a16", None), ("mlx", None), ("mlx", "q4_0"), ("phone", None), ("merged", None))
    head = ["GB", *(f"gguf, {words}" for words in EMBEDDINGS.values()), "w4a16", "mlx, 16 bit", "mlx, 4 bit", "phone"]
    rows = []
    for one in all_models:
        counts = [*one.gguf_bytes.values(), *(one.folder_bytes(*asked) for asked in folders)]
        rows.append([one.name, *(f"{count / 1e9:.2f}" for count in counts)])
    return table([*head, "merged"], rows)


def experts_line(all_models: Sequence[Sized]) -> str:
    """What the folder with dense experts takes, in a sentence."""
    sizes = [
        f"{one.name} {one.folder_bytes('w4a16_transformers') / 1e9:.2f} GB"
        for one in all_models
        if getattr(one.config, "enable_moe_block", False)
    ]
    return f"With dense experts, as `w4a16_transformers`: {', '.join(sizes) or 'none of these'}."


def memory_table(all_models: Sequence[Sized], contexts: Sequence[int]) -> str:
    """Keys and values alone, and with the weights, at two lengths."""
    words = [f"{tokens // 1024}k" for tokens in contexts]
    head = ["GiB", *(f"cache, {w}" for w in words)]
    head += [f"{EMBEDDINGS[e]}, {w}" for e, w in itertools.product((None, "q4_0"), words)]
    rows = []
    for one in all_models:
        short = [one.context(tokens) for tokens in contexts]
        marks = ["" if held == tokens else f" ({held // 1024}k)" for held, tokens in zip(short, contexts, strict=True)]
        caches = [one.cache_bytes(held) / GIB for held in short]
        sums = [[one.memory(e, tokens) for tokens in contexts] for e in (None, "q4_0")]
        cells = [f"{gib:.2f}{mark}" for part in (caches, *sums) for gib, mark in zip(part, marks, strict=True)]
        rows.append([one.name, *cells])
    return table(head, rows)


def fits_table(all_models: Sequence[Sized], a: argparse.Namespace) -> str:
    """For each model and machine the longer context that fits, and the most bits of the embeddings with it."""
    rooms = {f"phone, {gib:g} GB": gib * a.phone_share for gib in a.phones}
    rooms |= {f"GPU, {gib:g} GB": gib - a.gpu_kept for gib in a.gpus}

    def cell(one: Sized, room: float) -> str:
        for tokens, embedding in itertools.product(sorted(a.contexts, reverse=True), EMBEDDINGS):
            if one.memory(embedding, tokens) <= room:
                return f"{one.context(tokens) // 1024}k, {EMBEDDINGS[embedding]}"
        return "–"

    return table(["", *rooms], [[one.name, *(cell(one, room) for room in rooms.values())] for one in all_models])


def assumed(a: argparse.Namespace) -> str:
    """The options, in a sentence."""
    return (
        f"Assumed: weights, keys and values can have {a.phone_share:.0%} of a phone's memory; "
        f"{a.gpu_kept:g} GiB of a GPU are the driver's and those of activations; a GB of memory is a GiB; keys and "
        "values are float16; one conversation."
    )


def tables(a: argparse.Namespace) -> dict[str, str]:
    """Every table, by its name in the page."""
    found = list(models(a.models))
    return {
        "files": files_table(found),
        "experts": experts_line(found),
        "memory": memory_table(found, a.contexts),
        "assumed": assumed(a),
        "fits": fits_table(found, a),
    }


placed_in = partial(page_tables.placed_in, "int4_sizes")


def main(words: Sequence[str] | None = None) -> None:
    a = options().parse_args(words)
    page_tables.write_or_print("int4_sizes", a.write, tables(a))


if __name__ == "__main__":
    main()
