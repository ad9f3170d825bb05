"""The lines of the table about images and sound: questions with media, answered by llama.cpp and by Transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn import functional

from gemma_tune.engines.llama_media import ChatAnswer, ask_with_media
from gemma_tune.engines.llama_server import EngineUnavailable, LlamaServer
from gemma_tune.export.int4_check import FAIL, OK, UNVERIFIED, WARN, CheckLine
from gemma_tune.export.llama_arithmetic import as_llama_hears, towers_as_llama_cpp
from gemma_tune.export.transformers_check import TrainedForward
from gemma_tune.models.unwrap import language_part

# Of the log-probabilities of llama.cpp's best tokens, nats: above the first the line warns, above the second it fails.
# Line breaks round an image that are missing, or another GELU in the tower, are 1 to 3 on random weights.
EXACT, AS_SERVED = (0.05, 0.05), (0.3, 1.0)
QUANTIZED = (1.0, 3.0)  # of a language part whose kernels round activations to 8 bit, which random weights amplify
_NEW_TOKENS, _BEST = 8, 20
_MARGIN = 1e-3  # among best tokens that are so close any may be taken
_SPARE, _TIMEOUT = 64, 600.0  # tokens of the context; seconds
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
        inputs: What the towers take, by the names of the whole model's arguments.
        kinds: Of each token whether it is text or of which kind of medium, by the name of the whole model's argument,
            [1, T]; only `WholeModel` needs it.
    """

    messages: Sequence[Mapping[str, Any]]
    input_ids: Sequence[int]
    inputs: Mapping[str, torch.Tensor]
    kinds: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def medium(self) -> str:
        """What it shows or plays: `image` or `audio`."""
        return "image" if "pixel_values" in self.inputs else "audio"


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


class MediaReference(Protocol):
    """What llama.cpp's answers are compared with.

    Attributes:
        text_config: The language part's configuration, by which the model attends.
    """

    text_config: Any

    def log_probs(self, question: Question, answer: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of the tokens in each place of an answer, float32 on the CPU, [T, V]."""
        ...


class WholeModel:
    """The original class of Transformers, with the arithmetic of llama.cpp.

    Args:
        whole: The model, float32.
    """

    def __init__(self, whole: Any) -> None:
        self._whole, self.text_config = whole, whole.config.get_text_config()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def log_probs(self, question: Question, answer: Sequence[int]) -> torch.Tensor:
        """See `MediaReference`."""
        row = torch.tensor([[*question.input_ids, *answer[:-1]]])
        inputs = {**as_llama_hears(question.inputs), **_padded(question.kinds, row.shape[1])}
        with towers_as_llama_cpp(self._whole):
            logits = self._whole(input_ids=row, use_cache=False, **inputs).logits[0]
        found: torch.Tensor = logits[len(question.input_ids) - 1 :].float().log_softmax(-1)
        return found


def _padded(kinds: Mapping[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    """The kinds of a prompt's tokens with those of its answer, which are text."""
    return {name: functional.pad(tensor, (0, length - tensor.shape[1])) for name, tensor in kinds.items()}


class TrainedModel:
    """The trained language part with the towers beside it, with the arithmetic of llama.cpp.

    Args:
        forward: The trained model.
    """

    def __init__(self, forward: TrainedForward) -> None:
        self._forward, self.text_config = forward.in_llama_cpp(), language_part(forward.model).config

    def log_probs(self, question: Question, answer: Sequence[int]) -> torch.Tensor:
        """See `MediaReference`."""
        row, start = [*question.input_ids, *answer[:-1]], len(question.input_ids) - 1
        logits = self._forward.logits_with_media(row, as_llama_hears(question.inputs), start)
        return logits.log_softmax(-1)


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
        The line; and one that warns where llama.cpp attends otherwise than the model was trained.
    """
    room = max(len(question.input_ids) for question in questions) + _NEW_TOKENS + _SPARE
    threads = threads or torch.get_num_threads()
    try:
        server = LlamaServer(file, room, 1, threads, True, _TIMEOUT, mmproj=mmproj, image_tokens=image_tokens)
        try:
            answers = [ask_with_media(server, question.messages, _NEW_TOKENS, _BEST) for question in questions]
        finally:
            server.close()
    except EngineUnavailable as error:
        return [CheckLine(name, "run in llama.cpp", "not run", UNVERIFIED, str(error))]
    sees = any("pixel_values" in question.inputs for question in questions)
    with _attention_as_served(reference.text_config, sees) as otherwise:
        found = agreement(reference, questions, answers)
    lines = [judged(name, found, bounds)]
    if otherwise:
        trained = agreement(reference, questions, answers)
        apart = trained.worst > bounds[0]
        verdict, problem = (WARN, _SERVED_OTHERWISE) if apart else (OK, "")
        lines.append(CheckLine(f"{name}: its attention", "as in training", figures_of(trained), verdict, problem))
    return lines


def agreement(
    reference: MediaReference, questions: Sequence[Question], answers: Sequence[ChatAnswer]
) -> MediaAgreement:
    """Compares each answer with what the model says at its places.

    One forward pass over prompt and answer is enough: where each token of the answer is the model's best one behind
    those before it, the answer is the model's own greedy one.
    """
    same, differences, longer = 0, [torch.zeros(1)], None
    for question, answer in zip(questions, answers, strict=True):
        if answer.prompt_tokens != len(question.input_ids):
            longer = longer or (answer.prompt_tokens, len(question.input_ids))
            continue
        log_probs = reference.log_probs(question, answer.ids)
        differences.append((log_probs.gather(1, answer.tops.ids) - answer.tops.log_probs).abs().flatten())
        best, said = log_probs.max(-1).values, log_probs.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        same += bool((best - said <= _MARGIN).all())
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


@contextlib.contextmanager
def _attention_as_served(text_config: Any, sees: bool) -> Iterator[bool]:
    """Within it, the model attends as llama.cpp does; whether that is otherwise than it was trained."""
    otherwise = sees and getattr(text_config, "use_bidirectional_attention", "vision") is None
    if not otherwise:
        yield False
        return
    text_config.use_bidirectional_attention = "vision"
    try:
        yield True
    finally:
        text_config.use_bidirectional_attention = None
