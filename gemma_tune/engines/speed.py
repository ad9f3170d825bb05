"""How fast an engine reads a prompt and writes an answer, of one conversation alone."""

from __future__ import annotations

import time
from dataclasses import dataclass

from gemma_tune.engines.base import Engine
from gemma_tune.engines.generate import GREEDY, answer_batch
from gemma_tune.engines.llama_cpp import LlamaCppEngine
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.models.contexts import evaluating
from gemma_tune.models.token_rows import rows_in_place

# Tokens that are read and written: few, since a large model on a CPU writes one a second
_PROMPT, _ANSWER = 128, 24
_TEXT = "The light in the kitchen goes on at seven, and 24 of the 30 letters are read before noon.\n"


@dataclass(frozen=True)
class TokenRates:
    """Tokens a second.

    Attributes:
        engine: What computed them.
        prompt: Of a prompt that is read.
        answer: Of an answer that is written.
    """

    engine: str
    prompt: float
    answer: float


def speed_of(engine: Engine) -> TokenRates | None:
    """Times one prompt of 128 tokens and 24 tokens of an answer; None for an engine that can't be timed.

    The engine has answered before: what is done at the first forward pass alone isn't timed.
    """
    ids = engine.tokenizer(_TEXT * 20).input_ids[: min(_PROMPT, engine.max_length - _ANSWER)]
    if isinstance(engine, LlamaCppEngine):
        return TokenRates("llama.cpp", *engine.speed(ids, _ANSWER))
    if not isinstance(engine, TransformersEngine):
        return None
    exact = {**GREEDY, "eos_token_id": None}  # as many tokens as asked for
    with evaluating(engine.model), rows_in_place(engine.model):
        seconds = []
        for tokens in (1, 1 + _ANSWER):
            start = time.perf_counter()
            answer_batch(engine.model, engine.tokenizer, [ids], tokens, exact)
            seconds.append(time.perf_counter() - start)
    read, all_of_it = seconds
    dtype = str(engine.model.dtype).removeprefix("torch.")
    return TokenRates(f"Transformers, {dtype}", len(ids) / read, _ANSWER / max(all_of_it - read, 1e-9))
