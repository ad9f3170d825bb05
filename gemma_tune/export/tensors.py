"""The tensors of a trained model: codes and scales where they are on a grid, float32 numbers elsewhere.

Every exporter writes these, and the check compares the files with these. They are computed some rows at a time, when
they are asked for: the codes of a whole model, or one large matrix in another type, would take too much memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper

from gemma_tune.errors import RunError
from gemma_tune.export.file_tensor import row_blocks
from gemma_tune.models.adapters.merging import merged_weights
from gemma_tune.models.four_bit_weights import weight_of
from gemma_tune.models.unwrap import language_part, stored_tensors
from gemma_tune.quant.experts import GridExperts
from gemma_tune.quant.grid import Encoded, Grid, NotOnGrid
from gemma_tune.quant.layers import grid_layers
from gemma_tune.quant.on_grid import OnGrid
from gemma_tune.quant.plan import KEPT_16, Plan

ALL = slice(None)
V = TypeVar("V", bound=torch.Tensor | Encoded, covariant=True)

# By their names in the language part; a tied head and embedding are one tensor, the embedding.
TrainedTensors = Mapping[str, Encoded | torch.Tensor]


class ByRows(NamedTuple):
    """A tensor, some rows at a time.

    Attributes:
        shape: Of the whole tensor.
        blocks: Its rows, as `row_blocks` divides them.
    """

    shape: tuple[int, ...]
    blocks: Iterator[Any]


class TensorsByRows(Mapping[str, V], Generic[V]):
    """Tensors that are computed on access, whole or by rows.

    Args:
        shapes: Their shapes.
        blocks: Computes the row blocks of one of them, or of some of its rows.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], blocks: Callable[[str, slice], Iterator[V]]) -> None:
        self.shapes, self._blocks = shapes, blocks

    def by_rows(self, name: str, rows: slice = ALL) -> ByRows:
        """One of them, or some of its rows."""
        shape = self.shapes[name]
        return ByRows((len(range(shape[0])[rows]), *shape[1:]) if rows != ALL else shape, self._blocks(name, rows))

    def __getitem__(self, name: str) -> V:
        if name not in self.shapes:
            raise KeyError(name)
        blocks: list[Any] = list(self._blocks(name, ALL))
        found: Any = blocks[0]
        if len(blocks) > 1:
            several = isinstance(found, Encoded)
            found = Encoded(*map(torch.cat, zip(*blocks, strict=True))) if several else torch.cat(blocks)
        return cast("V", found)

    def __contains__(self, name: object) -> bool:  # that of a mapping would compute it
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def by_rows(tensors: TrainedTensors, name: str, rows: slice = ALL) -> ByRows:
    """A tensor of any mapping, or some of its rows, by rows."""
    if isinstance(tensors, TensorsByRows):
        return tensors.by_rows(name, rows)
    tensor = tensors[name]
    if isinstance(tensor, Encoded):
        some = Encoded(*(part[rows] for part in tensor))
        shape = tuple(some.codes.shape)
        return ByRows(shape, (Encoded(*(part[block] for part in some)) for block in row_blocks(shape)))
    numbers = tensor[rows] if tensor.ndim else tensor
    shape = tuple(numbers.shape)
    return ByRows(shape, (numbers[block] for block in row_blocks(shape)))


def trained_tensors(model: Any, plan: Plan) -> TensorsByRows[Encoded | torch.Tensor]:
    """Every tensor of a language part, on the CPU, computed on access: the model must stay as it is.

    For a layer on the grid, the tensor that its forward pass rounds is encoded, on the same device. A model without
    such layers is quantized as it is, with its adapter merged in float32 (post-training quantization).

    Args:
        model: The trained model, or a PeftModel around it; it is not changed.
        plan: The format of each tensor.

    Raises:
        RunError: A tensor that no block can hold (NaN, too large), or that the plan doesn't list or lists with another
            size or grid.
    """
    weights = weights_of(model)
    # Experts are asked for one by one, and an adapter's sum of all of them takes long
    read = lru_cache(maxsize=2)(lambda name: weights[name].read())

    def blocks(name: str, some: slice) -> Iterator[Encoded | torch.Tensor]:
        with torch.no_grad():
            weight = weights[name].read() if some == ALL else read(name)[some]
            for rows in row_blocks(tuple(weight.shape)):
                with torch.no_grad():  # a generator's caller has its own mode
                    part = weight[rows]
                    if name in plan.grids:
                        part = _encoded(name, part, plan.grids[name].of_rows(some).of_rows(rows))
                yield part if isinstance(part, Encoded) else part.float().cpu()

    shapes: dict[str, tuple[int, ...]] = {}
    for name, weight in weights.items():
        shapes[name] = weight.shape()
        _check_planned(name, prod(shapes[name]), weight.layer, plan)
        if name in plan.grids:
            for _ in blocks(name, ALL):  # finds what no block can hold
                pass
    if missing := plan.sizes.keys() - shapes.keys():
        raise RunError(f"{min(missing)}: the plan is another model's: the model has no such tensor.")
    return TensorsByRows(shapes, blocks)


