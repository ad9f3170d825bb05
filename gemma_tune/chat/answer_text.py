"""The text of an answer's token ids, as `calls.parse_answer` reads it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from gemma_tune.chat.recognise import form_of


def decode_answer(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decodes an answer, blanks included: without stop tokens, but with the tokens around calls, strings and thinking.

    Most tokenizers treat those as special and would leave them out.
    """
    form = form_of(tokenizer)
    kept = {tokenizer.convert_tokens_to_ids(t): t for t in form.answer_tokens}
    stops = {tokenizer.convert_tokens_to_ids(t) for t in form.stop_tokens}  # FunctionGemma's own are not all special
    text: list[str] = []
    for is_kept, group in itertools.groupby((i for i in ids if i not in stops), kept.__contains__):
        run = list(group)
        text += [kept[i] for i in run] if is_kept else [tokenizer.decode(run, skip_special_tokens=True)]
    return "".join(text)


def answer_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """An answer's token ids, [T], as the text that `parse_answer` reads.

    Args:
        tokenizer: The tokenizer, with a template that we know.
        ids: New tokens, with or without the stop token.
    """
    return decode_answer(tokenizer, ids).strip()
