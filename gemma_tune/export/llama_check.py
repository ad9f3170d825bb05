"""The lines of the table that llama.cpp gives: a GGUF file, run there and compared with the trained model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gemma_tune.engines.llama_cpp import EngineUnavailable, LlamaCppEngine, TopTokens
from gemma_tune.errors import RunError
from gemma_tune.export import gguf
from gemma_tune.export.engine_agreement import EngineAgreement, measure_agreement
from gemma_tune.export.int4_check import UNVERIFIED, CheckLine, exact_line, gross_line, in_float32, logits_in_parts
from gemma_tune.export.tensors import DecodedWeights, TrainedTensors, float_tensors
from gemma_tune.quant.layers import off_grid
from gemma_tune.quant.plan import Plan

BEST = 256
CONTROL = "unquantised weights in llama.cpp, float32 (control)"
EXACT = "the same codes in llama.cpp, decoded into a float32 file"
GROSS = "the GGUF file in llama.cpp (its kernels round activations to 8 bit)"
# llama.cpp reads the weights once for the next token of each slot, so eight pieces of text take little longer than one.
_SLOTS = 8


def llama_lines(
    file: Path,
    model: Any,
    tokenizer: Any,
    trained: TrainedTensors,
    plan: Plan,
    rows: Sequence[Sequence[int]],
    threads: int | None = None,
) -> list[CheckLine]:
    """Runs a GGUF file, and two float32 files that are written beside it for this and removed again.

    Args:
        file: The exported file.
        model: The trained model on its grid; it is not changed.
        tokenizer: Its tokenizer.
        trained: Every tensor of its language part.
        plan: Its plan.
        rows: Token ids; together at least 512 positions.
        threads: Of the CPU; all that this process may use by default.

    Returns:
        The lines of the control, the exact and the gross comparison. Where llama.cpp isn't installed or has died, a
        line says `unverified` and why.
    """

    def run(path: Path, exact: bool) -> list[TopTokens]:
        return top_tokens(path, model, tokenizer, rows, exact, threads)

    def run_in_float32(tensors: Mapping[str, torch.Tensor]) -> list[TopTokens]:
        config, generation = model.config.get_text_config(), model.generation_config
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".float32-") as folder:
            path = Path(folder) / "float32.gguf"
            gguf.export(tensors, config, tokenizer, generation, torch.float32, path, name=file.stem)
            return run(path, exact=True)

    with in_float32(model):
        with off_grid(model):
            control = _lines(model, rows, [(CONTROL, exact_line, lambda: run_in_float32(float_tensors(model)))])
        return control + _lines(
            model,
            rows,
            [
                (EXACT, exact_line, lambda: run_in_float32(DecodedWeights(trained, plan))),
                (GROSS, gross_line, lambda: run(file, exact=False)),
            ],
        )


def dense_gguf_line(
    name: str, file: Path, model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], exact: bool
) -> CheckLine:
    """Runs a GGUF file without blocks: as exactly as llama.cpp can where it is float32, else as any GGUF file.

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
        (line,) = _lines(
            model,
            rows,
            [(f"{name} in llama.cpp", judged, lambda: top_tokens(file, model, tokenizer, rows, exact, threads=None))],
        )
    return line


def top_tokens(
    file: Path, model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], exact: bool, threads: int | None
) -> list[TopTokens]:
    """llama.cpp's best 256 tokens after each token of each row."""
    stops, longest = model.generation_config.eos_token_id, max(len(row) for row in rows)
    with LlamaCppEngine(
        file, tokenizer, stops, max_length=longest + 1, exact=exact, slots=_SLOTS, threads=threads
    ) as engine:
        return list(engine.top_log_probs(rows, BEST, "llama.cpp"))


def agreements_with(
    model: Any, rows: Sequence[Sequence[int]], engines: Sequence[Sequence[TopTokens]]
) -> list[EngineAgreement]:
    """Compares what several engines gave with one forward pass of the model over each row.

    Raises:
        RunError: An engine gave no probabilities at some position.
    """
    for tops in engines:
        for row, top in zip(rows, tops, strict=True):
            if len(row) != len(top.ids):
                raise RunError(f"llama.cpp gave probabilities at {len(top.ids)} of {len(row)} positions.")
    ids, log_probs = ([torch.cat([top[i] for top in tops]) for tops in engines] for i in (0, 1))

    def parts() -> Iterator[tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]]:
        start = 0
        for logits in logits_in_parts(model, rows):
            part = slice(start, start + len(logits))
            start += len(logits)
            yield logits, [(i[part], p[part]) for i, p in zip(ids, log_probs, strict=True)]

    return measure_agreement(parts())


_Asked = tuple[str, Callable[[str, EngineAgreement], CheckLine], Callable[[], list[TopTokens]]]


def _lines(model: Any, rows: Sequence[Sequence[int]], asked: Sequence[_Asked]) -> list[CheckLine]:
    """A line for each file; `unverified` where llama.cpp could not run it."""
    found: dict[str, list[TopTokens]] = {}
    missing: dict[str, str] = {}
    for name, _, run in asked:
        try:
            found[name] = run()
        except EngineUnavailable as error:
            missing[name] = str(error)
    agreements = dict(zip(found, agreements_with(model, rows, list(found.values())) if found else [], strict=True))
    return [
        judged(name, agreements[name])
        if name in agreements
        else CheckLine(name, "run in llama.cpp", "not run", UNVERIFIED, missing[name])
        for name, judged, _ in asked
    ]
