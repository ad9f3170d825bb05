"""Texts that are encoded word by word have the tokens of the whole text, for vocabularies that prove it."""

from __future__ import annotations

import json
import random
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers
from transformers import AutoTokenizer

from gemma_tune.chat import word_tokenizer
from gemma_tune.chat.text_tokenizer import TextTokenizer
from gemma_tune.chat.word_tokenizer import WordEncoding, WordTokenizer, word_pattern
from gemma_tune.config import DataConfig, ModelConfig
from gemma_tune.data.loading import load_rows
from gemma_tune.data.stream import stream_rows
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import ASSETS

# What words are made of, with what may go together: blanks, the blank's own sign, digits, bytes and added tokens
PIECES = [
    *(" ", "  ", "\n", "\n\n", "\u2581", "\t", "\r", "a", "the", " the", ".", "Well,", "7", "48/2=24"),
    *("<h1>", "h1>", ">2", "<0x41>", "\u00e4", "\U0001f44d\U0001f3fd", "\u8c22", "<end_of_turn>", "<bos>", "<unused7>"),
    *("<unused", "\ufdd0"),
]  # fmt: skip


def tokenizer_of(*added: str | AddedToken, **model: Any) -> Tokenizer:
    """The embedded model's, with further tokens or another vocabulary."""
    backend: Tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny").backend_tokenizer
    if model:
        written = json.loads(backend.to_str())
        vocabulary, merges = written["model"]["vocab"], written["model"]["merges"]
        for left, right in model.pop("merged", []):
            for token in (left, right, left + right):
                vocabulary.setdefault(token, len(vocabulary) + 100)
            merges.append([left, right])
        for token in model.pop("without", []):
            merges = written["model"]["merges"] = [m for m in merges if token not in "".join(m)]
            written["model"]["vocab"] = {t: i for t, i in vocabulary.items() if token not in t or t[0] == "<"}
        written["model"].update(model)
        backend = Tokenizer.from_str(json.dumps(written))
    backend.add_tokens([t if isinstance(t, AddedToken) else AddedToken(t, normalized=False) for t in added])
    return backend


def normalized_by(normalizer: Any) -> Tokenizer:
    backend = tokenizer_of()
    backend.normalizer = normalizer
    return backend


def text_tokenizer(backend: Tokenizer) -> TextTokenizer:
    return TextTokenizer(backend, None, 2, 1)  # type: ignore[arg-type]


