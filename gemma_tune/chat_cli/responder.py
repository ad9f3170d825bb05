"""A model that answers on standard output; notes for people go to standard error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console

from gemma_tune.chat import Unrenderable
from gemma_tune.chat.render import Messages, Tools, render_prompt
from gemma_tune.chat_cli.answer import Answer, AnswerStreamer
from gemma_tune.config import ChatConfig
from gemma_tune.engines.generate import GREEDY
from gemma_tune.errors import UserError
from gemma_tune.models.load import check_vocabulary


def note(text: str) -> None:
    """Prints a line for people, on standard error."""
    Console(stderr=True, highlight=False).print(text, style="dim", markup=False, soft_wrap=True)


def sampling_of(chat: ChatConfig) -> Mapping[str, Any]:
    """How tokens are chosen, in the words of Transformers' `generate`."""
    if chat.temperature == 0:
        return GREEDY
    return {"do_sample": True, "temperature": chat.temperature, "top_k": chat.top_k, "top_p": chat.top_p}


def ids_within(tokenizer: Any, messages: Messages, tools: Tools, limit: int, where: str) -> list[int]:
    """Token ids up to where the model answers, [T].

    Args:
        tokenizer: The tokenizer.
        messages: The conversation.
        tools: Function schemas, or None.
        limit: Tokens that the model has positions for.
        where: What the conversation is, for the message.

    Raises:
        UserError: There is no room for an answer, or the model's chat has no place for something.
    """
    try:
        ids = render_prompt(tokenizer, messages, tools)
    except Unrenderable as error:
        raise UserError(f"{where}: {error}") from error
    if len(ids) >= limit:
        raise UserError(f"{where}: {len(ids):,} tokens leave no room for an answer; the model takes {limit:,} in all.")
    return ids


class Responder:
    """A model that answers aloud.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        chat: How it answers.
        limit: Tokens that the model has positions for.
    """

    def __init__(self, model: Any, tokenizer: Any, chat: ChatConfig, limit: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._chat = chat
        self._limit = limit

    def answer(self, messages: Messages, tools: Tools, where: str, stoppable: bool = False) -> Answer:
        """Streams an answer.

        Args:
            messages: The conversation up to where the model answers.
            tools: Function schemas, or None.
            where: What the conversation is, for messages.
            stoppable: Whether Ctrl-C ends the answer alone; what there is of it is given back.

        Raises:
            UserError: The conversation is too long for the model or for the memory, or holds tokens that the model
                doesn't have.
            KeyboardInterrupt: Ctrl-C, unless `stoppable`; what was held back is printed first.
        """
        ids = ids_within(self._tokenizer, messages, tools, self._limit, where)
        check_vocabulary(self._model, ids)
        room = min(self._chat.max_new_tokens, self._limit - len(ids))
        device = self._model.get_input_embeddings().weight.device
        prompt = torch.tensor([ids], device=device)
        streamer = AnswerStreamer(self._tokenizer)
        interrupted = False
        try:
            self._model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=room,
                streamer=streamer,
                use_cache=True,
                **sampling_of(self._chat),
            )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{where}: {len(ids):,} tokens and an answer don't fit into the GPU's memory beside the model; "
                "model.load_in_4bit=true leaves more of it."
            ) from error
        except KeyboardInterrupt:
            if not stoppable:
                raise
            interrupted = True
        finally:
            streamer.end()
        answer = Answer.of(self._tokenizer, streamer.ids)
        if interrupted:
            note("(stopped)")
        elif not answer.stopped and room < self._chat.max_new_tokens:
            note(f"(cut: the conversation fills the model's {self._limit:,} tokens)")
        elif not answer.stopped:
            note(f"(cut at chat.max_new_tokens={room})")
        return answer
