"""Images, sounds and videos in a rendered conversation.

The chat template writes one placeholder for each. It is replaced by the text of the family's processor with one soft
token in place of all, the text is tokenized once, and then that token becomes as many as the medium has. Tokens put
together from pieces would differ from the processor's: line breaks around an image merge with those of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from gemma_tune.chat.forms import ChatForm, Unrenderable
from gemma_tune.chat.marks import Messages, Span
from gemma_tune.media.kinds import SEVERAL, WORDS

KINDS = ("image", "audio", "video")
Media = list[dict[str, Any]]


@dataclass(frozen=True)
class Placed:
    """A conversation's text with its media in it.

    Attributes:
        text: The text, in which one soft token stands for each run of them.
        spans: The parts that the model generates, in this text.
        media: `kind` and `path` of each medium, in order.
        runs: Of each soft token of the text: the number of its medium, and how many tokens it stands for.
    """

    text: str
    spans: list[Span]
    media: Media
    runs: list[tuple[int, int]]


def media_in(messages: Messages) -> Media:
    """The parts of the messages that are images, sounds and videos, in order."""
    return [
        part
        for message in messages
        if isinstance(message.get("content"), list)
        for part in message["content"]
        if isinstance(part, dict) and part.get("type") in KINDS
    ]


def place(tokenizer: Any, form: ChatForm, text: str, spans: list[Span], parts: Media) -> Placed:
    """Replaces the placeholders of a rendered text by what the family's processor writes.

    Args:
        tokenizer: The tokenizer; its `media` knows the media.
        form: The chat format.
        text: The text as the template renders it.
        spans: The parts that the model generates.
        parts: The media of the conversation, in order.

    Raises:
        Unrenderable: The checkpoint takes no such media, the template writes no place for one, or a file is unusable.
    """
    processor = getattr(tokenizer, "media", None)
    if processor is None:
        why = getattr(tokenizer, "no_media", None) or "this checkpoint reads text only"
        raise Unrenderable(f"there is no place for {WORDS[parts[0]['type']]} here: {why}.")
    if other := next((part["type"] for part in parts if part["type"] not in processor.kinds), None):
        raise Unrenderable(
            f"there is no place for {WORDS[other]}: this checkpoint takes "
            f"{' and '.join(SEVERAL[kind] for kind in processor.kinds)} only."
        )
    placeholders = {processor.marks(part["type"]).placeholder: part["type"] for part in parts}
    found = list(re.finditer("|".join(map(re.escape, placeholders)), text))
    if [placeholders[match[0]] for match in found] != [part["type"] for part in parts]:
        raise Unrenderable(
            f"the chat format of {form.families} has no place for one of its media "
            f"({', '.join(p['type'] for p in parts)}) where it stands: media belong into the messages of the user."
        )
    pieces, media, runs, grown, last = [], [], [], [], 0
    for number, (match, part) in enumerate(zip(found, parts, strict=True)):
        kind = part["type"]
        try:
            written, counts = processor.written(part)
        except ValueError as error:
            raise Unrenderable(str(error)) from error
        pieces += [text[last : match.start()], written]
        last = match.end()
        media.append({"kind": kind, "path": str(part[kind])})
        runs += [(number, count) for count in counts]
        grown.append((match.start(), len(written) - len(match[0])))
    return Placed("".join([*pieces, text[last:]]), list(_moved(spans, grown)), media, runs)


def _moved(spans: list[Span], grown: list[tuple[int, int]]) -> Iterator[Span]:
    """The spans in a text that has grown at these places by so many characters; none holds such a place."""
    for begin, end in spans:
        before = [more for start, more in grown if start < begin]
        if any(begin <= start < end for start, _ in grown):
            raise Unrenderable("an image, a sound or a video stands in an answer: the model writes text only.")
        yield begin + sum(before), end + sum(before)


def expand(processor: Any, placed: Placed, ids: list[int], labels: list[int]) -> tuple[list[int], list[int], Media]:
    """Makes each soft token as many as it stands for; media are never trained on.

    Args:
        processor: `tokenizer.media`.
        placed: The text, and what its soft tokens stand for.
        ids: Its token ids, [T].
        labels: Its labels, [T].

    Returns:
        Ids and labels, and the media with `at`, the index of the first soft token of each, and `tokens`, the number of
        all of them; those of a medium with several runs have other tokens between the runs.
    """
    soft = {processor.soft_ids[entry["kind"]] for entry in placed.media}
    places = [place for place, token in enumerate(ids) if token in soft]
    if len(places) != len(placed.runs):
        raise Unrenderable(
            f"the tokenizer makes {len(places)} soft tokens of {len(placed.runs)}: it doesn't know them as tokens of "
            "their own; copy its files from the published checkpoint."
        )
    starts = [0, *accumulate(count - 1 for _, count in placed.runs)]
    media = [{**entry, "at": -1, "tokens": 0} for entry in placed.media]
    all_ids, all_labels, last = [], [], 0
    for place_, before, (number, count) in zip(places, starts, placed.runs, strict=False):
        all_ids += [*ids[last:place_], *[ids[place_]] * count]
        all_labels += [*labels[last:place_], *[-100] * count]
        last = place_ + 1
        if media[number]["at"] < 0:
            media[number]["at"] = place_ + before
        media[number]["tokens"] += count
    return all_ids + ids[last:], all_labels + labels[last:], media
