"""The check of an int4 export: the codes in the files are those that the training forward used.

docs/int4.md shows the table. A line that fails raises `ArtifactDiffers`, which names the tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from operator import itemgetter
from typing import Any

import torch
from gguf import GGMLQuantizationType, quants

from gemma_tune.export.file_tensor import row_blocks
from gemma_tune.export.read_back import StoredTensor
from gemma_tune.export.read_gguf import stored_as
from gemma_tune.export.tensors import TrainedTensors, by_rows, decoded_blocks, weights_of
from gemma_tune.export.verify import ArtifactDiffers
from gemma_tune.models.contexts import evaluating
from gemma_tune.quant.grid import Encoded
from gemma_tune.quant.layers import rounding_anew
from gemma_tune.quant.plan import Plan

OK, WARN, FAIL, UNVERIFIED = "ok", "warn", "fail", "unverified"

_KEYS_AND_VALUES = re.compile(r"(model\.layers\.\d+\.self_attn)\.(?:k_proj|v_proj|k_norm|v_norm)\.weight")


@dataclass(frozen=True)
class CheckLine:
    """One line of the table.

    Attributes:
        name: What was checked.
        must: What it must show.
        found: What it showed.
        verdict: `ok`, `warn`, `fail`, or `unverified` where it could not be checked.
        problem: What is wrong, with the first tensor that is.
    """

    name: str
    must: str
    found: str
    verdict: str
    problem: str = ""


def raise_failed(lines: Iterable[CheckLine]) -> None:
    """Raises `ArtifactDiffers` where a line failed, with what is wrong."""
    if failed := [line for line in lines if line.verdict == FAIL]:
        raise ArtifactDiffers(
            "\n".join(f"{x.name}: must be {x.must}, found {x.found}. {x.problem}".rstrip() for x in failed)
        )


def forward_line(model: Any, trained: TrainedTensors, plan: Plan) -> CheckLine:
    """Compares the weights that the forward pass on the grid uses with those that the exporters are given."""
    tally = _Tally()
    like = torch.empty(0, dtype=torch.float32)
    with evaluating(model), rounding_anew(model):
        for name, weight in weights_of(model).items():
            used = weight.read() if weight.layer is None else weight.layer.forward_weight(like)
            expected = by_rows(trained, name)
            differ = _Differing(name, expected.shape)
            if differ.has_shape(used.shape):
                blocks = decoded_blocks(name, expected.blocks, plan)
                for rows, block in zip(row_blocks(expected.shape), blocks, strict=True):
                    differ.add(weights=(block, used[rows].float().cpu()))
            tally.add(differ.problem)
    return tally.line("weights of the training forward", "those that are exported, to the bit")


def stored_lines(
    what: str,
    stored: Iterable[tuple[str, StoredTensor]],
    trained: TrainedTensors,
    plan: Plan,
    types: Callable[[str, tuple[int, ...]], GGMLQuantizationType] | None = None,
) -> list[CheckLine]:
    """Compares a file with the trained model, some rows of a tensor at a time.

    Args:
        what: The format's name, for people.
        stored: `read_folder` or `read_gguf`.
        trained: Every tensor of the language part.
        plan: Its plan.
        types: The type of ggml that a tensor without codes is rounded to in the file, by its name and shape; None: the
            file holds every number as it is. The gguf package rounds what it is compared with.
    """
    codes, values, again = _Tally(), _Tally(), _Tally()
    left = set(trained)
    try:
        for name, parts in groupby(stored, key=itemgetter(0)):
            if name == "lm_head.weight" and name not in trained:  # tied, and stored once more
                name = "model.embed_tokens.weight"
            if _is_idle(name, trained):
                continue
            if name not in trained:
                values.add(f"{name}: the trained model has no such tensor.")
                continue
            left.discard(name)
            expected = by_rows(trained, name)
            weights, coded = _Differing(name, expected.shape), _Differing(name, expected.shape)
            same: list[bool] = []
            blocks = iter(expected.blocks)
            for _, tensor in parts:
                if not (weights.has_shape(tensor.shape) and coded.has_shape(tensor.shape)):
                    break
                block = next(blocks)
                wanted = _expected(name, block, plan, types(name, expected.shape) if types else None)
                weights.add(weights=(wanted.values + tensor.added if tensor.added else wanted.values, tensor.values))
                if wanted.encoded is not None and tensor.encoded is not None:
                    ours, theirs = wanted.encoded, tensor.encoded
                    coded.add(**{part: (getattr(ours, part), getattr(theirs, part)) for part in ours._fields})
                if isinstance(block, Encoded) and types is None:
                    same += [] if tensor.same_again is None else [tensor.same_again]
            values.add(weights.problem)
            if coded.compared:
                codes.add(coded.problem)
            if same and plan.grids[name].derives_again:
                again.add("" if all(same) else f"{name}: other bytes.")
    except ArtifactDiffers as error:
        values.add(str(error))
    else:
        for name in sorted(left):
            values.add(f"{name}: it is not there.")
    of = "those of the training forward" if types is None else "the trained ones as the gguf package rounds them"
    lines = [values.line(f"{what}: decoded weights", f"{of}, to the bit")]
    if codes.total:
        lines.insert(0, codes.line(f"{what}: codes and scales", f"{of}, 100 %"))
    if again.total:
        lines.append(again.line(f"{what}: re-quantized naively", "the same bytes"))
    return lines


def _is_idle(name: str, trained: TrainedTensors) -> bool:
    """Whether it is of the keys or values of a layer that uses another layer's: checkpoints store them all the same."""
    found = _KEYS_AND_VALUES.fullmatch(name)
    return found is not None and f"{found[1]}.q_proj.weight" in trained and f"{found[1]}.k_proj.weight" not in trained


