"""Encodes texts word by word, where a tokenizer's vocabulary proves that the tokens are those of the whole text.

Gemma's tokenizers split nothing before the byte-pair merges: they look for the best merge in all of a text. But what is
merged is a token, so no merge crosses a place that lies in no token: for Gemma before a blank, after a line break and
beside a digit. Words between such places are merged by themselves, and each occurs again and again.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

# The same in all Gemmas: a blank becomes U+2581, so the split at blanks that follows finds none
_BLANK = "\u2581"
_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK}
_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
# Blanks with what follows them up to the next, and line breaks at its end
_WORD = rf"[ {_BLANK}]+[^ {_BLANK}\n]*\n*|[^ {_BLANK}\n]+\n*|\n+"
_APART = "\uffff"  # no character: between tokens that are looked through at once
_CROSSES = re.compile(rf"[^{_BLANK}{_APART}]{_BLANK}|\n[^\n{_APART}]")
_DIGITS, _BESIDE_DIGIT = "0123456789", re.compile(rf"[0-9][^{_APART}]|[^{_APART}][0-9]")
_MOST = 1 << 20  # characters of the words that are remembered: about 40 MB, and again of what stands behind blanks
_LONG = 64  # characters of words that hardly come again, as lines of Chinese
Ids = tuple[int, ...]


def word_pattern(backend: Any) -> re.Pattern[str] | None:
    """How a text can be split into words whose tokens are those of the text; None where that can't be shown.

    Args:
        backend: A `tokenizers.Tokenizer`.
    """
    model = backend.model
    if type(model).__name__ != "BPE" or model.dropout or model.ignore_merges:
        return None
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    if not model.unk_token:  # unknown characters would leave no token, and what is beside them could be merged
        return None
    if _state(backend.normalizer) != _NORMALIZER or _state(backend.pre_tokenizer) not in (None, _SPLIT):
        return None
    # Found before the merges, in the text or in what the normalizer makes of it; flags look at what is around
    added = backend.get_added_tokens_decoder().values()
    contents = [token.content.replace(" ", _BLANK) for token in added]
    if any(token.single_word or token.lstrip or token.rstrip for token in added) or any(map(_CROSSES.search, contents)):
        return None
    vocabulary = backend.get_vocab(with_added_tokens=False)
    # What isn't in the vocabulary becomes bytes or <unk>, which go together with their like
    if not {_BLANK, "\n"} <= vocabulary.keys() or _is_merged(_CROSSES, vocabulary):
        return None
    if not vocabulary.keys() >= set(_DIGITS) or _is_merged(_BESIDE_DIGIT, vocabulary):
        return re.compile(_WORD)
    return re.compile(_apart_from_digits(contents) or _WORD)


def _state(part: Any) -> Any:
    """The settings of a part of a tokenizer; None without it, itself where it is written in Python."""
    try:
        return None if part is None else json.loads(part.__getstate__())
    except Exception:  # whatever `tokenizers` raises for such a part
        return part


def _is_merged(place: re.Pattern[str], vocabulary: Mapping[str, int]) -> bool:
    """Whether a token that has such a place can be what two others are merged to; `<0x0A>` can't."""
    tokens = f"{_APART}{_APART.join(vocabulary)}{_APART}"
    if tokens.count(_APART) > len(vocabulary) + 1:
        return True
    found = {
        tokens[tokens.rindex(_APART, 0, at.start() + 1) + 1 : tokens.index(_APART, at.end())]
        for at in place.finditer(tokens)
    }
    return any(t[:i] in vocabulary and t[i:] in vocabulary for t in found for i in range(1, len(t)))


def _apart_from_digits(added: Sequence[str]) -> str:
    """The pattern for a vocabulary in which digits stand alone, but for added tokens such as `<h1>`; "" for none."""
    before = {c for token in added for c in re.findall(r"([^0-9])(?=[0-9])", token)}
    after = {c for token in added for c in re.findall(r"(?<=[0-9])([^0-9])", token)}
    if {_BLANK, "\n"} & (before | after):
        return ""
    text = rf"[^ {_BLANK}\n0-9]+"
    if not before and not after:
        return rf"[ {_BLANK}]*{text}\n*|[ {_BLANK}]+\n*|[0-9]+\n*|\n+"
    kept = [rf"(?<=[{_class(before)}])[0-9]+"] * bool(before) + [rf"[0-9]+(?=[{_class(after)}])"] * bool(after)
    return rf"[ {_BLANK}]*(?:{'|'.join([text, *kept])})+\n*|[ {_BLANK}]+\n*|[0-9]+\n*|\n+"


