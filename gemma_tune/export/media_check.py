"""The lines of the table about images and sound: questions with media, answered by llama.cpp and by Transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gemma_tune.chat.media import media_in
from gemma_tune.config.model import BIDIRECTIONAL
from gemma_tune.engines.llama_media import ChatAnswer, ask_with_media
from gemma_tune.engines.llama_server import EngineUnavailable, LlamaServer
from gemma_tune.errors import RunError, listed
from gemma_tune.export.int4_check import FAIL, OK, UNVERIFIED, WARN, CheckLine
from gemma_tune.export.media_reference import MediaReference, Question
from gemma_tune.models.towers.image_attention import (
    IN_WINDOW,
    attending,
    attention_is_open,
    named_attention,
    other_attentions,
)

# Of the log-probabilities of llama.cpp's best tokens, nats: above the first the line warns, above the second it fails.
# Line breaks round an image that are missing, or another GELU in the tower, are 1 to 3 on random weights.
EXACT, AS_SERVED = (0.05, 0.05), (0.3, 1.0)
QUANTIZED = (1.0, 3.0)  # of a language part whose kernels round activations to 8 bit, which random weights amplify
_NEW_TOKENS, _BEST = 8, 20
_MARGIN = 1e-3  # among best tokens that are so close any may be taken
_SPARE, _TIMEOUT = 64, 600.0  # tokens of the context; seconds
_TELLING = 2.0  # how many times nearer another attention must come to be llama.cpp's
_SERVED_OTHERWISE = (
    "This llama.cpp attends to images otherwise than the model was trained: there {there}; in training {here}. Measure "
    "the file, or {way}."
)
_TRAIN_SO, _SERVE_SO = "train with model.image_attention={}", "answer images with export/merged in Transformers"
_ALL_LAYERS = "bidirectional in all layers and beyond the window"  # Gemma 4 12B in training


@dataclass(frozen=True)
class MediaAgreement:
    """How llama.cpp's answers agree with the whole model's.

    Attributes:
        questions: How many were asked.
        same: How many answers are the whole model's own greedy ones.
        worst: The largest difference of a log-probability among llama.cpp's best tokens, nats.
        mean: The mean of these differences, nats.
        longer: Of the first prompt whose length differs: llama.cpp's tokens and training's.
    """

    questions: int
    same: int
    worst: float
    mean: float
    longer: tuple[int, int] | None = None


def media_lines(
    name: str,
    file: Path,
    mmproj: Path,
    reference: MediaReference,
    questions: Sequence[Question],
    bounds: tuple[float, float] = AS_SERVED,
    image_tokens: tuple[int, int] | None = None,
    threads: int | None = None,
) -> list[CheckLine]:
    """Asks llama.cpp each question through its chat endpoint, and compares its answers with the model's.

    Args:
        name: What is compared, for people.
        file: The GGUF file of the language part.
        mmproj: The file of the towers.
        reference: The model.
        questions: The questions; their images have sizes that no engine changes.
        bounds: See `EXACT`.
        image_tokens: The fewest and the most tokens of an image, where its size decides.
        threads: CPU threads; all that this process may use by default.

    Returns:
        The line; and one that warns where llama.cpp attends otherwise than the model was trained. Which attention it
        has for Gemma 4 differs from version to version and from size to size, so it is told from its answers: of 12B
        that of training, that of the other large ones (`IN_WINDOW`), or none.
    """
    try:
        answers = asked_in_chat(file, mmproj, questions, image_tokens, threads)
    except EngineUnavailable as error:
        return [not_run(name, str(error))]
    answered, refused = sorted_out(questions, answers)
    if refused:
        return [not_run(name, refused)]
    return compared(name, reference, *answered, bounds)


def compared(
    name: str,
    reference: MediaReference,
    questions: Sequence[Question],
    answers: Sequence[ChatAnswer],
    bounds: tuple[float, float],
) -> list[CheckLine]:
    """The lines of `media_lines` for answers that are there."""
    trained = agreement(reference, questions, answers)
    nearer = nearer_attention(reference, questions, answers, trained)
    if nearer is None:
        return [judged(name, trained, bounds)]
    there, served = nearer
    here = named_attention(reference.text_config)
    if (here, there) == (BIDIRECTIONAL, IN_WINDOW):
        here = _ALL_LAYERS
    way = _SERVE_SO if there == IN_WINDOW else _TRAIN_SO.format(there)
    problem = _SERVED_OTHERWISE.format(here=here, there=there, way=way)
    line = CheckLine(f"{name}: its attention", f"{here}, as in training", figures_of(trained), WARN, problem)
    return [judged(name, served, bounds), line]


def nearer_attention(
    reference: MediaReference,
    questions: Sequence[Question],
    answers: Sequence[ChatAnswer],
    trained: MediaAgreement,
) -> tuple[str, MediaAgreement] | None:
    """The attention to images that llama.cpp's answers tell, and the agreement with it; None: the one of training."""
    if not attention_is_open(reference.text_config) or all(question.medium != "image" for question in questions):
        return None
    found: list[tuple[str, MediaAgreement]] = []
    for there in other_attentions(reference.text_config):
        with attending(reference.text_config, there):
            found.append((there, agreement(reference, questions, answers)))
    nearest = min(found, key=lambda served: served[1].mean)
    return nearest if trained.mean > _TELLING * nearest[1].mean else None


