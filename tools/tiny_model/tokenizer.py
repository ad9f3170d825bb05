"""The embedded model's tokenizer: Gemma's class, special tokens and byte fallback, with a small vocabulary."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import GemmaTokenizer

from tools.tiny_model import words as w

CORE = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
FORM = [
    "<start_of_turn>", "<end_of_turn>", "<start_function_declaration>", "<end_function_declaration>",
    "<start_function_call>", "<end_function_call>", "<start_function_response>", "<end_function_response>",
    "<escape>", "<start_of_image>",
]  # fmt: skip
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# A space is a token of its own, so that a word is the same tokens in a sentence, in quotes and at a line's start, and
# can be copied from one to the other. Only with these words, which carry sentences and JSON, it melts into one token.
GLUED = sorted(
    {
        *w.LINKS, *w.PLAIN, "That", "makes", "What", "degrees", "percent", "minutes", "type", "number", "text",
        '"', '{"', "[", '["', "=", "+", "-", "{", "access", "functions", "If", "decide", "invoke", "any", "function",
        "MUST", "put", "format", "name", "dictionary", "argument", "its", "value", "SHOULD", "NOT", "include", "other",
        "response", "if", "call", "false", "true",
    }
)  # fmt: skip


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> GemmaTokenizer:
    """Trains byte-pair merges on the texts and puts them in Gemma's order and class.

    Args:
        texts: Documents in Gemma 3's form.
        vocab_size: Tokens in all; the special ones and the 256 bytes are among them.
    """
    special = [*CORE, *FORM, *BYTES]
    # The chat form's tokens are cut out: they are special, and must not be spelt by merges.
    parts = [part for text in texts for part in _without_form(text)]
    glued = GLUED
    while True:  # rare words may turn out to be no tokens, which leaves room for others
        trained, merges = _train(parts, vocab_size - len(special) - len(glued))
        found = [word for word in glued if word in trained]
        if found == glued:
            break
        glued = found
    vocab = {token: i for i, token in enumerate([*special, *trained, *("▁" + word for word in glued)])}
    return GemmaTokenizer(
        vocab=vocab,
        merges=[*merges, *(("▁", word) for word in glued)],  # last: the words themselves are merged first
        extra_special_tokens=FORM,
        add_bos_token=True,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def _train(parts: list[str], vocab_size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens in the order of their training, and merges in theirs."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Replace(" ", "▁")
    # Only for training: no merge may cross words, digits, spaces or line ends. Gemma itself merges whole texts, and
    # gets the same pieces, as such merges do not exist.
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\p{L}_]+|\p{N}|\n+|▁|[^\p{L}\p{N}▁\n]+"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=["▁", "\n", "\t", *(chr(c) for c in range(33, 127))],
        limit_alphabet=160,
        show_progress=False,
    )
    core.train_from_iterator(parts, trainer)
    tokens = [t for t, _ in sorted(core.get_vocab().items(), key=lambda item: item[1])]
    # The library gives its merges only through its JSON.
    return tokens, [(a, b) for a, b in json.loads(core.to_str())["model"]["merges"]]


def _without_form(text: str) -> list[str]:
    for token in FORM:
        text = text.replace(token, "\0")
    return [part for part in text.split("\0") if part]
