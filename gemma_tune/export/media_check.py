"""The lines of the table about images and sound: questions with media, answered by llama.cpp and by Transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from gemma_tune.engines.llama_media import ChatAnswer, ask_with_media
from gemma_tune.engines.llama_server import EngineUnavailable, LlamaServer
from gemma_tune.export.int4_check import FAIL, OK, UNVERIFIED, WARN, CheckLine
from gemma_tune.export.llama_arithmetic import as_llama_hears, towers_as_llama_cpp

# Of the log-probabilities of llama.cpp's best tokens, nats: above the first the line warns, above the second it fails.
# Line breaks round an image that are missing, or another GELU in the tower, are 1 to 3 on random weights.
EXACT, AS_SERVED = (0.05, 0.05), (0.3, 1.0)
_NEW_TOKENS, _BEST = 8, 20
_SERVED_OTHERWISE = (
    "llama.cpp lets the tokens of an image see each other, and this model was trained with causal attention alone "
    "(text_config.use_bidirectional_attention is null): it answers to images otherwise than in training. Measure the "
    'file, or train with "vision" in its place in config.json.'
)


@dataclass(frozen=True)
class Question:
    """A prompt with media, as both engines get it.

    Attributes:
        messages: The conversation in the form of rows: media are parts with a path.
        input_ids: The prompt as training renders it, with all soft tokens, [T].
        inputs: What the towers take, and the tokens' kinds, by the names of the whole model's arguments.
    """

    messages: Sequence[Mapping[str, Any]]
    input_ids: Sequence[int]
    inputs: Mapping[str, torch.Tensor]


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


def media_line(
    name: str,
    file: Path,
    mmproj: Path,
    whole: Any,
    questions: Sequence[Question],
    bounds: tuple[float, float] = AS_SERVED,
    threads: int | None = None,
) -> list[CheckLine]:
    """Asks llama.cpp each question through its chat endpoint, and compares its answers with the whole model's.

    Args:
        name: What is compared, for people.
        file: The GGUF file of the language part.
        mmproj: The file of the towers.
        whole: The original class with the trained weights, float32.
        questions: The questions; their images have sizes that no engine changes.
        bounds: See `EXACT`.
        threads: CPU threads; all that this process may use by default.

    Returns:
        The line; and one that warns where llama.cpp attends otherwise than the model was trained.
    """
    try:
        answers = llama_answers(file, mmproj, questions, exact=bounds == EXACT, threads=threads)
    except EngineUnavailable as error:
        return [CheckLine(name, "run in llama.cpp", "not run", UNVERIFIED, str(error))]
    with towers_as_llama_cpp(whole):
        with _attention_as_served(whole) as otherwise:
            found = agreement(whole, questions, answers)
        trained = agreement(whole, questions, answers) if otherwise else None
    lines = [judged(name, found, bounds)]
    if trained is not None:
        must, verdict = "as in training", WARN if trained.worst > EXACT[0] else OK
        problem = _SERVED_OTHERWISE if verdict == WARN else ""
        lines.append(CheckLine("attention of images in llama.cpp", must, figures_of(trained), verdict, problem))
    return lines


def llama_answers(
    file: Path, mmproj: Path, questions: Sequence[Question], exact: bool, threads: int | None = None
) -> list[ChatAnswer]:
    """llama.cpp's greedy answers.

    Args:
        file: The GGUF file of the language part.
        mmproj: The file of the towers.
        questions: What is asked.
        exact: Whether float32 is kept wherever the files' types allow it.
        threads: CPU threads.

    Raises:
        EngineUnavailable: llama.cpp isn't installed, or doesn't load or compute the files.
    """
    room = max(len(question.input_ids) for question in questions) + _NEW_TOKENS + 64
    server = LlamaServer(file, room, 1, threads or torch.get_num_threads(), exact, 600.0, mmproj=mmproj)
    try:
        return [ask_with_media(server, question.messages, _NEW_TOKENS, _BEST) for question in questions]
    finally:
        server.close()


@torch.no_grad()  # type: ignore[untyped-decorator]
def agreement(whole: Any, questions: Sequence[Question], answers: Sequence[ChatAnswer]) -> MediaAgreement:
    """Compares each answer with what the whole model says at its positions.

    One forward pass over prompt and answer is enough: where each token of the answer is the model's best one behind
    those before it, the answer is the model's own greedy one.
    """
    same, differences, longer = 0, [torch.zeros(1)], None
    device = whole.get_input_embeddings().weight.device
    for question, answer in zip(questions, answers, strict=True):
        start = len(question.input_ids)
        if answer.prompt_tokens != start:
            longer = longer or (answer.prompt_tokens, start)
            continue
        row = torch.tensor([[*question.input_ids, *answer.ids[:-1]]], device=device)
        given = as_llama_hears(question.inputs).items()
        inputs = {name: _of_length(name, tensor, row.shape[1]).to(device) for name, tensor in given}
        logits = whole(input_ids=row, use_cache=False, **inputs).logits[0, start - 1 :]
        log_probs = logits.float().log_softmax(-1).cpu()
        found = log_probs.gather(1, answer.tops.ids)
        differences.append((found - answer.tops.log_probs).abs().flatten())
        best, said = log_probs.max(-1).values, log_probs.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        same += bool((best - said <= 1e-3).all())  # among equals any may be taken
    every = torch.cat(differences)
    return MediaAgreement(len(questions), same, float(every.max()), float(every.mean()), longer)


def _of_length(name: str, tensor: torch.Tensor, length: int) -> torch.Tensor:
    """The kinds of the prompt's tokens with those of the answer, which are text; other inputs as they are."""
    return functional.pad(tensor, (0, length - tensor.shape[1])) if name.endswith("token_type_ids") else tensor


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
    problem = "" if verdict == OK else "The towers in the mmproj file answer otherwise than those of the model."
    return CheckLine(name, must, figures_of(found), verdict, problem)


def figures_of(found: MediaAgreement) -> str:
    """What was found, for the table."""
    return f"at most {found.worst:.2g}, {found.same} of {found.questions} answers the same"


@contextlib.contextmanager
def _attention_as_served(whole: Any) -> Iterator[bool]:
    """Within it, the model attends as llama.cpp does; whether that is otherwise than it was trained."""
    text = whole.config.get_text_config()
    otherwise = getattr(text, "use_bidirectional_attention", "vision") is None and whole.config.vision_config
    if not otherwise:
        yield False
        return
    text.use_bidirectional_attention = "vision"
    try:
        yield True
    finally:
        text.use_bidirectional_attention = None
