"""Prompts with images and sound for llama.cpp's `/completion`: the text that training renders, with markers in it.

llama.cpp's chat endpoint renders conversations by the file's template, parses calls out of answers and gives texts.
Here a prompt and its answer are the same token ids as for every other engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gemma_tune.errors import RunError
from gemma_tune.media.encoded import as_sent

TAKEN = ("image", "audio")  # the kinds of media that llama.cpp is sent


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


def _content(kind: str, path: str) -> str:
    """A file's content in base64, as clients of the chat endpoint send it."""
    sent = as_sent({"type": kind, kind: path})
    data: str = sent["image_url"]["url"].partition(",")[2] if kind == "image" else sent["input_audio"]["data"]
    return data