ADDED = ("<h1>", "<unused7>", "\n\n\n", AddedToken("\u2581\u2581\u2581", normalized=True))
VOCABULARIES: dict[str, Tokenizer] = {
    "as it is": tokenizer_of(),
    "added tokens with digits": tokenizer_of(*ADDED),
    "a merge with a digit": tokenizer_of(merged=[("\u2581", "7"), ("2", "4")]),
    "digits that are bytes": tokenizer_of(without=["7"]),
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_words_have_the_tokens_of_the_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token ids, and the token of each character and the characters of each token."""
    monkeypatch.setattr(word_tokenizer, "_LONG", 1000)
    backend, rng = VOCABULARIES[name], random.Random(5)
    tokenizer = text_tokenizer(backend)
    for count in range(400):
        text = "".join(rng.choices(PIECES, k=rng.randrange(12)))
        whole, words = backend.encode(text, add_special_tokens=False), tokenizer.encode(text)
        assert isinstance(words, WordEncoding)
        assert words.ids == whole.ids, repr(text)
        if count % 4 == 0:
            assert [words.char_to_token(i) for i in range(len(text) + 1)] == [
                whole.char_to_token(i) for i in range(len(text) + 1)
            ], repr(text)
            assert [words.token_to_chars(i) for i in range(len(words.ids))] == whole.offsets, repr(text)


def test_which_vocabularies_split_at_digits() -> None:
    apart = {name: "[0-9]" in str(word_pattern(backend)) for name, backend in VOCABULARIES.items()}
    assert list(apart.values()) == [True, True, False, False]
    words = word_pattern(VOCABULARIES["added tokens with digits"])
    assert words and words.findall("a12 b\n<h1>7") == ["a", "12", " b\n", "<h1>", "7"]
    assert words.findall("<unused7>24>2") == ["<unused7>24>", "2"]


@pytest.mark.parametrize(
    "backend",
    [
        tokenizer_of(merged=[("of\u2581", "t")]),  # a token over a blank
        tokenizer_of(merged=[("\n", "a")]),
        tokenizer_of("a b"),
        tokenizer_of("\nWell"),
        tokenizer_of(AddedToken("<x>", lstrip=True)),
        tokenizer_of(AddedToken("x", single_word=True)),
        tokenizer_of(dropout=0.1),
        tokenizer_of(ignore_merges=True),
        tokenizer_of(without=["\n"]),
        tokenizer_of(unk_token=None),  # unknown characters leave no token
        normalized_by(None),
        normalized_by(normalizers.Sequence([normalizers.Replace(" ", "\u2581"), normalizers.Prepend("\u2581")])),
        Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")),
    ],
)
def test_other_vocabularies_are_encoded_as_a_whole(backend: Tokenizer) -> None:
    assert word_pattern(backend) is None
    assert not isinstance(text_tokenizer(backend).encode("a"), WordEncoding)


def test_tokens_that_are_added_later_are_found() -> None:
    backend = tokenizer_of()
    tokenizer = text_tokenizer(backend)
    before = tokenizer.encode("no <later> token").ids
    backend.add_tokens(["<later>"])
    after = text_tokenizer(backend).encode("no <later> token").ids
    assert before != after == backend.encode("no <later> token", add_special_tokens=False).ids


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the characters of what is remembered, which isn't looked up again for places."""
    monkeypatch.setattr(word_tokenizer, "_MOST", 200)
    backend, asked = tokenizer_of(), list[str]()
    pattern = word_pattern(backend)
    assert pattern

    def encode(text: str) -> Any:
        asked.append(text)
        return backend.encode(text, add_special_tokens=False)

    words, last = WordTokenizer(pattern, encode), "no" * 200
    assert words("a b").ids == words("a b").ids and asked.count(" b") == 1
    for text in [*(f"a {'no' * n} b" for n in range(60, 69)), f"a {last} a b c d e f g h"]:
        found = words(text)
        assert found.ids == backend.encode(text, add_special_tokens=False).ids, text
        assert all(sum(map(len, known)) <= max(200, len(text)) for known in (words.tokens, words._parts))
    assert found.char_to_token(len(last) + 3) and asked.count(f" {last}") == 1


def test_texts_of_long_words_are_encoded_whole() -> None:
    """Chinese has no blanks: a line hardly comes again, and would be encoded once more for each place."""
    tokenizer, line = text_tokenizer(tokenizer_of()), "\u8c22" * 100
    assert not isinstance(tokenizer.encode(f"{line}\n{line}\n{line}"), WordEncoding)
    assert isinstance(tokenizer.encode(f"{line}\n" + "a b " * 20), WordEncoding)


@pytest.mark.parametrize("load", [load_rows, partial(stream_rows, labels=False)], ids=["read", "streamed"])
def test_rows_are_the_same_without_it(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, called = tmp_path / "rows.jsonl", list[str]()
    rows = [{"prompt": f"{n}. Who  is it?", "completion": "48/2 = 24\n\nI, of course."} for n in range(12)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    tokenizer = load_tokenizer(find_source(ModelConfig(model_name_or_path="assets://tiny")))
    inner = WordTokenizer.__call__
    monkeypatch.setattr(WordTokenizer, "__call__", lambda self, text: (called.append(text), inner(self, text))[1])
    found = []
    for by_word in (True, False):
        called.clear()
        data = DataConfig(train_file=str(file), encode_by_word=by_word, streaming=load is not load_rows)
        found.append([row.input_ids for row in islice(load(data, tokenizer, 64, 0)[0].rendered, 12)])
        assert bool(called) == by_word
    assert found[0] == found[1] and len(found[0]) == 12
