"""The check of an int4 export: the codes in the files are those that the training forward used.

docs/int4.md shows the table. A line that fails raises `ArtifactDiffers`, which names the tensor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from gemma_tune.export.engine_agreement import EngineAgreement
from gemma_tune.export.read_back import StoredTensor
from gemma_tune.export.tensors import TrainedTensors, decoded_weight, weights_of
from gemma_tune.export.verify import ArtifactDiffers, load_exported
from gemma_tune.models.contexts import evaluating
from gemma_tune.models.head import head_of
from gemma_tune.models.unwrap import language_part
from gemma_tune.quant.grid import Encoded
from gemma_tune.quant.plan import Plan

OK, WARN, FAIL, UNVERIFIED = "ok", "warn", "fail", "unverified"

# Positions whose logits stand in memory at once: 64 MiB at Gemma's vocabulary.
_AT_ONCE = 64
_MOST_KL, _MOST_LOGIT, POSITIONS = 1e-6, 1e-5, 512
# llama.cpp rounds activations to 8 bit in its Q4_0 kernels: that line finds gross errors only.
_WARN_KL, _FAIL_KL, _WARN_TOP1, _FAIL_TOP1 = 5e-4, 1e-2, 0.98, 0.90


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
    with evaluating(model):
        for name, weight, layer in weights_of(model):
            used = weight.float() if layer is None else layer.forward_weight(like)
            tally.add(_unlike(name, decoded_weight(name, trained, plan), used.cpu()))
    return tally.line("weights of the training forward", "those that are exported, to the bit")


def stored_lines(
    what: str,
    stored: Iterable[tuple[str, StoredTensor]],
    trained: TrainedTensors,
    plan: Plan,
    matrices: torch.dtype = torch.float32,
) -> list[CheckLine]:
    """Compares a file with the trained model, tensor by tensor.

    Args:
        what: The format's name, for people.
        stored: `read_folder` or `read_gguf`.
        trained: Every tensor of the language part.
        plan: Its plan.
        matrices: The type of the file's matrices where it can't hold every weight: float16 rounds what is below 6e-8.
    """
    codes, values, again = _Tally(), _Tally(), _Tally()
    left = set(trained)
    try:
        for name, tensor in stored:
            if name == "lm_head.weight" and name not in trained:  # tied, and stored once more
                name = "model.embed_tokens.weight"
            if name not in trained:
                values.add(f"{name}: the trained model has no such tensor.")
                continue
            left.discard(name)
            expected = trained[name]
            wanted = decoded_weight(name, trained, plan)
            wanted = wanted.to(matrices).float() if wanted.ndim > 1 else wanted
            values.add(_unlike(name, wanted + tensor.added if tensor.added else wanted, tensor.values))
            if isinstance(expected, Encoded) and tensor.encoded is not None:
                codes.add(_other_codes(name, expected, tensor.encoded))
                if tensor.same_again is not None and plan.grids[name].name.startswith("q4_0"):
                    again.add("" if tensor.same_again else f"{name}: other bytes.")
    except ArtifactDiffers as error:
        values.add(str(error))
    else:
        for name in sorted(left):
            values.add(f"{name}: it is not there.")
    lines = [values.line(f"{what}: decoded weights", "those of the training forward, to the bit")]
    if codes.total:
        lines.insert(0, codes.line(f"{what}: codes and scales", "those of the training forward, 100 %"))
    if again.total:
        lines.append(again.line(f"{what}: re-quantised naively", "the same bytes"))
    return lines


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


def _other_shape(name: str, expected: torch.Tensor, found: torch.Tensor) -> str:
    if expected.shape == found.shape:
        return ""
    return f"{name}: its shape is {tuple(found.shape)}, and {tuple(expected.shape)} was trained."


def _unlike(name: str, expected: torch.Tensor, found: torch.Tensor) -> str:
    if problem := _other_shape(name, expected, found):
        return problem
    if torch.equal(expected, found):
        return ""
    return f"{name}: {int((expected != found).sum()):,} of {expected.numel():,} weights differ."


def _other_codes(name: str, expected: Encoded, found: Encoded) -> str:
    if problem := _other_shape(name, expected.codes, found.codes):
        return problem
    codes, scales = (int((a != b).sum()) for a, b in zip(expected, found, strict=True))
    total = expected.codes.numel()
    return f"{name}: {codes:,} of {total:,} codes and {scales:,} scales differ." if codes or scales else ""


def transformers_line(what: str, folder: Path, forward: TrainedForward) -> CheckLine:
    """Loads a folder with plain Transformers in float32 and compares logits with the trained model's own.

    Args:
        what: The format's name, for people.
        folder: The folder.
        forward: The trained model on some rows.
    """
    device = forward.model.get_input_embeddings().weight.device
    loaded = load_exported(folder, torch.float32, {"": str(device)})
    with evaluating(loaded):
        loaded(input_ids=torch.tensor([forward.rows[0][:1]], device=device))  # the first forward decodes packed weights
    worst, positions = torch.zeros(()), 0
    for ours, theirs in zip(forward.logits(), TrainedForward(loaded, forward.rows).logits(), strict=True):
        worst = torch.maximum(worst, (ours - theirs).abs().max())  # keeps NaN
        positions += len(ours)
    return CheckLine(
        f"{what} in Transformers, float32",
        f"the trained model's logits within {_MOST_LOGIT:g}",
        f"{worst.item():.2g} at {positions} positions",
        OK if worst.item() <= _MOST_LOGIT else FAIL,
    )


class TrainedForward:
    """A model on the rows of the check; the body is computed once, in float32, for all lines that compare with it.

    Args:
        model: The model, or a PeftModel around it; it is not changed.
        rows: Token ids.
    """

    def __init__(self, model: Any, rows: Sequence[Sequence[int]]) -> None:
        self.model, self.rows = model, rows

    @cached_property
    def _states(self) -> list[torch.Tensor]:
        """Hidden states after each token of each row, [T, H]."""
        base = language_part(self.model)
        device = base.get_input_embeddings().weight.device
        with in_float32(self.model), evaluating(self.model):
            rows = (torch.tensor([row], device=device) for row in self.rows)
            return [base.model(input_ids=row, use_cache=False).last_hidden_state[0] for row in rows]

    def logits(self) -> Iterator[torch.Tensor]:
        """Logits after each token of each row, float32, some positions at a time, [T, V].

        Those of a whole row would be 512 MiB at Gemma's vocabulary.
        """
        head, states = head_of(language_part(self.model)), self._states
        with in_float32(self.model):
            for part in (part for state in states for part in state.split(_AT_ONCE)):
                with evaluating(self.model):
                    logits = head(part)
                yield logits


@contextlib.contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Converts every weight to float32, in which exports are compared; afterwards the model is as it was."""
    kept = [(p, p.data) for p in model.parameters() if p.dtype != torch.float32]
    embedding = model.get_input_embeddings()
    scale = embedding.embed_scale.data
    try:
        if kept:
            # bfloat16 has rounded this one, too
            embedding.embed_scale.data = torch.tensor(embedding.embedding_dim**0.5, device=scale.device)
        for parameter, data in kept:
            parameter.data = data.float()
        yield
    finally:
        embedding.embed_scale.data = scale
        for parameter, data in kept:
            parameter.data = data


