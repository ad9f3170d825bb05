"""The line of the table about rows with images and sound: llama.cpp's answers as its clients get them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gemma_tune.chat.media import media_in
from gemma_tune.engines.llama_media import ChatAnswer
from gemma_tune.engines.llama_server import EngineUnavailable
from gemma_tune.export.int4_check import OK, WARN, CheckLine
from gemma_tune.export.media_check import (
    AS_SERVED,
    agreement,
    asked_in_chat,
    judged,
    names_of,
    nearer_attention,
    not_run,
    sorted_out,
)
from gemma_tune.export.media_reference import MediaReference, Question

_APART = (
    "llama.cpp answers to these rows otherwise than the trained model: it scales media otherwise, or its numbers are "
    "rounded. recipe=evaluate of the file measures what that costs."
)
_LARGER = (
    " Pictures of more pixels than training keeps ({tokens} tokens: {pixels:,}) have as many in both: enlarge smaller "
    "ones before they are sent."
)
_PIXELS = 48 * 48  # of a token of Gemma 4: 3 × 3 patches of 16 × 16


def rows_line(
    name: str,
    file: Path,
    mmproj: Path,
    reference: MediaReference,
    questions: Sequence[Question],
    image_tokens: tuple[int, int] | None = None,
) -> CheckLine:
    """Asks llama.cpp about the media of rows as `media_lines` does, and judges the answers alone.

    Media of rows have any size, and llama.cpp scales them otherwise than Transformers: this warns and fails nothing,
    but where a prompt is longer or shorter though every image has as many tokens. A row that it refuses is named.
    """
    try:
        found_all = asked_in_chat(file, mmproj, questions, image_tokens)
    except EngineUnavailable as error:
        return not_run(name, str(error))
    rows = len(questions)
    (questions, answers), refused = sorted_out(questions, found_all)
    if not answers:
        return not_run(name, refused)
    found = agreement(reference, questions, answers)
    if found.same < found.questions and (nearer := nearer_attention(reference, questions, answers, found)):
        found = nearer[1]
    if found.longer is not None and image_tokens is None:
        return judged(name, found, AS_SERVED)
    apart = f"{_APART}{scaled_otherwise(questions, answers, image_tokens)}" if found.same < found.questions else ""
    problem = " ".join(said for said in (apart, refused) if said)
    return CheckLine(name, "the same answers", f"{found.same} of {rows}", WARN if problem else OK, problem)


def scaled_otherwise(
    questions: Sequence[Question], answers: Sequence[ChatAnswer], image_tokens: tuple[int, int] | None
) -> str:
    """Which rows llama.cpp gave another number of tokens than training, as the end of a text; empty: none.

    Args:
        questions: The rows.
        answers: The answers to them.
        image_tokens: The fewest and the most tokens of an image, where its size decides.
    """
    both = zip(questions, answers, strict=True)
    found = [(asked, served.prompt_tokens) for asked, served in both if served.prompt_tokens != len(asked.input_ids)]
    if not found:
        return ""
    question, served = found[0]
    larger = ""
    if image_tokens and any(part["type"] == "image" for part in media_in(list(question.messages))):
        larger = _LARGER.format(tokens=image_tokens[1], pixels=image_tokens[1] * _PIXELS)
    return (
        f" {len(found)} of {len(questions)} rows have another number of tokens there, for example that with "
        f"{names_of(question)}: {served} in all, {len(question.input_ids)} in training.{larger}"
    )
