"""How fast an engine reads a prompt and writes an answer, of one conversation alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from gemma_tune.engines.base import Engine
from gemma_tune.engines.generate import GREEDY, answer_batch
from gemma_tune.engines.llama_cpp import LlamaCppEngine
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.engines.vllm import VllmEngine
from gemma_tune.models.adapters.trained_rows import rows_in_place
from gemma_tune.models.contexts import evaluating

# Tokens that are read and written: few, since a large model on a CPU writes one a second
_PROMPT, _ANSWER = 128, 24
_TIMES = 3  # after one that isn't counted
_TEXT = "The light in the kitchen goes on at seven, and 24 of the 30 letters are read before noon.\n"


@dataclass(frozen=True)
class TokenRates:
    """Tokens a second.

    Attributes:
        engine: What computed them.
        prompt: Of a prompt that is read.
        answer: Of an answer that is written; None where the machine was too busy to tell it from the prompt.
    """

    engine: str
    prompt: float
    answer: float | None


def speed_of(engine: Engine) -> TokenRates | None:
    """Times a prompt of 128 tokens and 24 tokens of an answer; None for an engine that can't be timed.

    Medians of three, after a first time that isn't counted: kernels are compiled and memory is taken then.
    """
    ids = engine.tokenizer(_TEXT * 20).input_ids[: min(_PROMPT, engine.max_length - _ANSWER)]
    if isinstance(engine, LlamaCppEngine):
        engine.speed(ids, _ANSWER)
        timed = [engine.speed(ids, _ANSWER) for _ in range(_TIMES)]
        return TokenRates("llama.cpp", *(statistics.median(column) for column in zip(*timed, strict=True)))
    if isinstance(engine, VllmEngine):
        return TokenRates("vLLM", *rates(lambda n: engine.write(ids, n), len(ids)))
    if not isinstance(engine, TransformersEngine):
        return None
    exact = {**GREEDY, "eos_token_id": None}  # as many tokens as asked for
    with evaluating(engine.model), rows_in_place(engine.model):
        prompt, answer = rates(lambda n: answer_batch(engine.model, engine.tokenizer, [ids], n, exact), len(ids))
    dtype = str(engine.model.dtype).removeprefix("torch.")
    return TokenRates(f"Transformers, {dtype}", prompt, answer)


def rates(write: Callable[[int], object], read: int) -> tuple[float, float | None]:
    """Tokens a second of a prompt, and of an answer: the time of 25 tokens less that of the first, with the prompt.

    Args:
        write: Reads the prompt and writes so many tokens.
        read: The prompt's tokens.
    """

    def seconds(tokens: int) -> float:
        start = time.perf_counter()
        write(tokens)
        return time.perf_counter() - start

    write(1 + _ANSWER)
    first, whole = (statistics.median(seconds(n) for _ in range(_TIMES)) for n in (1, 1 + _ANSWER))
    return read / first, _ANSWER / (whole - first) if whole > first else None
