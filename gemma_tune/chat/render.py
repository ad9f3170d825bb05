"""From a conversation to token ids and loss mask. Every mask of the project is made here."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from gemma_tune.chat.template import training_template

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None


@dataclass(frozen=True)
class Rendered:
    """One row as the model sees it.

    Attributes:
        input_ids: Token ids, `<bos>` first, [T].
        labels: The same ids where the loss counts, -100 elsewhere, [T]. Not shifted.
    """

    input_ids: list[int]
    labels: list[int]

    def cut(self, max_length: int) -> Rendered:
        """The first `max_length` tokens."""
        return Rendered(self.input_ids[:max_length], self.labels[:max_length])

    @property
    def trained_tokens(self) -> int:
        """Tokens that the loss counts; the first token has no prediction."""
        return sum(label != -100 for label in self.labels[1:])


def render_chat(tokenizer: Any, messages: Messages, tools: Tools = None, family: str = "gemma3") -> Rendered:
    """Renders a conversation; the loss counts the assistant's tokens and the stop token, nothing else.

    An answer with `"weight": 0` counts nothing.

    Args:
        tokenizer: A fast tokenizer of Transformers (the mask comes from its character offsets).
        messages: OpenAI messages: `role`, `content`, and for calls `tool_calls`.
        tools: OpenAI function schemas, or None.
        family: Which template.

    Raises:
        jinja2.TemplateError: Roles that don't alternate.
    """
    out = tokenizer.apply_chat_template(
        messages,
        tools=tools or None,
        chat_template=training_template(family),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids = list(out["input_ids"])
    answers = [m for m in messages if m["role"] == "assistant"]
    mask = _weighted(out["assistant_masks"], [m.get("weight", 1) for m in answers])
    return Rendered(ids, [i if m else -100 for i, m in zip(ids, mask, strict=True)])


def _weighted(mask: list[int], weights: list[int]) -> list[int]:
    """The mask without the answers of weight 0: each answer is one run of ones, as turns never touch."""
    weighted: list[int] = []
    weight = iter(weights)
    for is_answer, run in itertools.groupby(mask):
        weighted += [next(weight) if is_answer else 0] * len(list(run))
    return weighted


def render_prompt(tokenizer: Any, messages: Messages, tools: Tools = None, family: str = "gemma3") -> list[int]:
    """Token ids up to where the model's answer begins, [T]."""
    ids: list[int] = tokenizer.apply_chat_template(
        messages,
        tools=tools or None,
        chat_template=training_template(family),
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
    )["input_ids"]
    return list(ids)


def render_text(tokenizer: Any, text: str) -> Rendered:
    """Renders running text: `<bos>`, the text, `<eos>`; every token is trained on."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return Rendered(ids, ids.copy())
