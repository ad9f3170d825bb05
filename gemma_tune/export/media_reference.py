"""Questions with media, and what the model itself says to them: what llama.cpp's answers are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.nn import functional

from gemma_tune.export.llama_arithmetic import as_llama_hears, towers_as_llama_cpp
from gemma_tune.export.transformers_check import TrainedForward
from gemma_tune.models.kernels.documents import document_numbers
from gemma_tune.models.towers.image_attention import attends_in_window, image_attention
from gemma_tune.models.towers.image_masks import image_masks, runs
from gemma_tune.models.unwrap import language_part


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

    messages: Sequence[dict[str, Any]]
    input_ids: Sequence[int]
    inputs: Mapping[str, torch.Tensor]
    kinds: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def medium(self) -> str:
        """What it shows or plays: `image` or `audio`."""
        return "image" if "pixel_values" in self.inputs else "audio"


class MediaReference(Protocol):
    """What llama.cpp's answers are compared with.

    Attributes:
        text_config: The language part's configuration, by which the model attends.
        stops: The ids that end an answer.
    """

    text_config: Any
    stops: frozenset[int]

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
        self.stops = frozenset(whole.generation_config.eos_token_id)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def log_probs(self, question: Question, answer: Sequence[int]) -> torch.Tensor:
        """See `MediaReference`."""
        row = torch.tensor([[*question.input_ids, *answer[:-1]]])
        inputs = {**as_llama_hears(question.inputs, self.text_config), **_padded(question.kinds, row.shape[1])}
        if attends_in_window(self.text_config):
            inputs["attention_mask"] = self._masks_in_window(row)
        with towers_as_llama_cpp(self._whole):
            logits = self._whole(input_ids=row, use_cache=False, **inputs).logits[0]
        found: torch.Tensor = logits[len(question.input_ids) - 1 :].float().log_softmax(-1)
        return found

    def _masks_in_window(self, row: torch.Tensor) -> Any:
        sees = image_attention(self.text_config)
        assert sees is not None
        blocks = runs(row, [self._whole.config.image_token_id])
        one = document_numbers(None, None, row.shape, row.device)
        return image_masks(one, blocks, self.text_config.sliding_window, sees)


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
        self.stops = frozenset(forward.model.generation_config.eos_token_id)

    def log_probs(self, question: Question, answer: Sequence[int]) -> torch.Tensor:
        """See `MediaReference`."""
        row, start = [*question.input_ids, *answer[:-1]], len(question.input_ids) - 1
        logits = self._forward.logits_with_media(row, as_llama_hears(question.inputs, self.text_config), start)
        return logits.log_softmax(-1)
