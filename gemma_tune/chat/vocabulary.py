"""What a chat template must know of a tokenizer, from Transformers' class or, without torch, from its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from gemma_tune.untrusted import MIB, read_object

_LARGEST = 64 * MIB  # as models/foreign.py


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer that a template may write, and how texts are split.

    Attributes:
        named: What a template is given by name: `bos_token`, `eos_token`, …
        added: Every token that is found in texts as it stands, blanks and single characters aside.
        encode: Token ids of a text, without `<bos>`.
    """

    named: Mapping[str, str]
    added: frozenset[str]
    encode: Callable[[str], Sequence[int]]


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """From a fast tokenizer of Transformers."""
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    added = (str(token) for token in tokenizer.added_tokens_decoder.values())
    return Vocabulary(named, _telling(added), lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])


def vocabulary_in(folder: Path, new: Sequence[str] = ()) -> Vocabulary | None:
    """From `tokenizer.json` and `tokenizer_config.json`; None where a file is missing or can't be read.

    Args:
        folder: The folder of a model or of a tokenizer.
        new: Tokens that are added to it (`model.added_tokens`).
    """
    try:
        stored = read_object(folder / "tokenizer_config.json")
        if (folder / "tokenizer.json").stat().st_size > _LARGEST:
            return None
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in new])
    except Exception:  # the file is another's, and is refused where the tokenizer is loaded
        return None
    tokens = {key: stored[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token") if stored.get(key)}
    named = {key: token["content"] if isinstance(token, dict) else str(token) for key, token in tokens.items()}
    added = (token.content for token in tokenizer.get_added_tokens_decoder().values())
    return Vocabulary(named, _telling(added), lambda text: tokenizer.encode(text, add_special_tokens=False).ids)


def _telling(tokens: Any) -> frozenset[str]:
    return frozenset(token for token in tokens if len(token.strip()) > 1)
