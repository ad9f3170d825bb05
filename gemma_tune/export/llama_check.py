"""The lines of the table that llama.cpp gives: a GGUF file, run there and compared with the trained model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from gemma_tune.engines.llama_cpp import EngineUnavailable, LlamaCppEngine, TopTokens
from gemma_tune.errors import RunError
from gemma_tune.export import gguf
from gemma_tune.export.engine_agreement import EngineAgreement, measure_agreement
from gemma_tune.export.engine_lines import exact_line, figures_of, gross_line
from gemma_tune.export.int4_check import UNVERIFIED, WARN, CheckLine
from gemma_tune.export.tensors import TrainedTensors, decoded_tensors, float_tensors
from gemma_tune.export.transformers_check import TrainedForward, in_float32
from gemma_tune.models.family import FAMILIES
from gemma_tune.quant.layers import off_grid
from gemma_tune.quant.plan import Plan

BEST = 256
CONTROL = "unquantized weights in llama.cpp, float32 (control)"
OTHER = "llama.cpp's arithmetic of Gemma 3n compared with Transformers'"
_OTHERWISE = (
    "llama.cpp cuts Gemma 3n's sparse activations at another threshold than it was trained with; measure the file "
    "(recipe=evaluate), or serve export=merged with Transformers or vLLM."
)
EXACT = "the same codes in llama.cpp, decoded into a float32 file"
GROSS = "the GGUF file in llama.cpp (its kernels round activations to 8 bit)"
# Makes the line of the table, from its name and what was found.
Judged = Callable[[str, EngineAgreement], CheckLine]

# llama.cpp reads the weights once for the next token of each slot, so eight pieces of text take little longer than one.
_SLOTS = 8


def llama_lines(
    file: Path,
    forward: TrainedForward,
    tokenizer: Any,
    trained: TrainedTensors,
    plan: Plan,
    threads: int | None = None,
) -> list[CheckLine]:
    """Runs a GGUF file, and two float32 files that are written beside it for this and removed again.

    Args:
        file: The exported file.
        forward: The trained model on its grid, and rows of together at least 512 positions.
        tokenizer: Its tokenizer.
        trained: Every tensor of its language part.
        plan: Its plan.
        threads: Of the CPU; all that this process may use by default.

    Returns:
        The lines of the control, the exact and the gross comparison. Where llama.cpp isn't installed or has died, a
        line says `unverified` and why.
    """
    model, rows = forward.model, forward.rows

    def run(path: Path, exact: bool) -> list[TopTokens]:
        return top_tokens(path, model, tokenizer, rows, exact, threads)

    def run_in_float32(tensors: Mapping[str, torch.Tensor]) -> list[TopTokens]:
        config, generation = model.config.get_text_config(), model.generation_config
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".float32-") as folder:
            path = Path(folder) / "float32.gguf"
            gguf.export(tensors, config, tokenizer, generation, torch.float32, path, name=file.stem)
            return run(path, exact=True)

    exact, gross = exact_line_of(model), gross_line_of(model)
    with in_float32(model), off_grid(model):
        asked = (CONTROL, exact, lambda: run_in_float32(float_tensors(model)))
        control = _lines(TrainedForward(model, rows), [asked])
    return [
        *control,
        *_lines(
            forward,
            [
                (EXACT, exact, lambda: run_in_float32(decoded_tensors(trained, plan))),
                (GROSS, gross, lambda: run(file, exact=False)),
            ],
        ),
        *other_arithmetic(forward),
    ]


def exact_line_of(model: Any) -> Judged:
    """What judges a float32 file of this model."""
    return partial(exact_line, approximate=_is_approximate(model))


def gross_line_of(model: Any) -> Judged:
    """What judges a file of this model whose kernels round activations."""
    return partial(gross_line, amplifies=amplifies(model), approximate=_is_approximate(model))


def amplifies(model: Any) -> bool:
    """Whether a rounded number may change much: the choice of an expert, Gemma 3n's sparse activations."""
    return _is_approximate(model) or bool(getattr(model.config.get_text_config(), "enable_moe_block", False))


def _is_approximate(model: Any) -> bool:
    return bool(FAMILIES[model.config.model_type].gguf == "gemma3n")


