"""Measuring on rows with images and sound in engines other than Transformers: what they can't measure is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gemma_tune.chat.media import media_in
from gemma_tune.config import Config
from gemma_tune.data.records import Record
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.engines.llama_prompt import TAKEN
from gemma_tune.engines.vllm_server import find_vllm
from gemma_tune.errors import UserError
from gemma_tune.models.source import Source
from gemma_tune.run.paths import MMPROJ, mmproj_beside

_OF_HELD_OUT = ("held_out_loss", "kl", "preference")  # the evaluators that score validation rows
_MERGED = "evaluate the merged weights (export/merged), which Transformers computes"


class UnreadMedia(UserError):
    """The engine can't be asked about the images and the sound of these rows."""


def media_kinds(held_out: TokenizedRows, tests: Mapping[str, Sequence[Record]]) -> tuple[set[str], set[str]]:
    """The kinds of media in the validation rows, and in the test rows."""
    held = {medium["kind"] for row in held_out.rendered for side in row.sides for medium in side.media}
    rows = [record.messages or [] for records in tests.values() for record in records]
    return held, {part["type"] for messages in rows for part in media_in(messages)}


def with_what_is_measured(
    cfg: Config, source: Source, tokenizer: Any, held: set[str], tested: set[str]
) -> tuple[Config, list[str]]:
    """The configuration without the evaluators that the engine can't serve on rows with media.

    Args:
        cfg: The configuration.
        source: Where the weights are.
        tokenizer: Their tokenizer.
        held: The kinds of media in the validation rows.
        tested: Those in the test rows.

    Returns:
        The configuration, and what to say of the evaluators that are left out.

    Raises:
        UnreadMedia: The engine can't be asked about these media at all, or no evaluator is left.
    """
    kinds = held | tested
    if not kinds or cfg.model.base_url is not None:
        return cfg, []
    if source.gguf is None:
        if find_vllm(cfg.engine):
            raise UnreadMedia(
                f"engine.vllm: rows have media ({', '.join(sorted(kinds))}), and vLLM is asked with token ids, which "
                "hold none. Leave engine.vllm out: Transformers measures them. A vLLM on a GPU is asked about media as "
                "a server (recipe=serve, then model.base_url=…); on a CPU it hides the tokens of an image from each "
                "other, otherwise than in training."
            )
        return cfg, []
    refuse_unread(source, tokenizer, kinds)
    lost = [name for name in cfg.eval.evaluators if name in _OF_HELD_OUT] if held else []
    rest = [name for name in cfg.eval.evaluators if name not in lost]
    if not lost:
        return cfg, []
    said = f"llama.cpp gives no probabilities of a row's own tokens behind media; {_MERGED}"
    if not rest:
        raise UnreadMedia(f"eval.evaluators: {', '.join(lost)} on validation rows with media: {said}.")
    note = f"Left out of a GGUF file on validation rows with media: {', '.join(lost)}; {said}."
    return replace(cfg, eval=replace(cfg.eval, evaluators=rest)), [note]


def refuse_unread(source: Source, tokenizer: Any, kinds: set[str]) -> None:
    """Raises UnreadMedia where a GGUF file is to read rows with kinds of media that llama.cpp can't be asked about."""
    if kinds and (why := unread_media(source, tokenizer, kinds)):
        has = f"rows have media ({', '.join(sorted(kinds))})"
        raise UnreadMedia(f"model.model_name_or_path={source.gguf}: {has}, and {why}.")


def unread_media(source: Source, tokenizer: Any, kinds: set[str]) -> str | None:
    """Why llama.cpp can't be asked about these kinds of media, with the way out; None where it can."""
    assert source.gguf
    if mmproj_beside(source.gguf) is None:
        several = any(source.gguf.parent.glob(f"{MMPROJ}*.gguf"))
        lacking = f"no file of towers ({MMPROJ}*.gguf) stands beside it, which export.mmproj=true writes"
        if several:
            lacking = f"several files of towers ({MMPROJ}*.gguf) stand beside it: leave one of them there"
        return f"{lacking}, or {_MERGED}"
    if tokenizer.media is None:
        return str(tokenizer.no_media)
    if other := sorted(kinds - {*TAKEN}):
        return f"llama.cpp is asked about images and sound alone, not {', '.join(other)}; {_MERGED}"
    if tokenizer.media.images_kwargs.get("do_pan_and_scan"):
        return (
            f"the model was trained with Pan & Scan, which llama.cpp hasn't; {_MERGED}, or measure it without crops: "
            "model.images_kwargs.do_pan_and_scan=false"
        )
    return None