def _class(characters: Iterable[str]) -> str:
    return "".join(map(re.escape, sorted(characters)))


class _Known(dict[str, Ids]):
    """The token ids of texts that were met; all are forgotten where they have too many characters.

    Args:
        make: Makes them.
    """

    def __init__(self, make: Callable[[str], Ids]) -> None:
        super().__init__()
        self._make, self._characters = make, 0

    def __missing__(self, text: str) -> Ids:
        ids = self._make(text)
        self._characters += len(text)
        if self._characters > _MOST:
            self.clear()
            self._characters = len(text)
        self[text] = ids
        return ids


class WordTokenizer:
    """Encodes texts word by word.

    Args:
        pattern: As `word_pattern` gives it.
        encode: Encodes a text as the tokenizer does.

    Attributes:
        pattern: Of the words.
        tokens: The token ids of each word.
        token_at: The token that a character of a word is in, by both.
        encode: See above.
    """

    def __init__(self, pattern: re.Pattern[str], encode: Callable[[str], Any]) -> None:
        self.pattern, self.encode = pattern, encode
        self.tokens = _Known(lambda word: tuple(encode(word).ids))
        self.token_at = functools.lru_cache(maxsize=128)(lambda word, place: encode(word).char_to_token(place))
        # Of what stands behind a blank: found by `str.split`, which takes a tenth of the pattern's time
        self._parts = _Known(lambda part: self._of(f" {part}"))

    def __call__(self, text: str) -> Any:
        """The `tokenizers.Encoding` of a text, or what rendering needs of it: the former where words are long."""
        if len(text) > _LONG * (text.count(" ") + text.count("\n") + 1):
            return self.encode(text)
        if _BLANK in text:
            return WordEncoding(text, [self._of(text)], self)
        first, *rest = text.split(" ")
        parts = self._after_blanks(rest) if "" in rest else map(self._parts.__getitem__, rest)
        return WordEncoding(text, [self._of(first), *parts], self)

    def _after_blanks(self, rest: Sequence[str]) -> Iterator[Ids]:
        """The same where several blanks follow one another: they are all counted to what follows the last of them."""
        blanks, last = "", len(rest) - 1
        for number, part in enumerate(rest):
            if part or number == last:
                yield self._parts[blanks + part]
                blanks = ""
            else:
                yield ()
                blanks += " "

    def _of(self, text: str) -> Ids:
        return tuple(chain.from_iterable(map(self.tokens.__getitem__, self.pattern.findall(text))))


class WordEncoding:
    """What rendering needs of a `tokenizers.Encoding`.

    Args:
        text: The text.
        parts: Token ids of what stands before the first blank, and of each blank with what follows it; or of all.
        tokenizer: Made them.

    Attributes:
        ids: The token ids, [T].
    """

    def __init__(self, text: str, parts: Sequence[Ids], tokenizer: WordTokenizer) -> None:
        self.ids = list(chain.from_iterable(parts))
        self._text, self._parts, self._tokenizer = text, parts, tokenizer

    def char_to_token(self, place: int) -> int | None:
        """The token that a character of the text is in."""
        by = self._tokenizer
        part = self._text.count(" ", 0, place + 1) if len(self._parts) > 1 else 0
        begin = self._text.rfind(" ", 0, place + 1) if part else 0
        while begin and self._text[begin - 1] == " ":
            begin -= 1
        token = sum(map(len, self._parts[:part]))
        for found in by.pattern.finditer(self._text, begin):
            if place < found.end():
                inside = by.token_at(found[0], place - found.start()) if place > found.start() else 0
                return None if inside is None else token + inside
            token += len(by.tokens[found[0]])
        return None

    def token_to_chars(self, token: int) -> tuple[int, int] | None:
        """The characters of the text that a token stands for: begin and end."""
        for found in self._tokenizer.pattern.finditer(self._text):
            count = len(self._tokenizer.tokens[found[0]])
            if token < count:
                begin, end = self._tokenizer.encode(found[0]).token_to_chars(token)
                return found.start() + begin, found.start() + end
            token -= count
        return None
