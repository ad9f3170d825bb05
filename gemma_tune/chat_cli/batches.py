"""Answers many prompts in batches and writes JSON lines."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import torch
from tqdm import tqdm

from gemma_tune.chat.render import Prompt
from gemma_tune.chat_cli.answer import Answer
from gemma_tune.chat_cli.responder import Responder, note
from gemma_tune.config import ChatConfig
from gemma_tune.data.records import Record
from gemma_tune.errors import UserError
from gemma_tune.run.paths import resolve

# Batches whose answers are written together; their prompts are sorted by length.
_BATCHES = 16


def answer_file(responder: Responder, records: Sequence[Record], prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Answers the prompts, and writes the answers in the order of the prompts as soon as they are ready.

    Args:
        responder: Writes the answers; its `chat` has the output file.
        records: The conversations.
        prompts: Their token ids.

    Returns:
        The rows written: `prompt`, `answer`, `calls` and `stopped`.

    Raises:
        UserError: `chat.output_file` can't be written, or a batch doesn't fit into the memory.
    """
    chat, rows = responder.chat, list[dict[str, Any]]()
    with _output(chat) as out, tqdm(total=len(prompts), desc="answers", unit=" prompts", disable=None) as bar:
        try:
            for place, answer in _answers(responder, prompts, bar):
                rows.append(answer.row(records[place].messages or []))
                # tqdm.write keeps the progress bar intact, which may be on the same terminal
                tqdm.write(json.dumps(rows[-1], ensure_ascii=False), file=out)
        except BaseException:
            note(f"{len(rows)} of {len(prompts)} answers were written to {chat.output_file or 'standard output'}.")
            raise
    if cut := sum(not row["stopped"] for row in rows):
        note(f"{cut} of {len(rows)} answers were cut at chat.max_new_tokens={chat.max_new_tokens} ('stopped': false).")
    return rows


def _answers(responder: Responder, prompts: Sequence[Prompt], bar: tqdm[Any]) -> Iterator[tuple[int, Answer]]:
    """The index of each prompt and its answer, in the order of the prompts."""
    chat, limit = responder.chat, responder.limit
    window = chat.batch_size * _BATCHES
    for start in range(0, len(prompts), window):
        places = range(start, min(start + window, len(prompts)))
        answers: dict[int, Answer] = {}
        for batch in _batches([(len(prompts[i]), i) for i in places], chat, limit):
            lengths = [len(prompts[i]) for i in batch]
            room = min(chat.max_new_tokens, limit - max(lengths))
            try:
                new = responder.write_batch([prompts[i] for i in batch], room)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"chat.batch_size={chat.batch_size}: {len(batch)} prompts of up to {max(lengths):,} tokens don't "
                    "fit into the GPU's memory; set a smaller one, or model.load_in_4bit=true."
                ) from error
            answers |= {i: Answer.of(responder.tokenizer, ids) for i, ids in zip(batch, new, strict=True)}
            bar.update(len(batch))
        yield from ((i, answers[i]) for i in places)


@contextlib.contextmanager
def _output(chat: ChatConfig) -> Iterator[TextIO]:
    if chat.output_file is None:
        yield sys.stdout
        return
    try:
        file = resolve(chat.output_file).open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise UserError(f"chat.output_file={chat.output_file}: this can't be written ({error.strerror}).") from error
    with file:
        yield file


def _batches(lengths: list[tuple[int, int]], chat: ChatConfig, limit: int) -> Iterator[list[int]]:
    """Batches of prompts of similar length, as indices; a prompt near the model's limit gets a batch of its own.

    Args:
        lengths: Number of tokens and index of each prompt.
        chat: Batch size and answer length.
        limit: Number of positions that the model has.
    """
    most = limit - chat.max_new_tokens
    short = [i for length, i in sorted(lengths) if length <= most]
    for start in range(0, len(short), chat.batch_size):
        yield short[start : start + chat.batch_size]
    yield from ([i] for length, i in lengths if length > most)