def other_arithmetic(forward: TrainedForward) -> list[CheckLine]:
    """For a family that llama.cpp computes otherwise than Transformers, how far apart they are; never `ok`."""
    if not _is_approximate(forward.model):
        return []
    same = positions = 0
    kl = 0.0
    for ours, theirs in zip(forward.logits(), forward.in_llama_cpp().logits(), strict=True):
        p, q = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
        kl += float((p.exp() * (p - q)).sum())
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        positions += len(ours)
    found = EngineAgreement(positions, kl / positions, same, 0)
    return [CheckLine(OTHER, "no difference", figures_of(found), WARN, _OTHERWISE)]


def dense_gguf_line(
    name: str,
    file: Path,
    forward: TrainedForward,
    tokenizer: Any,
    exact: bool,
    judged: Judged,
    adapter: Path | None = None,
) -> CheckLine:
    """Runs a GGUF file once: as exactly as llama.cpp can where that is asked for, else as any GGUF file is served.

    Args:
        name: What it is, for people.
        file: The file.
        forward: The trained model on rows of together at least 512 positions.
        tokenizer: Its tokenizer.
        exact: Whether float32 is kept wherever the file's types allow it.
        judged: Makes the line of what was found.
        adapter: A GGUF LoRA file that is put onto it.
    """

    def run() -> list[TopTokens]:
        return top_tokens(file, forward.model, tokenizer, forward.rows, exact, threads=None, adapter=adapter)

    (line,) = _lines(forward, [(name, judged, run)])
    return line


def top_tokens(
    file: Path,
    model: Any,
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    exact: bool,
    threads: int | None,
    adapter: Path | None = None,
) -> list[TopTokens]:
    """llama.cpp's best 256 tokens after each token of each row."""
    stops, longest = model.generation_config.eos_token_id, max(len(row) for row in rows)
    with LlamaCppEngine(
        file, tokenizer, stops, max_length=longest + 1, exact=exact, slots=_SLOTS, threads=threads, adapter=adapter
    ) as engine:
        return list(engine.top_log_probs(rows, BEST, "llama.cpp"))


class Forward(Protocol):
    """A model's logits, or log-probabilities, on some rows."""

    @property
    def rows(self) -> Sequence[Sequence[int]]:
        """Token ids."""
        ...

    def logits(self) -> Iterator[torch.Tensor]:
        """After each token of each row, float32, some positions at a time, [T, V]."""
        ...


def agreements_with(
    forward: Forward, engines: Sequence[Sequence[TopTokens]], margin: float = 1e-3
) -> list[EngineAgreement]:
    """Compares what several engines gave with one forward pass of the model over each row.

    Args:
        forward: The model.
        engines: What each engine gave for each row.
        margin: See `best_tokens`.

    Raises:
        RunError: An engine gave no probabilities at some position.
    """
    for tops in engines:
        for row, top in zip(forward.rows, tops, strict=True):
            if len(row) != len(top.ids):
                raise RunError(f"the engine gave probabilities at {len(top.ids)} of {len(row)} positions.")
    ids, log_probs = ([torch.cat([top[i] for top in tops]) for tops in engines] for i in (0, 1))

    def parts() -> Iterator[tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]]:
        start = 0
        for logits in forward.logits():
            part = slice(start, start + len(logits))
            start += len(logits)
            yield logits.cpu(), [(i[part], p[part]) for i, p in zip(ids, log_probs, strict=True)]
            del logits  # before the next ones are computed

    return measure_agreement(parts(), margin)


_Asked = tuple[str, Judged, Callable[[], list[TopTokens]]]


def _lines(forward: TrainedForward, asked: Sequence[_Asked]) -> list[CheckLine]:
    """A line for each file; `unverified` where llama.cpp could not run it."""
    found: dict[str, list[TopTokens]] = {}
    missing: dict[str, str] = {}
    for name, _, run in asked:
        try:
            found[name] = run()
        except EngineUnavailable as error:
            missing[name] = str(error)
    reference = forward.in_llama_cpp()
    agreements = dict(zip(found, agreements_with(reference, list(found.values())) if found else [], strict=True))
    return [
        judged(name, agreements[name])
        if name in agreements
        else CheckLine(name, "run in llama.cpp", "not run", UNVERIFIED, missing[name])
        for name, judged, _ in asked
    ]
