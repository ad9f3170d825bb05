"""New tokens, and which rows of the embedding an adapter trains beside its layers.

A new token needs a row of the embedding, which is the head, too. Its first value is the mean of all rows, so the model
gives it the logit of an average token, and the same adapter always finds the same base.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import AddedToken

from gemma_tune.config import AdapterConfig
from gemma_tune.errors import UserError


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Adds tokens that are found in texts as they stand; those that were added before keep their ids.

    Raises:
        UserError: A token that the vocabulary has as a piece of words, or as a control token.
    """
    vocabulary, there = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    for token in tokens:
        number = vocabulary.get(token)
        if number is not None and (number not in there or there[number].special):
            raise UserError(
                f"model.added_tokens: {token} is a token of this model already; leave it out, or train its row of the "
                f"embedding by its number: adapter.trainable_token_indices=[{number}]."
            )
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])


def ids_of(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """The ids of tokens that `add_tokens` has added."""
    return list(tokenizer.convert_tokens_to_ids(list(tokens)))


def with_rows(adapter: AdapterConfig, config: Any, tokenizer: Any, tokens: Sequence[str]) -> AdapterConfig:
    """The adapter with the rows of the added tokens among those that it trains.

    Args:
        adapter: The configuration; `peft_type=none` trains every row anyway.
        config: The base's configuration.
        tokenizer: With the added tokens.
        tokens: The added tokens.

    Raises:
        UserError: A row that the base doesn't have and no added token needs.
    """
    text, added = config.get_text_config(), ids_of(tokenizer, tokens)
    if added:
        check_growth(text, added)
    if adapter.peft_type == "none":
        return adapter
    highest = max(text.vocab_size - 1, *added) if added else text.vocab_size - 1
    if lost := [i for i in adapter.trainable_token_indices if i > highest]:
        raise UserError(
            f"adapter.trainable_token_indices: the embedding has {text.vocab_size} rows, and no row {lost[0]}; name a "
            "new token in model.added_tokens, which gives it a row and trains it."
        )
    return replace(adapter, trainable_token_indices=sorted({*adapter.trainable_token_indices, *added}))


def check_growth(text_config: Any, ids: Iterable[int]) -> None:
    """Raises UserError where the embedding can't get rows for these ids."""
    if max(ids) >= text_config.vocab_size and getattr(text_config, "hidden_size_per_layer_input", None):
        raise UserError(
            "model.added_tokens: this model has a second embedding, of each layer, and no value is right for a new "
            "token's rows of it; name tokens that the vocabulary keeps for this purpose, as <unused0> to <unused9>."
        )


def grown(text_config: Any, ids: Iterable[int]) -> Any:
    """The configuration with rows up to the highest of these ids; a copy where there are more than before."""
    rows = max([text_config.vocab_size - 1, *ids]) + 1
    if rows == text_config.vocab_size:
        return text_config
    text_config = copy.deepcopy(text_config)
    text_config.vocab_size = rows
    return text_config


def grow_embedding(model: Any, ids: Iterable[int]) -> None:
    """Gives the embedding rows up to the highest of these ids, each the mean of the rows before; changes the model."""
    before = model.get_input_embeddings().weight.shape[0]
    rows = max([before - 1, *ids]) + 1
    if rows == before:
        return
    mean = model.get_input_embeddings().weight.detach().mean(0, dtype=torch.float32)
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[before:] = mean.to(model.get_input_embeddings().weight.dtype)