def sorted_out(
    questions: Sequence[Question], answers: Sequence[ChatAnswer | RunError]
) -> tuple[tuple[list[Question], list[ChatAnswer]], str]:
    """The questions that were answered with their answers; and what was refused, as a sentence."""
    both = list(zip(questions, answers, strict=True))
    answered = [(asked, answer) for asked, answer in both if isinstance(answer, ChatAnswer)]
    refused = [(asked, answer) for asked, answer in both if isinstance(answer, RunError)]
    said = ""
    if refused:
        said = (
            f"{len(refused)} of {len(both)} were not answered, for example that with {names_of(refused[0][0])}: "
            f"{refused[0][1]}"
        )
    return ([asked for asked, _ in answered], [answer for _, answer in answered]), said


def names_of(question: Question) -> str:
    """The names of its files."""
    return listed(Path(part[part["type"]]).name for part in media_in(list(question.messages)))


def asked_in_chat(
    file: Path,
    mmproj: Path,
    questions: Sequence[Question],
    image_tokens: tuple[int, int] | None = None,
    threads: int | None = None,
    max_new_tokens: int = _NEW_TOKENS,
) -> list[ChatAnswer | RunError]:
    """llama.cpp's answers through its chat endpoint, with the template of the file; see `media_lines`.

    Where it refuses a request, the error stands in the answer's place.

    Raises:
        EngineUnavailable: llama.cpp isn't installed, doesn't load the files, or has died.
    """
    room = max(len(question.input_ids) + spare_tokens(question, image_tokens) for question in questions)
    room += max_new_tokens + _SPARE
    threads = threads or torch.get_num_threads()
    server = LlamaServer(file, room, 1, threads, True, _TIMEOUT, mmproj=mmproj, image_tokens=image_tokens)
    try:
        return [_answer(server, question, max_new_tokens) for question in questions]
    finally:
        server.close()


def spare_tokens(question: Question, image_tokens: tuple[int, int] | None) -> int:
    """Tokens that llama.cpp may make of the question's media beyond those of training (`image_limits`).

    Rounding both sides of an image up and not down makes 62 more of usual shapes, and not quite as many again of a
    strip 100 times as wide as high.
    """
    kinds = [part["type"] for part in media_in(list(question.messages))]
    return sum(image_tokens[1] if kind == "image" and image_tokens else _SPARE for kind in kinds)


def _answer(server: LlamaServer, question: Question, max_new_tokens: int) -> ChatAnswer | RunError:
    try:
        return ask_with_media(server, question.messages, max_new_tokens, _BEST)
    except EngineUnavailable:
        raise
    except RunError as error:
        return error


def not_run(name: str, why: str) -> CheckLine:
    """The line of a comparison that couldn't be made."""
    return CheckLine(name, "run in llama.cpp", "not run", UNVERIFIED, why)


def agreement(
    reference: MediaReference, questions: Sequence[Question], answers: Sequence[ChatAnswer]
) -> MediaAgreement:
    """Compares each answer with what the model says at its places.

    One forward pass over prompt and answer is enough: where each token of the answer is the model's best one behind
    those before it, its end included, the answer is the model's own greedy one.
    """
    same, differences, longer = 0, [torch.zeros(1)], None
    for question, answer in zip(questions, answers, strict=True):
        if answer.prompt_tokens != len(question.input_ids):
            longer = longer or (answer.prompt_tokens, len(question.input_ids))
            continue
        ends = [min(reference.stops)] if answer.stopped else []
        log_probs = reference.log_probs(question, [*answer.ids, *ends])
        said = log_probs[: len(answer.ids)]
        differences.append((said.gather(1, answer.tops.ids) - answer.tops.log_probs).abs().flatten())
        taken = said.gather(1, torch.tensor(answer.ids, dtype=torch.long)[:, None])[:, 0]
        if ends:
            taken = torch.cat([taken, log_probs[-1:, sorted(reference.stops)].max(-1).values])
        same += bool((log_probs.max(-1).values - taken <= _MARGIN).all())
    every = torch.cat(differences)
    return MediaAgreement(len(questions), same, float(every.max()), float(every.mean()), longer)


def judged(name: str, found: MediaAgreement, bounds: tuple[float, float]) -> CheckLine:
    """The line of a comparison.

    Args:
        name: What was compared, for people.
        found: How it agrees.
        bounds: See `EXACT`.
    """
    warn, fail = bounds
    must = f"log-probabilities within {warn:g}, the same answers"
    if found.longer is not None:
        theirs, ours = found.longer
        problem = (
            f"llama.cpp's prompt has {theirs} tokens and training's has {ours}: its chat template or its media are "
            "others."
        )
        return CheckLine(name, must, f"{theirs} tokens for {ours}", FAIL, problem)
    verdict = OK if found.worst <= warn else WARN if found.worst <= fail else FAIL
    if verdict == OK and found.same < found.questions:
        verdict = WARN
    problem = "" if verdict == OK else "The files answer to media otherwise than the trained model."
    return CheckLine(name, must, figures_of(found), verdict, problem)


def figures_of(found: MediaAgreement) -> str:
    """What was found, for the table."""
    return f"at most {found.worst:.2g}, {found.same} of {found.questions} answers the same"
