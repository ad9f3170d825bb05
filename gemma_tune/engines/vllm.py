"""vLLM as an engine: asks `vllm serve` as any client does, with token ids in place of texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch

from gemma_tune.chat import Rendered
from gemma_tune.engines.base import refuse_media
from gemma_tune.engines.in_order import in_order
from gemma_tune.engines.llama_cpp import WHOLE_VOCABULARY, TopTokens
from gemma_tune.engines.vllm_server import VllmServer
from gemma_tune.errors import RunError

_LOWEST = -104.0  # of float32: what is called minus infinity


class VllmEngine:
    """What a vLLM server computes; a context manager that ends it.

    Args:
        server: The server, with its weights loaded.
        tokenizer: Its tokenizer, as Transformers has it.
        stops: The ids that end an answer.
        slots: Requests sent at once.
    """

    def __init__(self, server: VllmServer, tokenizer: Any, stops: Iterable[int], slots: int = 8) -> None:
        self.server, self.tokenizer, self.stops, self._slots = server, tokenizer, frozenset(stops), slots
        models = {model["id"]: model for model in server.get("/v1/models")["data"]}
        if server.model not in models:
            raise RunError(f"vLLM serves {', '.join(models)}, and no {server.model}.")
        lengths = (model.get("max_model_len") for model in models.values())  # of an adapter it is the base's
        # The server needs room for a token behind the prompt
        self.max_length: int = next(length for length in lengths if length) - 1

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops vLLM."""
        self.server.close()

    def losses(self, rows: Sequence[Rendered], name: str) -> list[float]:
        """See `Engine`.

        Raises:
            RunError: A row has media.
        """
        refuse_media("vLLM", rows)

        def work(row: Rendered) -> float:
            found = self._of_prompt(row.input_ids, 0)
            places = [t for t in range(1, len(row.labels)) if row.labels[t] != -100]
            return -sum(max(found[t][row.labels[t]], _LOWEST) for t in places)

        return list(in_order(rows, work, self._slots, name))

    def log_probs(self, rows: Sequence[Sequence[int]], name: str) -> Iterator[torch.Tensor]:
        """See `Engine`.

        Raises:
            RunError: The vocabulary is too large for it; ask for `top_log_probs`. Or a row has media.
        """
        if (size := len(self.tokenizer)) > WHOLE_VOCABULARY:
            raise RunError(
                f"vLLM gives log-probabilities as JSON, which would be {size * 99 / 1e6:.0f} MB for each token of a "
                f"vocabulary of {size:,}: they are not asked for all at once."
            )
        for ids, log_probs in self.top_log_probs(rows, -1, name):
            whole = torch.full((len(ids), int(ids.max()) + 1), _LOWEST).scatter_(1, ids, log_probs)
            yield whole.log_softmax(-1)

    def top_log_probs(self, rows: Sequence[Sequence[int]], k: int, name: str) -> Iterator[TopTokens]:
        """The k best tokens after each token of each row, a row at a time; -1: all of the vocabulary."""
        refuse_media("vLLM", rows)

        def work(row: Sequence[int]) -> TopTokens:
            # The probabilities after the last token stand at a token behind it, whichever
            found = self._of_prompt([*row, self.tokenizer.bos_token_id], k)[1:]
            # One more than k where the token itself isn't among them
            best = [sorted(at.items(), key=lambda entry: -entry[1])[: k if k > 0 else None] for at in found]
            return TopTokens(
                torch.tensor([[token for token, _ in at] for at in best], dtype=torch.long),
                torch.tensor([[p for _, p in at] for at in best], dtype=torch.float32).clamp_(min=_LOWEST),
            )

        yield from in_order(rows, work, self._slots, name)

    def answers(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, name: str) -> list[list[int]]:
        """See `Engine`.

        Raises:
            RunError: A prompt has media, of which a request of token ids holds the places alone.
        """
        refuse_media("vLLM", prompts, "answers")

        def work(prompt: Sequence[int]) -> list[int]:
            room = min(max_new_tokens, self.max_length + 1 - len(prompt))
            ids: list[int] = self._complete(prompt, max_tokens=room)["token_ids"]
            end = next((i for i, token in enumerate(ids) if token in self.stops), len(ids))
            return ids[: end + 1]

        return list(in_order(prompts, work, self._slots, name))

    def write(self, prompt: Sequence[int], tokens: int) -> None:
        """Reads a prompt and writes so many tokens, whatever they are."""
        self._complete(prompt, max_tokens=tokens, ignore_eos=True)

    def _of_prompt(self, ids: Sequence[int], k: int) -> list[dict[int, float]]:
        """Log-probabilities of a prompt's tokens and of the k best in their places; nothing at the first one."""
        found = self._complete(ids, max_tokens=1, prompt_logprobs=k)["prompt_logprobs"]
        return [{int(token): entry["logprob"] for token, entry in (at or {}).items()} for at in found]

    def _complete(self, prompt: Sequence[int], **asked: Any) -> dict[str, Any]:
        greedy = {"model": self.server.model, "prompt": list(prompt), "temperature": 0.0, "return_token_ids": True}
        # Greedy means the best token: no setting of the model's own changes it
        plain = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "add_special_tokens": False}
        answer: dict[str, Any] = self.server.post("/v1/completions", **greedy, **plain, **asked)["choices"][0]
        return answer
