"""Converts tokenizer.json into a vocabulary of llama.cpp: SentencePiece, or Gemma 4's BPE."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType

from gemma_tune.errors import UserError
from gemma_tune.export.media_template import template_for_llama_cpp

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "▁"  # stands for a space inside tokens
# Special tokens of Gemma 4 that llama.cpp must write into the text, where it looks for calls and thoughts
_SHOWN = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>')


@dataclass(frozen=True)
class GgufVocabulary:
    """The token table of a GGUF file, by id.

    Attributes:
        tokens: Their texts.
        scores: llama.cpp merges the pair whose result has the highest score: minus the rank of the first merge that
            gives the token.
        types: How each is matched and shown.
        merges: Pairs of tokens, with a space between them, the first merge first.
    """

    tokens: list[str]
    scores: list[float]
    types: list[TokenType]
    merges: list[str]

    @classmethod
    def of(cls, tokenizer: Any, rows: int) -> GgufVocabulary:
        """Builds the vocabulary for an embedding with a given number of rows.

        Rows without a token get a placeholder, as in llama.cpp's own converter: they have logits, too. Tokens beyond
        the rows (an image token of a language model without images) are left out.

        Args:
            tokenizer: A fast tokenizer.
            rows: Rows of the embedding.

        Raises:
            UserError: It isn't a tokenizer like Gemma's, so llama.cpp may tokenise differently.
        """
        stored = json.loads(tokenizer.backend_tokenizer.to_str())
        model = stored["model"]
        vocabulary: dict[str, int] = model.get("vocab", {})
        _check(stored, vocabulary, tokenizer)
        ranks: dict[str, int] = {}
        for rank, pair in enumerate(model["merges"]):
            ranks.setdefault("".join(pair), rank)
        tokens = [f"[PAD{i}]" for i in range(rows)]
        scores, types = [float(-len(ranks) - 1)] * rows, [TokenType.UNUSED] * rows
        for text, i in vocabulary.items():
            if i < rows:
                tokens[i] = text
                types[i] = TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL
                if text in ranks or len(text) == 1:
                    scores[i] = float(-ranks.get(text, 0))
        for added in stored["added_tokens"]:
            text, i = added["content"], added["id"]
            # Runs of spaces are made by merges: as added tokens they would match the spaces before the normaliser
            if i >= rows or (_SPACE in text and text in ranks):
                continue
            special = added["special"]
            tokens[i] = text if special else text.replace(_SPACE, " ")
            types[i] = TokenType.CONTROL if special and text not in _SHOWN else TokenType.USER_DEFINED
            scores[i] = 0.0
        types[tokenizer.unk_token_id] = TokenType.UNKNOWN
        return cls(tokens, scores, types, [" ".join(pair) for pair in model["merges"]])


def _check(stored: dict[str, Any], vocabulary: dict[str, int], tokenizer: Any) -> None:
    model, normalizer = stored["model"], stored["normalizer"] or {}
    replaces = (normalizer.get("type"), normalizer.get("pattern"), normalizer.get("content"))
    missing = [t for t in (f"<0x{i:02X}>" for i in range(256)) if t not in vocabulary]
    problem = None
    if model["type"] != "BPE" or not model.get("byte_fallback"):
        problem = f"its model is {model['type']}, not BPE with byte_fallback"
    elif replaces != ("Replace", {"String": " "}, _SPACE):
        problem = f"its normalizer isn't one that writes {_SPACE} for a space"
    elif missing:
        problem = f"it lacks byte tokens, for example {missing[0]}"
    elif tokenizer.unk_token_id is None or tokenizer.bos_token_id is None:
        problem = "it has no unk_token or no bos_token"
    if problem:
        raise UserError(
            f"the tokenizer can't be written into a GGUF file: {problem}. Use the tokenizer of a published Gemma model."
        )


# llama.cpp recognises these stop tokens by their text, whatever the file says.
_KNOWN_STOPS = ("<eos>", "<end_of_turn>")


def add_tokenizer(
    writer: GGUFWriter, tokenizer: Any, rows: int, stops: Sequence[int], kind: str = "llama", media: bool = False
) -> None:
    """Writes tokens, special ids and the chat template.

    Args:
        writer: The file's writer.
        tokenizer: A fast tokenizer, with or without a chat template.
        rows: Rows of the embedding.
        stops: Ids that end an answer.
        kind: llama.cpp's name of the kind: `llama` merges by scores, `gemma4` by a list of merges.
        media: Whether an mmproj file goes with the file.

    Raises:
        UserError: The tokenizer can't be written, or it has more stop tokens than GGUF has keys.
    """
    vocabulary = GgufVocabulary.of(tokenizer, rows)
    writer.add_tokenizer_model(kind)
    if kind == "llama":
        writer.add_tokenizer_pre("default")
    else:
        writer.add_token_merges(vocabulary.merges)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    # Beside eos there are two keys for stop tokens, eot and eom; <end_of_turn> is also recognised by its text
    others = sorted({*stops} - {tokenizer.eos_token_id}, key=lambda i: vocabulary.tokens[i] not in _KNOWN_STOPS)
    if others[2:]:
        names = ", ".join(vocabulary.tokens[i] for i in others[2:])
        raise UserError(f"generation_config.eos_token_id: llama.cpp takes three stop tokens; too many: {names}.")
    for stop, add in zip(others, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
        add(stop)
    writer.add_add_bos_token(tokenizer("").input_ids[:1] == [tokenizer.bos_token_id])
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(template_for_llama_cpp(tokenizer, media))
