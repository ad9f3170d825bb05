"""Questions with images and sound to llama.cpp's chat endpoint, as its users ask them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from gemma_tune.engines.llama_cpp import TopTokens
from gemma_tune.engines.llama_server import LlamaServer
from gemma_tune.engines.served import as_openai
from gemma_tune.errors import RunError


class ChatAnswer(NamedTuple):
    """An answer, and what it was drawn from.

    Attributes:
        ids: The answer's token ids, without what ended it.
        tops: The best tokens at each of its positions.
        prompt_tokens: How many tokens the prompt had, those of the media included.
        stopped: Whether the model ended it, not the limit.
    """

    ids: list[int]
    tops: TopTokens
    prompt_tokens: int
    stopped: bool = False


def ask_with_media(
    server: LlamaServer, messages: Sequence[dict[str, Any]], max_new_tokens: int, best: int
) -> ChatAnswer:
    """The greedy answer to a conversation that ends with a user's message.

    Args:
        server: llama.cpp with the file of the towers.
        messages: Messages in the form of rows: their content is a text, or parts of which media have a path.
        max_new_tokens: Tokens of the answer at most.
        best: How many of the best tokens to give for each position.

    Raises:
        RunError: A file can't be used, or llama.cpp refuses the request or gives no probabilities.
    """
    asked = {"max_tokens": max_new_tokens, "temperature": 0.0, "logprobs": True, "top_logprobs": best}
    answer = server.post("/v1/chat/completions", messages=as_openai(messages), **asked)
    found = (answer["choices"][0].get("logprobs") or {}).get("content") or []
    stopped = answer["choices"][0]["finish_reason"] == "stop"
    if not found and not stopped:
        raise RunError("llama.cpp answered without probabilities.")
    width = min((len(position["top_logprobs"]) for position in found), default=0)
    tops = [position["top_logprobs"][:width] for position in found]
    return ChatAnswer(
        [position["id"] for position in found],
        TopTokens(
            torch.tensor([[entry["id"] for entry in top] for top in tops], dtype=torch.long).view(len(tops), width),
            torch.tensor([[entry["logprob"] for entry in top] for top in tops]).view(len(tops), width),
        ),
        answer["usage"]["prompt_tokens"],
        stopped,
    )
