"""The plan of a run: grids whose scales are derived, or those that the checkpoint's weights are on already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from gemma_tune.config import QuantConfig
from gemma_tune.config.quant import STORED
from gemma_tune.errors import UserError
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.family import EXPERTS, FAMILIES, LINEAR
from gemma_tune.models.source import Source
from gemma_tune.models.unwrap import stored_tensors
from gemma_tune.progress import progress
from gemma_tune.quant.channels import channel_plan
from gemma_tune.quant.grid import GRIDS, Grid, NotOnGrid
from gemma_tune.quant.lattice import find_lattice, stored_grid
from gemma_tune.quant.plan import KEPT_16, Plan, plan_of

# Blocks of which it is told whether a weight is on a grid, where none is asked for: those of no grid are on none
_SAMPLE = 256
_LOWEST, _HIGHEST = -8, 7
_AT_ONCE = 1 << 20  # weights


def plan_for(
    model: Any, quant: QuantConfig, source: Source, stored_file: Iterable[tuple[str, Any]] | None = None
) -> Plan:
    """The plan of a language part, by `quant`.

    Where the grid is that of the checkpoint, weights become code · scale in float32, which the files hold rounded.

    Args:
        model: The model without an adapter, as it was loaded.
        quant: Which grids.
        source: What it was loaded from.
        stored_file: Tensors of a file that take the place of the model's, some rows at a time, as `read_gguf` has
            them; None: those of the model.

    Raises:
        UserError: As `plan_of`; the file is another model's; or the weights are on no grid and that of the checkpoint
            is asked for.
    """
    if quant.by_channel:
        return channel_plan(model, quant)
    if not quant.continues:
        plan = plan_of(model, quant.grid, quant.embedding_grid, quant.per_layer_grid)
        return replace(plan, remarks=(*plan.remarks, *_lost(model, plan)))
    stored = quant.embedding == STORED
    its_own = "q4_0" if stored else None
    plan = plan_of(model, "q4_0", its_own or quant.embedding_grid, quant.per_layer_grid or its_own)
    family = FAMILIES[model.config.model_type]
    must = {n for n in plan.grids if family.kind_of(n, model.get_parameter(n).ndim) in (LINEAR, EXPERTS)}
    names = [name for name, grid in plan.grids.items() if (stored and grid.name == "q4_0") or name in must]
    files = _Scales(source, model, {} if stored_file is None else _taken(model, stored_file, quant))
    grids, kept, off, rounded, moved = dict(plan.grids), dict(plan.kept), dict[str, str](), 0, _Moved()
    for name in progress(names, desc="scales of the checkpoint", unit=" tensors"):
        weight = model.get_parameter(name).data
        try:
            scales, blocks_off, blocks_rounded = files.of(name, weight)
        except NotOnGrid as error:
            raise UserError(f"model.model_name_or_path={source.base}: {name}: {error}.") from error
        if blocks_off:
            off[name] = f"{name} ({blocks_off:,} of {scales.numel():,} blocks)"
            if name not in must:
                kept[name] = KEPT_16
                del grids[name]
            continue
        grids[name] = grid = stored_grid(scales)
        rounded += blocks_rounded
        moved.to(weight, grid, sets=True)
    problems = [said for name, said in off.items() if name not in kept]
    if problems:
        raise UserError(
            f"model.model_name_or_path={source.base}: quant.grid={STORED} continues from weights that are on a 4-bit "
            f"grid, and {len(problems)} of {len(names)} tensors are not, for example {problems[0]}; use quant=q4_0, "
            "which derives the scales, or name the QAT checkpoint itself, and tune it with recipe=qat."
        )
    return replace(plan, grids=grids, kept=kept, remarks=(*plan.remarks, *_remarks(rounded, moved)))


def _remarks(rounded: int, moved: _Moved) -> Iterator[str]:
    yield (
        "codes and scales: those of the checkpoint; its files hold their products, rounded by "
        f"{moved.share:.2%} of their norm"
    )
    if rounded:
        yield f"{rounded:,} blocks have a scale that float16 can't hold: the nearest one was taken"


class _Scales:
    """The scales of a checkpoint: stored beside packed codes, or found in the numbers."""

    def __init__(self, source: Source, model: Any, known: Mapping[str, torch.Tensor]) -> None:
        self._known = known
        self._files = CheckpointFiles.of(source, FAMILIES[model.config.model_type])
        self._names = {own: name for name, own in self._files.language.items()}

    def of(self, name: str, weight: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        """Those of a tensor, float16, [..., N / 32]; how many blocks are on no grid; how many scales were rounded."""
        if name in self._known:
            return self._known[name], 0, 0
        own = self._names.get(f"{name}_scale")
        if own is None:
            found = find_lattice(weight)
            return found.scales, int(found.off.sum()), found.rounded
        stored = self._files.read(own).float()
        scales = stored.half().to(weight.device)
        if scales.shape[-1] * 32 != weight.shape[-1]:
            raise NotOnGrid(f"it is packed with scales {tuple(scales.shape)}, and needs one for each 32 weights")
        grid = stored_grid(scales)
        rounded = grid.rounded(weight)
        if not torch.equal(rounded.bfloat16(), weight.bfloat16()):
            raise NotOnGrid("it is packed, but not as codes from -8 to 7 of 4 bits without a zero point")
        return scales, 0, int((scales.float().cpu() != stored).sum())


def _taken(model: Any, tensors: Iterable[tuple[str, Any]], quant: QuantConfig) -> dict[str, torch.Tensor]:
    """Sets the model's weights to those of a file; the scales of those that are 4-bit codes there, float16."""
    said = f"quant.checkpoint_file={quant.checkpoint_file}"
    parameters = dict(stored_tensors(model))  # a tied head is the embedding
    rows: Counter[str] = Counter()
    scales: dict[str, list[torch.Tensor]] = {}
    embedding, _ = FAMILIES[model.config.model_type].tied
    fewer = len(parameters[embedding])  # where the file has no rows for ids without a token, the model's stay
    for name, part in tensors:
        if name not in parameters:
            continue
        weight = parameters[name].data
        if name == embedding and part.shape[0] < fewer:
            fewer = part.shape[0]
        wanted = (fewer, *weight.shape[1:]) if name == embedding else tuple(weight.shape)
        if part.shape != wanted:
            raise UserError(f"{said}: {name} is {part.shape} there, and {wanted} in the model; name its own.")
        start = rows[name]
        rows[name] += len(part.values)
        weight[start : rows[name]].copy_(part.values - part.added)
        codes = part.encoded.codes if part.encoded is not None else None
        if codes is not None and codes.min() >= _LOWEST and codes.max() <= _HIGHEST:
            scales.setdefault(name, []).append(part.encoded.scales.half().to(weight.device))
    rest = parameters[embedding].data[fewer:]
    if embedding in scales and len(rest):
        scales[embedding].append(GRIDS["q4_0"].encode(rest).scales.half())
    rows[embedding] += len(rest)
    if missing := [name for name in parameters if rows[name] != len(parameters[name])]:
        raise UserError(f"{said}: it lacks {len(missing)} weights of the model, for example {missing[0]}.")
    found = {name: torch.cat(parts) for name, parts in scales.items()}
    return {name: scale for name, scale in found.items() if len(scale) == rows[name]}


