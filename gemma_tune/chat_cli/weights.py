"""Loads what answers: a checkpoint in Transformers, or a GGUF file in llama.cpp, with the towers that lie beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import torch

from gemma_tune.chat import form_of
from gemma_tune.chat.media import media_in
from gemma_tune.chat.own import OwnForm
from gemma_tune.chat.render import Prompt
from gemma_tune.chat_cli.answer import AnswerStreamer
from gemma_tune.chat_cli.responder import Responder, note
from gemma_tune.config import ChatConfig, Config
from gemma_tune.data.records import Record
from gemma_tune.engines.llama_cpp import GREEDY, LlamaCppEngine
from gemma_tune.engines.llama_prompt import TAKEN
from gemma_tune.engines.open import context_length, open_engine
from gemma_tune.errors import UserError
from gemma_tune.models.check_source import check_source
from gemma_tune.models.gguf_header import read_gguf_header
from gemma_tune.models.load import check_rows, check_vocabulary, load_config
from gemma_tune.models.load_weights import load_model
from gemma_tune.models.source import Source
from gemma_tune.steps.media_rows import refuse_unread, unread_media


def positions_of(cfg: Config, source: Source) -> int:
    """Tokens of a conversation and its answer at most, of weights that aren't loaded yet.

    Raises:
        UserError: The weights can't be used as they are named.
    """
    if source.gguf is not None:  # the server needs room for a token behind them
        return min(context_length(cfg), read_gguf_header(source.gguf).context - 1)
    config = load_config(source)
    check_source(cfg.model, cfg.adapter, source, config, trains=False)
    positions: int = config.get_text_config().max_position_embeddings
    return positions


def check_media(source: Source, tokenizer: Any, records: Sequence[Record]) -> None:
    """Raises UserError where a GGUF file is to answer rows with media that llama.cpp can't be asked about."""
    if source.gguf is not None:
        refuse_unread(source, tokenizer, {part["type"] for r in records for part in media_in(r.messages or [])})


def check_talk(chat: ChatConfig, tokenizer: Any) -> None:
    """Raises UserError where a text is to be typed for a model that is told the languages of each message."""
    form = form_of(tokenizer)
    if chat.prompts_file is None and isinstance(form, OwnForm) and form.translates:
        raise UserError(
            "recipe=chat: this model translates, and what is typed names no languages; put the texts into a file, "
            'a line each, {"source_lang_code": "en", "target_lang_code": "de", "text": "…"}, and set '
            "chat.prompts_file=rows.jsonl."
        )


@contextlib.contextmanager
def opened(cfg: Config, source: Source, tokenizer: Any, prompts: Sequence[Prompt], limit: int) -> Iterator[Responder]:
    """Loads the weights and says which, and frees them on exit.

    Args:
        cfg: The configuration.
        source: Where the weights are.
        tokenizer: Their tokenizer.
        prompts: What is asked for certain.
        limit: See `positions_of`.

    Raises:
        UserError: The weights can't be loaded, or have no row for a token of the prompts.
        EngineUnavailable: llama.cpp can't load the file.
    """
    highest = max((max(prompt) for prompt in prompts), default=0)
    if source.gguf is None:
        on_it = f", with the adapter {source.adapter}" if source.adapter else ""
        note(f"Loading {source.base}{on_it} …")
        model = load_model(cfg.model, source, tokenizer, packed=True)
        check_vocabulary(model, [highest])
        yield Responder(model, tokenizer, cfg.chat, limit)
        return
    why = {kind: unread_media(source, tokenizer, {kind}) for kind in TAKEN}
    sees = not all(why.values())
    note(f"Loading {source.base} in llama.cpp{', with the towers beside it' if sees else ''} …")
    with open_engine(cfg, source, tokenizer, highest, media=sees) as engine:
        assert isinstance(engine, LlamaCppEngine)
        yield LlamaResponder(engine, cfg.chat, cfg.seed, why)


class LlamaResponder(Responder):
    """Answers with a GGUF file; a prompt is the token ids of training, as for every other engine.

    Args:
        engine: llama.cpp with the file.
        chat: Sampling options and the largest length of an answer.
        seed: Of what is drawn.
        why: Of each kind of media why llama.cpp can't be asked about it, or None.
    """

    def __init__(self, engine: LlamaCppEngine, chat: ChatConfig, seed: int, why: Mapping[str, str | None]) -> None:
        super().__init__(None, engine.tokenizer, chat, engine.max_length)
        self._engine, self._seeds, self._why = engine, count(seed), why

    @property
    def kinds(self) -> tuple[str, ...]:
        """See `Responder`."""
        return tuple(kind for kind in super().kinds if not self._why.get(kind, "never"))

    def why_no(self, kind: str) -> str | None:
        """See `Responder`."""
        return self._why.get(kind) or super().why_no(kind)

    def check(self, ids: Sequence[int]) -> None:
        """See `Responder`."""
        check_rows(self._engine.vocabulary, ids)

    def write(self, ids: Prompt, room: int, streamer: AnswerStreamer) -> None:
        """See `Responder`."""
        streamer.put(torch.tensor([ids]))
        with contextlib.closing(self._engine.written(ids, room, self._sampling())) as written:
            for token in written:
                streamer.put(torch.tensor([token]))
        streamer.end()

    def write_batch(self, prompts: Sequence[Sequence[int]], room: int) -> list[list[int]]:
        """See `Responder`; one after the other."""
        return [[*self._engine.written(ids, room, self._sampling())] for ids in prompts]

    def _sampling(self) -> Mapping[str, Any]:
        """In the order in which Transformers takes them."""
        if self.chat.temperature == 0:
            return GREEDY
        drawn = {"temperature": self.chat.temperature, "top_k": self.chat.top_k, "top_p": self.chat.top_p}
        return {**drawn, "samplers": [*drawn], "seed": next(self._seeds)}
