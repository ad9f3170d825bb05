"""The interface of an engine: every evaluator works with any of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gemma_tune.chat import Rendered
from gemma_tune.errors import RunError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Dialogue:
    """A conversation that waits for an answer.

    Attributes:
        messages: OpenAI messages.
        tools: OpenAI function schemas, or None.
        thinking: Whether the model is asked to think.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    thinking: bool = False


class Engine(Protocol):
    """A model that computes log-probabilities and answers, whatever library runs it.

    Attributes:
        tokenizer: Its tokenizer, with a known chat template.
        max_length: Tokens of a prompt and its answer, at most.
        stops: The ids of the stop tokens.
    """

    tokenizer: Any
    max_length: int
    stops: frozenset[int]

    def losses(self, rows: Sequence[Rendered], name: str) -> list[float]:
        """Negative log-likelihood of each row's trained tokens, summed, in nats; `name` is for the progress bar."""
        ...

    def log_probs(self, rows: Sequence[Sequence[int]], name: str) -> Iterator[torch.Tensor]:
        """Log-probabilities after each token of each row, float32 on the CPU, [T, V] per row."""
        ...

    def answers(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, name: str) -> list[list[int]]:
        """Greedy continuations as token ids, in the prompts' order, including the stop token if there is one."""
        ...


def refuse_media(engine: str, rows: Sequence[Any], what: str = "probabilities of a row's own tokens") -> None:
    """Raises RunError where rows or prompts have images, sound or video that an engine would leave out.

    Args:
        engine: Its name.
        rows: `Rendered` rows, or token ids, perhaps with `media` (`Prompt`).
        what: What is asked for.
    """
    if medium := next((medium for row in rows for medium in getattr(row, "media", ())), None):
        raise RunError(
            f"{medium['path']}: {engine} isn't asked for {what} behind media; measure the merged weights "
            "(export/merged) in Transformers, or leave this evaluator out."
        )
