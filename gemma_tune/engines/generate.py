"""Generates answers with a loaded Transformers model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch

from gemma_tune.models.adapters.trained_rows import rows_in_place
from gemma_tune.models.contexts import evaluating
from gemma_tune.models.sharded import is_sharded
from gemma_tune.models.towers.media import media_inputs
from gemma_tune.models.towers.towers import seeing
from gemma_tune.processes import in_shares
from gemma_tune.progress import progress

# Tokens of one batch, prompts and answers together; of long prompts a batch has fewer, at least one.
_BATCH_TOKENS = 32768
# The published generation configs set sampling values, about which greedy decoding would warn.
GREEDY: Mapping[str, Any] = MappingProxyType({"do_sample": False, "top_k": None, "top_p": None})


def greedy_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = 8,
    name: str = "answers",
) -> list[list[int]]:
    """Greedy continuations.

    Args:
        model: The model; stops at the ids of its generation config.
        tokenizer: For the padding id.
        prompts: Token ids, one list per prompt.
        max_new_tokens: Tokens at most.
        batch_size: Prompts per batch at most, fewer of long ones; batches are length-grouped.
        name: The label of the progress bar.

    Returns:
        New token ids of each prompt, with the stop token where there is one, without padding.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = [*batches(order, [len(p) + max_new_tokens for p in prompts], batch_size)]

    def of_share(share: list[Sequence[int]]) -> Iterator[list[list[int]]]:
        with progress(total=sum(map(len, share)), desc=name, unit=" rows") as bar:
            for places in share:
                yield answer_batch(model, tokenizer, [prompts[i] for i in places], max_new_tokens)
                bar.update(len(places))

    with evaluating(model), rows_in_place(model):
        answers: dict[int, list[int]] = dict(zip(chain(*found), chain(*in_shares(found, of_share)), strict=True))
    return [answers[place] for place in range(len(prompts))]


def batches(order: Sequence[int], lengths: Sequence[int], batch_size: int) -> Iterator[Sequence[int]]:
    """Splits the indices into batches of at most `batch_size` prompts and 32,768 tokens, but at least one prompt.

    Args:
        order: Indices into `lengths`, the shortest first.
        lengths: Tokens of each prompt and its answer.
        batch_size: Prompts per batch at most.
    """
    start = 0
    while start < len(order):
        places = order[start : start + batch_size]
        while len(places) > 1 and len(places) * lengths[places[-1]] > _BATCH_TOKENS:
            places = places[:-1]
        yield places
        start += len(places)


def answer_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Mapping[str, Any] = GREEDY,
) -> list[list[int]]:
    """Continuations of one batch; the caller sets the model's mode.

    Args:
        model: The model; stops at the ids of its generation config.
        tokenizer: For the padding id.
        prompts: Token ids, one list per prompt, perhaps with media (`Prompt`); they are padded on the left.
        max_new_tokens: Tokens at most.
        sampling: Sampling options of `generate`.

    Returns:
        New token ids of each prompt, with the stop token where there is one, without padding.
    """
    device = model.get_input_embeddings().weight.device
    pad = tokenizer.pad_token_id
    stops = set(model.generation_config.eos_token_id)
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    with seeing(model, media_inputs(tokenizer, prompts), ids) as given:
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device),
            max_new_tokens=max_new_tokens,
            use_cache=True,
            synced_gpus=is_sharded(model),  # none stops before all have: each token gathers the weights of every layer
            **given,
            **sampling,
        )
    answers = []
    for row in out[:, width:].tolist():
        end = next((i for i, token in enumerate(row) if token in stops), None)
        answers.append([t for t in row if t != pad] if end is None else row[: end + 1])
    return answers
