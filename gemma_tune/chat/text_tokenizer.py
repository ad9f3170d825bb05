"""A tokenizer reduced to what rendering needs: without Transformers around it, and for other processes, too."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from gemma_tune.chat.forms import ChatForm
from gemma_tune.chat.word_tokenizer import WordTokenizer, word_pattern

# Whose methods only prepare what `tokenizers` then does; those of another class may change the text
_BASE, _FAST = "transformers.tokenization_utils_base", "transformers.tokenization_utils_tokenizers"


@dataclass(frozen=True)
class TextTokenizer:
    """What rendering needs of a tokenizer of Transformers, whose own call takes as long again as the tokens themselves.

    Attributes:
        backend: The `tokenizers.Tokenizer`.
        form: The chat format.
        bos_token_id: Begins running text.
        eos_token_id: Ends it.
        split_special_tokens: As Transformers' tokenizers have it.
        media: The processor of images, sounds and videos, or None.
        no_media: Why there is none.
        by_word: Whether texts are encoded word by word, where that gives the same tokens.
    """

    backend: Any
    form: ChatForm
    bos_token_id: int
    eos_token_id: int
    split_special_tokens: bool = False
    media: Any = None
    no_media: Any = None
    by_word: bool = True

    def encode(self, text: str) -> Any:
        """The `tokenizers.Encoding` of a text, without special tokens around it, or what rendering needs of it."""
        how = self.backend, self.split_special_tokens
        words = _words(*how, self._size) if self.by_word else None
        return words(text) if words else _whole(*how, text)

    @functools.cached_property
    def _size(self) -> int:
        """Tokens of the vocabulary; `tokenizers` looks through all added ones, which takes twice as long as a text."""
        return int(self.backend.get_vocab_size())


def _whole(backend: Any, split_special_tokens: bool, text: str) -> Any:
    # The backend is shared with the tokenizer, whose callers may have left padding switched on
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = split_special_tokens
    return backend.encode(text, add_special_tokens=False)


@functools.lru_cache(maxsize=2)
def _words(backend: Any, split_special_tokens: bool, _size: int) -> WordTokenizer | None:
    """Encodes word by word, where that gives the same; another `TextTokenizer` asks anew where tokens were added."""
    pattern = word_pattern(backend)
    return WordTokenizer(pattern, functools.partial(_whole, backend, split_special_tokens)) if pattern else None


def is_plain(tokenizer: Any) -> bool:
    """Whether a tokenizer gives what its backend gives: its class doesn't do it in another way."""
    kind = type(tokenizer)
    calls = [getattr(getattr(kind, name, None), "__module__", "") for name in ("__call__", "_encode_plus")]
    return calls == [_BASE, _FAST]


def encoding_of(tokenizer: Any, text: str) -> Any:
    """The `tokenizers.Encoding` of a text, without special tokens around it.

    Args:
        tokenizer: A fast tokenizer of Transformers, or a `TextTokenizer`.
        text: The text, its special tokens included.
    """
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer.encode(text)
    return tokenizer(text, add_special_tokens=False).encodings[0]
