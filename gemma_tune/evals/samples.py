"""Greedy answers to held-out prompts, to be read by people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from tqdm import tqdm

from gemma_tune.chat import render_chat, render_prompt, render_text
from gemma_tune.chat.calls import answer_text, content_text
from gemma_tune.data.records import Record
from gemma_tune.models.mode import evaluating

# The published generation configs ask for sampling, and greedy decoding warns about their values.
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
        prompts: Token ids, one list a prompt.
        max_new_tokens: Tokens at most.
        batch_size: Prompts of one pass; prompts of like length go together.
        name: What the progress bar says.

    Returns:
        New token ids of each prompt, with the stop token where there is one, without padding.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with evaluating(model), tqdm(total=len(prompts), desc=name, unit=" rows", disable=None, leave=False) as bar:
        for start in range(0, len(prompts), batch_size):
            places = order[start : start + batch_size]
            batch = answer_batch(model, tokenizer, [prompts[i] for i in places], max_new_tokens)
            for place, answer in zip(places, batch, strict=True):
                answers[place] = answer
            bar.update(len(places))
    return answers


def answer_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Mapping[str, Any] = GREEDY,
) -> list[list[int]]:
    """Continuations of one batch; the model's mode is the caller's.

    Args:
        model: The model; stops at the ids of its generation config.
        tokenizer: For the padding id.
        prompts: Token ids, one list a prompt; padded on the left.
        max_new_tokens: Tokens at most.
        sampling: How tokens are chosen, in `generate`'s words.

    Returns:
        New token ids of each prompt, with the stop token where there is one, without padding.
    """
    device = model.get_input_embeddings().weight.device
    pad = tokenizer.pad_token_id
    stops = set(model.generation_config.eos_token_id)
    width = max(len(p) for p in prompts)
    out = model.generate(
        input_ids=torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device),
        attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device),
        max_new_tokens=max_new_tokens,
        use_cache=True,
        **sampling,
    )
    answers = []
    for row in out[:, width:].tolist():
        end = next((i for i, token in enumerate(row) if token in stops), None)
        answers.append([t for t in row if t != pad] if end is None else row[: end + 1])
    return answers


def prompt_ids(tokenizer: Any, record: Record) -> list[int]:
    """Token ids of a record's prompt: a conversation up to its last answer, or the first half of a text."""
    if record.messages is not None:
        return render_prompt(tokenizer, record.prompt, record.tools)
    ids = render_text(tokenizer, record.text or "").input_ids
    return ids[: max(1, len(ids) // 2)]


def full_ids(tokenizer: Any, record: Record) -> list[int]:
    """Token ids of a record up to and with the answer that `prompt_ids` stops before."""
    if record.messages is None:
        return render_text(tokenizer, record.text or "").input_ids
    return render_chat(tokenizer, record.messages[: len(record.prompt) + 1], record.tools).input_ids


def asked_text(tokenizer: Any, record: Record) -> str:
    """What was asked, for people: the last message before the answer, or the beginning of the text."""
    if record.messages is None:
        return str(tokenizer.decode(prompt_ids(tokenizer, record), skip_special_tokens=True))
    return content_text(record.prompt[-1])


def sample_answers(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    max_new_tokens: int,
    batch_size: int = 8,
    name: str = "answers",
) -> list[dict[str, str]]:
    """Answers to the records' prompts.

    Returns:
        For each record `prompt`, `wanted`, `answer` (as `answer_text` gives them) and `stopped` (yes or no).
    """
    prompts = [prompt_ids(tokenizer, r) for r in records]
    answers = greedy_answers(model, tokenizer, prompts, max_new_tokens, batch_size, name)
    stops = set(model.generation_config.eos_token_id)
    whole = [full_ids(tokenizer, r) for r in records]
    return [
        {
            "prompt": asked_text(tokenizer, r),
            "wanted": answer_text(tokenizer, w[len(p) :]),
            "answer": answer_text(tokenizer, a),
            "stopped": "yes" if a and a[-1] in stops else "no",
        }
        for r, p, a, w in zip(records, prompts, answers, whole, strict=True)
    ]