def _expected(name: str, block: torch.Tensor | Encoded, plan: Plan, kind: GGMLQuantizationType | None) -> StoredTensor:
    """What the file must hold of some rows: them as they are, or rounded to a type of ggml by the gguf package."""
    (numbers,) = decoded_blocks(name, [block], plan)
    if kind is not None:
        return stored_as(kind, quants.quantize(numbers.contiguous().numpy(), kind))
    return StoredTensor(numbers, block if isinstance(block, Encoded) else None)


class _Tally:
    """Counts tensors, and keeps the first problem."""

    def __init__(self) -> None:
        self.total = 0
        self.problems: list[str] = []

    def add(self, problem: str) -> None:
        """Counts a tensor; `problem` is empty where it is as it should be."""
        self.total += 1
        self.problems += [problem] if problem else []

    def line(self, name: str, must: str) -> CheckLine:
        """The line of the table."""
        good = self.total - len(self.problems)
        found = f"{good} of {self.total} tensors ({good / max(self.total, 1):.0%})"
        return CheckLine(name, must, found, FAIL if self.problems or not self.total else OK, "".join(self.problems[:1]))


class _Differing:
    """Counts the numbers of a tensor that differ, over its rows."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self._name, self._shape = name, shape
        self._counts: dict[str, int] = {}
        self.compared = False
        self._other_shape = ""

    def has_shape(self, found: Sequence[int]) -> bool:
        """Whether it has the shape that was trained."""
        if tuple(found) != self._shape:
            self._other_shape = f"{self._name}: its shape is {tuple(found)}, and {self._shape} was trained."
        return not self._other_shape

    def add(self, **pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Compares rows, by the name of what they hold: expected and found."""
        self.compared = True
        for what, (expected, found) in pairs.items():
            differ = 0 if torch.equal(expected, found) else int((expected != found).sum())
            self._counts[what] = self._counts.get(what, 0) + differ

    @property
    def problem(self) -> str:
        """What is wrong; empty where nothing is."""
        if self._other_shape or not any(self._counts.values()):
            return self._other_shape
        (first, count), *others = self._counts.items()
        more = "".join(f" and {number:,} {what}" for what, number in others)
        return f"{self._name}: {count:,} of {prod(self._shape):,} {first}{more} differ."
