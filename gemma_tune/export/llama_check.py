"""The lines of the table that llama.cpp gives: a GGUF file, run there, against the trained model's own forward."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gemma_tune.engines.llama_cpp import EngineUnavailable, LlamaCppEngine
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.errors import RunError
from gemma_tune.export import gguf
from gemma_tune.export.engine_agreement import EngineAgreement, measure_agreement
from gemma_tune.export.int4_check import UNVERIFIED, CheckLine, exact_line, gross_line, in_float32
from gemma_tune.export.tensors import DecodedWeights, TrainedTensors, float_tensors
from gemma_tune.quant.layers import off_grid
from gemma_tune.quant.plan import Plan

BEST = 256
CONTROL = "unquantised weights in llama.cpp, float32 (control)"
EXACT = "the same codes in llama.cpp, decoded into a float32 file"
GROSS = "the GGUF file in llama.cpp (its kernels round activations to 8 bit)"


def llama_lines(
    file: Path,
    model: Any,
    tokenizer: Any,
    trained: TrainedTensors,
    plan: Plan,
    rows: Sequence[Sequence[int]],
    threads: int | None = None,
) -> list[CheckLine]:
    """Runs a GGUF file, and two float32 ones written for it beside it and removed again.

    Args:
        file: The exported file.
        model: The trained model on its grid; it is not changed.
        tokenizer: Its tokenizer.
        trained: Every tensor of its language part.
        plan: Its plan.
        rows: Token ids; together at least 512 positions.
        threads: Of the CPU; all that this process may use by default.

    Returns:
        The lines of the control, the exact and the gross comparison. Where llama.cpp isn't there or has died, a line
        says `unverified` and why.
    """

    def agreement(path: Path, exact: bool) -> EngineAgreement:
        return _agreement(path, model, tokenizer, rows, exact, threads)

    def in_a_float32_file(tensors: Mapping[str, torch.Tensor]) -> EngineAgreement:
        config, generation = model.config.get_text_config(), model.generation_config
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".float32-") as folder:
            path = Path(folder) / "float32.gguf"
            gguf.export(tensors, config, tokenizer, generation, torch.float32, path, name=file.stem)
            return agreement(path, exact=True)

    with in_float32(model):
        with off_grid(model):
            control = _line(CONTROL, exact_line, lambda: in_a_float32_file(float_tensors(model)))
        return [
            control,
            _line(EXACT, exact_line, lambda: in_a_float32_file(DecodedWeights(trained, plan))),
            _line(GROSS, gross_line, lambda: agreement(file, exact=False)),
        ]


def dense_gguf_line(
    name: str, file: Path, model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], exact: bool
) -> CheckLine:
    """Runs a GGUF file without blocks: exactly, of float32, and as any GGUF file of the narrower types.

    Args:
        name: The format's name, for people.
        file: The exported file.
        model: The trained model on its grid; it is not changed.
        tokenizer: Its tokenizer.
        rows: Token ids; together at least 512 positions.
        exact: Whether the file is float32.
    """
    judged = exact_line if exact else gross_line
    with in_float32(model):
        return _line(
            f"{name} in llama.cpp", judged, lambda: _agreement(file, model, tokenizer, rows, exact, threads=None)
        )


def _agreement(
    path: Path, model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], exact: bool, threads: int | None
) -> EngineAgreement:
    ours, longest = TransformersEngine(model, tokenizer), max(len(row) for row in rows)
    with LlamaCppEngine(path, tokenizer, ours.stops, max_length=longest + 1, exact=exact, threads=threads) as engine:
        return agreement_in_llama_cpp(engine, ours, rows)


def agreement_in_llama_cpp(
    engine: LlamaCppEngine, ours: TransformersEngine, rows: Sequence[Sequence[int]]
) -> EngineAgreement:
    """Compares an engine's best 256 tokens with the trained model's probabilities, position by position."""

    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        theirs = engine.top_log_probs(rows, BEST, "llama.cpp")
        for reference, best in zip(ours.log_probs(rows, "reference"), theirs, strict=True):
            if len(reference) != len(best.ids):
                raise RunError(f"llama.cpp gave probabilities at {len(best.ids)} of {len(reference)} positions.")
            yield reference, best.ids, best.log_probs

    return measure_agreement(pairs())


def _line(
    name: str, judged: Callable[[str, EngineAgreement], CheckLine], run: Callable[[], EngineAgreement]
) -> CheckLine:
    try:
        return judged(name, run())
    except EngineUnavailable as error:
        return CheckLine(name, "run in llama.cpp", "not run", UNVERIFIED, str(error))