class _Moved:
    """How far grids move weights: ‖W' − W‖ / ‖W‖ over all of them (Frobenius norm)."""

    def __init__(self) -> None:
        self._moved = self._norm = 0.0

    def to(self, weight: torch.Tensor, grid: Grid, sets: bool = False) -> None:
        """Adds a weight, some rows at a time, which becomes what the grid makes of it where `sets`."""
        count = max(1, _AT_ONCE // max(1, weight[0].numel()))
        for start in range(0, len(weight), count):
            rows = slice(start, start + count)
            part = weight[rows].float()
            rounded = grid.of_rows(rows).rounded(part)
            self._moved += (rounded - part).square().sum().item()
            self._norm += part.square().sum().item()
            if sets:
                weight[rows].copy_(rounded)

    @property
    def share(self) -> float:
        """The ratio; 0 where nothing was moved."""
        return (self._moved / self._norm) ** 0.5 if self._moved else 0.0


def _lost(model: Any, plan: Plan) -> Iterator[str]:
    """What a derived grid loses of weights that are on one already, as a remark; nothing where they are on none."""
    moved = _Moved()
    for name, grid in plan.grids.items():
        weight = model.get_parameter(name).data
        first = weight.reshape(-1)[: _SAMPLE * 32].view(-1, 32)
        if grid.bits <= 4 and torch.isfinite(first).all() and not find_lattice(first).off.any():
            moved.to(weight, grid)
    if moved.share:
        yield (
            f"warning: this checkpoint's weights are on a 4-bit grid already, and quant.grid={plan.name} derives other "
            f"scales, which moves them by {moved.share:.1%} of their norm; quant={STORED} keeps its codes and scales"
        )