def float_tensors(model: Any) -> TensorsByRows[torch.Tensor]:
    """Every tensor of the unquantized model, as it is before rounding: float32, on the CPU, computed on access."""
    weights = weights_of(model)
    return read_by_rows({name: weight.read for name, weight in weights.items()})


def base_tensors(model: Any) -> TensorsByRows[torch.Tensor]:
    """As `float_tensors`, of the base without its adapter, whose layers are all that differ."""
    layers = {n: m for n, m in language_part(model).named_modules() if isinstance(m, LoraLayer)}
    bases = {
        f"{name}.weight": partial(weight_of, layer.get_base_layer())
        for name, layer in layers.items()
        if not isinstance(layer, ParamWrapper)
    }
    return read_by_rows({**dict(merged_weights(model)), **bases})


def read_by_rows(reads: Mapping[str, Callable[[], torch.Tensor]]) -> TensorsByRows[torch.Tensor]:
    """Tensors by what reads or computes each of them, as float32 on the CPU."""

    def whole(name: str) -> torch.Tensor:
        with torch.no_grad():
            return reads[name]().detach()

    def blocks(name: str, some: slice) -> Iterator[torch.Tensor]:
        weight = whole(name)[some]
        return (weight[rows].float().cpu() for rows in row_blocks(tuple(weight.shape)))

    return TensorsByRows({name: tuple(whole(name).shape) for name in reads}, blocks)


def _check_planned(name: str, count: int, layer: OnGrid | None, plan: Plan) -> None:
    if plan.sizes.get(name) != count:
        raise RunError(f"{name}: the plan is another model's: it has no such tensor of {count:,} weights.")
    if layer is not None and layer.grid != plan.grids.get(name):
        planned = plan.grids[name].name if name in plan.grids else plan.kept[name]
        raise RunError(f"{name}: it was trained on the grid {layer.grid.name}, and the plan says {planned}.")


def _encoded(name: str, weight: torch.Tensor, grid: Grid) -> Encoded:
    try:
        codes, scales = grid.encode(weight)
    except NotOnGrid as error:
        raise RunError(f"{name}: {error}.") from error
    return Encoded(codes.cpu(), scales.cpu())


def decoded_blocks(name: str, blocks: Iterable[Encoded | torch.Tensor], plan: Plan) -> Iterator[torch.Tensor]:
    """The float32 numbers of rows in the files: decoded from the grid, rounded to bfloat16, or unchanged."""
    for block in blocks:
        if isinstance(block, Encoded):
            yield plan.grids[name].decode(block)
        else:
            yield block.bfloat16().float() if plan.kept[name] == KEPT_16 else block


def decoded_weight(name: str, trained: TrainedTensors, plan: Plan) -> torch.Tensor:
    """The float32 numbers of a whole tensor in the files, see `decoded_blocks`."""
    return decoded_tensors(trained, plan)[name]


def decoded_tensors(trained: TrainedTensors, plan: Plan) -> TensorsByRows[torch.Tensor]:
    """`decoded_blocks` of every tensor, computed on access: the contents of a float32 file."""
    return TensorsByRows(
        {name: by_rows(trained, name).shape for name in trained},
        lambda name, rows: decoded_blocks(name, by_rows(trained, name, rows).blocks, plan),
    )


@dataclass(frozen=True)
class TrainedWeight:
    """A weight before rounding.

    Attributes:
        read: Computes it, on its own device.
        layer: Its layer where that is on a grid, else None.
    """

    read: Callable[[], torch.Tensor]
    layer: OnGrid | None = None

    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        with torch.no_grad():
            return tuple(self.read().shape)


def weights_of(model: Any) -> dict[str, TrainedWeight]:
    """Every weight before rounding, and every buffer of the checkpoint, by its name in the language part."""
    layers = grid_layers(model)
    if not layers:
        return {name: TrainedWeight(read) for name, read in merged_weights(model)}
    base = language_part(model)
    found = {name: TrainedWeight(layer.float_weight, layer) for name, layer in layers.items()}
    inside = "\0"  # the prefix of the module on the grid that the walk is in
    for name, module in base.named_modules():
        if name.startswith(inside):
            continue
        if isinstance(module, OnGrid | GridExperts | ParamWrapper):  # a tied head is one, and not among `layers`
            inside = f"{name}."
        elif not (base.config.tie_word_embeddings and name == "lm_head"):
            for own, tensor in stored_tensors(module, recurse=False):
                found[f"{name}.{own}"] = TrainedWeight(tensor.detach)
    return found
