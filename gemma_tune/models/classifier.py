"""Reward models: a language model with a head that gives one score for a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from gemma_tune.chat import Rendered
from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models.contexts import evaluating
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.known import no_classifier
from gemma_tune.models.language_part import load_language_part
from gemma_tune.models.load import check_vocabulary, load_config, stop_token_ids
from gemma_tune.models.padding import pad_rows
from gemma_tune.models.source import Source
from gemma_tune.models.unwrap import language_part

HEAD = "score"


class ScoreHead(nn.Linear):  # type: ignore[misc]
    """A head in float32, whatever the model's dtype: bfloat16 weights would round small updates away."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores, float32, [..., 1]."""
        weight: torch.Tensor = self.weight
        return nn.functional.linear(hidden.to(weight.dtype), weight)


def load_classifier(model: ModelConfig, source: Source, tokenizer: Any) -> PreTrainedModel:
    """The language part of a checkpoint with a new head of one label; its padding id is set.

    The class reads the score at the last token that isn't padding, by `config.pad_token_id`. Transformers initialises
    the head: small random numbers from torch's generator.

    Args:
        model: What is asked for.
        source: Where it is.
        tokenizer: Its tokenizer.

    Raises:
        UserError: A family that has no such class, an adapter, 4-bit weights, or weights that don't fit the model.
    """
    config = load_config(source)
    family, text = FAMILIES[config.model_type], config.get_text_config()
    if family.classifier_class is None:
        raise UserError(f"model.model_name_or_path={source.base}: {no_classifier(family)}")
    if source.adapter is not None:
        raise UserError(
            f"model.model_name_or_path: {source.adapter} is an adapter, and a reward model needs full weights; name "
            "merged ones, as in the run folder's export/merged."
        )
    if model.load_in_4bit:
        raise UserError("model.load_in_4bit=true: a reward model is trained on 16-bit or 32-bit weights; leave it out.")
    text.num_labels, text.pad_token_id = 1, tokenizer.pad_token_id
    loaded: PreTrainedModel = load_language_part(model, source, config, family.classifier_class, [f"{HEAD}.weight"])
    check_vocabulary(loaded, [*stop_token_ids(tokenizer), tokenizer.pad_token_id])
    float32_head(loaded)
    return loaded


def float32_head(model: Any) -> None:
    """Replaces a classifier's own head by a `ScoreHead` with the same weights."""
    begun = model.score.weight.detach()
    model.score = ScoreHead(*reversed(begun.shape), bias=False, device=begun.device)
    model.score.weight.data.copy_(begun)


def scores(model: Any, rows: Sequence[Sequence[int]], pad_id: int, batch_size: int) -> list[float]:
    """The score of each conversation, in the rows' order.

    Args:
        model: A classifier with one label, or a PeftModel around it.
        rows: Token ids, their stop token at the end.
        pad_id: Token id to pad with, on the right.
        batch_size: Rows of one forward pass; rows of similar length go together.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = [0.0] * len(rows)
    base = language_part(model)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            inputs = pad_rows(base, [Rendered(list(rows[i]), [-100] * len(rows[i])) for i in places], pad_id)
            del inputs["labels"]
            logits = model(**inputs, use_cache=False).logits
            for place, score in zip(places, logits[:, 0].float().tolist(), strict=True):
                found[place] = score
    return found
