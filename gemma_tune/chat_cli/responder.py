"""Streams a model's answers to standard output; notes for the user go to standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console

from gemma_tune.chat import Unrenderable
from gemma_tune.chat.render import Messages, Prompt, Tools, render_prompt
from gemma_tune.chat_cli.answer import Answer, AnswerStreamer
from gemma_tune.config import ChatConfig
from gemma_tune.engines.generate import GREEDY, answer_batch
from gemma_tune.errors import UserError
from gemma_tune.media.kinds import UnusableMedium
from gemma_tune.models.load import check_vocabulary
from gemma_tune.models.towers.media import media_inputs
from gemma_tune.models.towers.towers import seeing


def note(text: str) -> None:
    """Prints a line for the user on standard error."""
    Console(stderr=True, highlight=False).print(text, style="dim", markup=False, soft_wrap=True)


def sampling_of(chat: ChatConfig) -> Mapping[str, Any]:
    """Sampling options for Transformers' `generate`."""
    if chat.temperature == 0:
        return GREEDY
    return {"do_sample": True, "temperature": chat.temperature, "top_k": chat.top_k, "top_p": chat.top_p}


def ids_within(tokenizer: Any, messages: Messages, tools: Tools, limit: int, where: str) -> Prompt:
    """Token ids of the prompt, [T], with its media.

    Args:
        tokenizer: The tokenizer.
        messages: The conversation.
        tools: Function schemas, or None.
        limit: Number of positions that the model has.
        where: Name of the conversation, for the message.

    Raises:
        UserError: There is no room for an answer, or the chat template can't render the conversation.
    """
    try:
        ids = render_prompt(tokenizer, messages, tools)
    except Unrenderable as error:
        raise UserError(f"{where}: {error}") from error
    if len(ids) >= limit:
        raise UserError(f"{where}: {len(ids):,} tokens leave no room for an answer; the model takes {limit:,} in all.")
    return ids


class Responder:
    """Answers conversations with a model, and streams the answers.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        chat: Sampling options and the largest length of an answer.
        limit: Number of positions that the model has.
    """

    def __init__(self, model: Any, tokenizer: Any, chat: ChatConfig, limit: int) -> None:
        self._model = model
        self.tokenizer, self.chat, self.limit = tokenizer, chat, limit

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of media that can be put before a message."""
        return self.tokenizer.media.kinds if getattr(self.tokenizer, "media", None) else ()

    def check(self, ids: Sequence[int]) -> None:
        """Raises UserError where the model has no row for a token id."""
        check_vocabulary(self._model, ids)

    def write(self, ids: Prompt, room: int, streamer: AnswerStreamer) -> None:
        """Gives the streamer the prompt, and each token of an answer of at most `room` as soon as it is there.

        Raises:
            UnusableMedium: A file of a medium can't be used any more.
        """
        prompt = torch.tensor([ids], device=self._model.get_input_embeddings().weight.device)
        with seeing(self._model, media_inputs(self.tokenizer, [ids]), prompt) as given:
            self._model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=room,
                streamer=streamer,
                use_cache=True,
                **given,
                **sampling_of(self.chat),
            )

    def write_batch(self, prompts: Sequence[Sequence[int]], room: int) -> list[list[int]]:
        """The answers of one batch as token ids."""
        return answer_batch(self._model, self.tokenizer, prompts, room, sampling_of(self.chat))

    def why_no(self, kind: str) -> str | None:
        """Why a kind of media can't be put before a message; None where there is no more to say."""
        return getattr(self.tokenizer, "no_media", None)

    def check_kind(self, kind: str) -> None:
        """Raises UserError for a kind of media that the model doesn't take."""
        if self.kinds and kind not in self.kinds:
            raise UserError(f"this model takes no {kind}, only {' and '.join(self.kinds)}.")
        if not self.kinds:
            raise UserError(f"this model takes no {kind}: {self.why_no(kind) or 'it reads text only'}.")

    def media_tokens(self, part: Mapping[str, Any]) -> int:
        """The number of tokens of an image, a sound or a video, whose file `part` names.

        Raises:
            UserError: The file can't be used.
        """
        try:
            return int(self.tokenizer.media.count(part))
        except UnusableMedium as error:
            raise UserError(str(error)) from error

    def answer(self, messages: Messages, tools: Tools, where: str, stoppable: bool = False) -> Answer:
        """Streams an answer.

        Args:
            messages: The conversation, without the answer.
            tools: Function schemas, or None.
            where: Name of the conversation, for messages.
            stoppable: Whether Ctrl-C ends only the answer; then the answer so far is returned.

        Raises:
            UserError: The conversation is too long for the model or the memory, contains unknown tokens, or a file of a
                medium can't be used any more.
            KeyboardInterrupt: Ctrl-C, unless `stoppable`; text that was held back is printed first.
        """
        ids = ids_within(self.tokenizer, messages, tools, self.limit, where)
        self.check(ids)
        room = min(self.chat.max_new_tokens, self.limit - len(ids))
        streamer = AnswerStreamer(self.tokenizer)
        interrupted = False
        try:
            self.write(ids, room, streamer)
        except UnusableMedium as error:
            raise UserError(f"{where}: {error}") from error
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
        answer = Answer.of(self.tokenizer, streamer.ids)
        if interrupted:
            note("(stopped)")
        elif not answer.stopped and room < self.chat.max_new_tokens:
            note(f"(cut: the conversation fills the model's {self.limit:,} tokens)")
        elif not answer.stopped:
            note(f"(cut at chat.max_new_tokens={room})")
        return answer
