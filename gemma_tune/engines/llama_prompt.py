"""Prompts with images and sound for llama.cpp's `/completion`: the text that training renders, with markers in it.

llama.cpp's chat endpoint renders conversations by the file's template, parses calls out of answers and gives texts.
Here a prompt and its answer are the same token ids as for every other engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemma_tune.errors import RunError
from gemma_tune.media.encoded import as_sent

TAKEN = ("image", "audio")  # the kinds of media that llama.cpp is sent
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token that is a byte of a character


@dataclass(frozen=True)
class MediaPrompt:
    """A prompt in parts.

    Attributes:
        pieces: The token ids before, between and behind the media, without `<bos>` and the tokens that begin and end a
            medium: llama.cpp writes those.
        texts: The same as texts.
        media: The media, encoded.
    """

    pieces: list[list[int]]
    texts: list[str]
    media: list[str]

    def asked(self, marker: str) -> dict[str, Any]:
        """What `/completion` takes as its prompt.

        Args:
            marker: What stands for a medium in this server.
        """
        return {"prompt_string": marker.join(self.texts), "multimodal_data": self.media}


def media_prompt(tokenizer: Any, ids: Sequence[int], media: Sequence[dict[str, Any]]) -> MediaPrompt:
    """Takes a rendered prompt apart.

    Args:
        tokenizer: Its `media` knows what begins and ends a medium.
        ids: Token ids, `<bos>` first.
        media: As those of `Rendered`.

    Raises:
        UnusableMedium: A file can't be used.
        RunError: A medium is of a kind, or in a form, that llama.cpp doesn't take.
    """
    pieces, start = list[list[int]](), 1
    for medium in media:
        kind, at, end = medium["kind"], medium["at"], medium["at"] + medium["tokens"]
        if kind not in TAKEN:
            raise RunError(f"{medium['path']}: llama.cpp is sent images and sound, and no {kind}.")
        marks = tokenizer.media.marks(kind)
        before, soft, after = tokenizer.convert_tokens_to_ids([marks.before.strip(), marks.soft, marks.after.strip()])
        if [*ids[at - 1 : end + 1]] != [before, *[soft] * medium["tokens"], after]:
            raise RunError(f"{medium['path']}: llama.cpp has no Pan & Scan, and this image has crops.")
        pieces.append([*ids[start : at - 1]])
        start = end + 1
    pieces.append([*ids[start:]])
    texts = [tokenizer.decode(piece, clean_up_tokenization_spaces=False) for piece in pieces]
    return MediaPrompt(pieces, texts, [_content(medium["kind"], medium["path"]) for medium in media])


def asked_prompt(post: Callable[..., Any], tokenizer: Any, ids: Sequence[int], marker: str | None) -> Any:
    """A prompt as `/completion` takes it; with media as text, of which llama.cpp must make the same ids.

    Args:
        post: Asks llama.cpp.
        tokenizer: Its `media` knows what begins and ends a medium.
        ids: Token ids, perhaps with media (`Prompt`).
        marker: What stands for a medium in this server; None where it has no towers.

    Raises:
        UnusableMedium: A file can't be used.
        RunError: llama.cpp makes other tokens of a text than training, or doesn't take a medium.
    """
    media = getattr(ids, "media", ())
    if not media or marker is None:
        return list(ids)
    prompt = media_prompt(tokenizer, ids, media)
    for text, piece in zip(prompt.texts, prompt.pieces, strict=True):
        if text and post("/tokenize", content=text, parse_special=True)["tokens"] != piece:
            raise RunError(f"llama.cpp makes other tokens of {text!r} than the tokenizer; name that of this file.")
    return prompt.asked(marker)


def check_length(ids: Sequence[int], read: int, sized: bool) -> None:
    """Raises RunError where llama.cpp has read another number of tokens than training, though images have as many.

    Args:
        ids: A prompt, perhaps with media.
        read: The tokens that llama.cpp has read.
        sized: Whether the size of an image decides on its tokens: llama.cpp may scale it otherwise then.
    """
    media = getattr(ids, "media", ())
    fixed = not sized and all(medium["kind"] == "image" for medium in media)
    if media and fixed and read != len(ids):
        raise RunError(
            f"{media[0]['path']}: llama.cpp's prompt has {read} tokens and training's has {len(ids)}: the file of "
            "the towers is another model's."
        )


def ids_of(tokenizer: Any, event: Mapping[str, Any]) -> list[int]:
    """The token ids of an event of a stream; of a character of several tokens llama.cpp names the last one alone."""
    ids: list[int] = event["tokens"]
    written: list[str] = tokenizer.convert_ids_to_tokens(ids)
    if written and _BYTE.fullmatch(written[-1]):
        ids = tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in event["content"].encode()])
    return ids


def _content(kind: str, path: str) -> str:
    """A file's content in base64, as clients of the chat endpoint send it."""
    sent = as_sent({"type": kind, kind: path})
    data: str = sent["image_url"]["url"].partition(",")[2] if kind == "image" else sent["input_audio"]["data"]
    return data