def exact_line(name: str, found: EngineAgreement) -> CheckLine:
    """The line of an engine that computes in float32: the control, and the same codes decoded into a float32 file."""
    good = found.mean_kl <= _MOST_KL and not found.apart
    return CheckLine(
        name,
        f"KL at most {_MOST_KL:g}, the same best token beyond margins of 0.001",
        _figures(found),
        _at_least_ok(found) if good else FAIL,
    )


def gross_line(name: str, found: EngineAgreement) -> CheckLine:
    """The line of an engine that also rounds activations."""
    verdict = _at_least_ok(found)
    if not found.mean_kl <= _WARN_KL or found.top1 < _WARN_TOP1:
        verdict = WARN
    if not found.mean_kl <= _FAIL_KL or found.top1 < _FAIL_TOP1:
        verdict = FAIL
    return CheckLine(
        name,
        f"KL at most {_WARN_KL:g}, the same best token at {_WARN_TOP1:.0%} (fails at {_FAIL_KL:g}, {_FAIL_TOP1:.0%})",
        _figures(found),
        verdict,
    )


def _at_least_ok(found: EngineAgreement) -> str:
    return OK if found.positions >= POSITIONS else WARN


def _figures(found: EngineAgreement) -> str:
    figures = f"KL {found.mean_kl:.2g}, the same best token at {found.top1:.2%} of {found.positions} positions"
    if found.close:
        figures += f" ({found.close} closer than the margin)"
    return figures if found.positions >= POSITIONS else f"{figures}, fewer than {POSITIONS}"
