"""A model that gives prepared answers and a person who types prepared lines, for the tests of the chat."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gemma_tune.chat import STOP_TOKEN

LIMIT = 2048


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


class Scripted:
    """A model that says one given text after another, a token at a time; with `interrupted` a person stops it."""

    def __init__(self, tokenizer: Any, *says: str, interrupted: int | None = None, stop: str = STOP_TOKEN) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.says = list(says)
        self.interrupted = interrupted
        self.asked: list[str] = []
        self.embedding = nn.Embedding(len(tokenizer), 1)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def generate(self, input_ids: torch.Tensor, max_new_tokens: int, streamer: Any, **_: Any) -> None:
        self.asked.append(self.tokenizer.decode(input_ids[0]))
        ids = self.tokenizer(self.says.pop(0), add_special_tokens=False)["input_ids"]
        ids = [*ids, self.tokenizer.convert_tokens_to_ids(self.stop)]
        streamer.put(input_ids)
        for place, token in enumerate(ids[:max_new_tokens]):
            if place == self.interrupted:
                raise KeyboardInterrupt
            streamer.put(torch.tensor([token]))
        streamer.end()


class Person:
    """Says one line after another, notes what they were asked for, and goes."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines = iter(lines)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = next(self.lines, EOFError)
        if isinstance(line, str):
            return line
        raise line
