"""llama.cpp as an engine: evaluates a GGUF file.

llama.cpp's server gives the probabilities of tokens that it generates, not of prompt tokens. So a text is scored
position by position: its beginning is the prompt, all but its last token in the slot's cache, and one token is
generated. A bias forces the token whose probability is needed; the probabilities in the answer don't include the bias.
So a loss costs one small request a token, whatever the size of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, TypeVar

import torch

from gemma_tune.chat import Rendered
from gemma_tune.engines.base import refuse_media
from gemma_tune.engines.in_order import in_order
from gemma_tune.engines.llama_prompt import asked_prompt, check_length, ids_of
from gemma_tune.engines.llama_server import EngineUnavailable, LlamaServer
from gemma_tune.errors import RunError

__all__ = ["EngineUnavailable", "LlamaCppEngine", "TopTokens"]

T = TypeVar("T")
R = TypeVar("R")

# With a larger vocabulary, the log-probabilities of one position are megabytes of JSON and take seconds.
WHOLE_VOCABULARY = 32_768
# How many top tokens to ask for first where the answer lacks the probability of the token itself
_MANY = 1024
# llama.cpp gives the smallest float where float32 can't hold a probability
_LOWEST = -104.0
_FORCED = 1e5
# llama.cpp's options for the best token at each place
GREEDY: Mapping[str, Any] = MappingProxyType({"temperature": 0.0, "samplers": ["temperature"]})


class TopTokens(NamedTuple):
    """The best tokens after each token of a row.

    Attributes:
        ids: [T, k], the best first.
        log_probs: float32, [T, k].
    """

    ids: torch.Tensor
    log_probs: torch.Tensor


class LlamaCppEngine:
    """A GGUF file in llama.cpp, on the CPU of this machine; a context manager that ends it.

    Args:
        file: The GGUF file.
        tokenizer: Its tokenizer, as Transformers has it.
        stops: The ids that end an answer.
        max_length: Tokens of a prompt and its answer at most; less where the model has less.
        exact: Computes in float32 where the file's types allow it, for comparisons; else as llama.cpp does by default.
        slots: Requests computed at once. With more than one, sums may differ in the last bit from run to run.
        threads: CPU threads; by default as many as torch uses.
        timeout: Seconds for loading the file, and for one request.
        adapter: A GGUF LoRA file that is put onto it.
        mmproj: The file of the towers, with which prompts may have images and sound.
        image_tokens: The fewest and the most tokens of an image, where its size decides.

    Raises:
        EngineUnavailable: llama.cpp isn't installed, or doesn't load the file.
    """

    def __init__(
        self,
        file: Path,
        tokenizer: Any,
        stops: Iterable[int],
        *,
        max_length: int = 4096,
        exact: bool = False,
        slots: int = 1,
        threads: int | None = None,
        timeout: float = 600.0,
        adapter: Path | None = None,
        mmproj: Path | None = None,
        image_tokens: tuple[int, int] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.stops = frozenset(stops)
        self._slots, self._sized = slots, image_tokens is not None
        self._server = LlamaServer(
            file, max_length + 1, slots, threads or torch.get_num_threads(), exact, timeout, adapter,
            mmproj=mmproj, image_tokens=image_tokens,
        )  # fmt: skip
        properties = self._server.get("/props")
        # The server needs room for a token behind the prompt, and caps what the model wasn't made for
        self.max_length: int = min(max_length, properties["default_generation_settings"]["n_ctx"] - 1)
        # What stands for an image or a sound in a text; another one in each server, so no text has it
        self._marker: str | None = properties.get("media_marker", "<__media__>") if mmproj else None
        self.vocabulary: int = self._server.get("/v1/models")["data"][0]["meta"]["n_vocab"]

    def __enter__(self) -> LlamaCppEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops llama.cpp."""
        self._server.close()

    def losses(self, rows: Sequence[Rendered], name: str) -> list[float]:
        """See `Engine`.

        Raises:
            RunError: A row has media.
        """
        refuse_media("llama.cpp", rows)

        def work(slot: int, row: Rendered) -> float:
            places = [t for t in range(1, len(row.labels)) if row.labels[t] != -100]
            return -sum(self._token(slot, row.input_ids[:t], row.labels[t])[0] for t in places)

        return list(self._each(rows, work, name))

    def likelihoods(self, rows: Sequence[Sequence[int]], starts: Sequence[int], name: str) -> Iterator[torch.Tensor]:
        """Log-probability of each row's tokens from its start on, and 1 where it is the best one; [T - start, 2].

        Args:
            rows: Token ids.
            starts: Where each row's scored part begins, at least 1.
            name: For the progress bar.
        """

        def work(slot: int, asked: tuple[Sequence[int], int]) -> torch.Tensor:
            row, start = asked
            found = [self._token(slot, row[:t], row[t]) for t in range(start, len(row))]
            return torch.tensor([(p, best == row[t]) for t, (p, best) in enumerate(found, start)]).reshape(-1, 2)

        yield from self._each(list(zip(rows, starts, strict=True)), work, name)

    def log_probs(self, rows: Sequence[Sequence[int]], name: str) -> Iterator[torch.Tensor]:
        """See `Engine`. They are scaled to the sum of 1, from which llama.cpp's own differ by some 1e-6.

        Raises:
            RunError: The vocabulary is too large for it; ask for `top_log_probs` or `likelihoods`. Or a row has media.
        """
        if self.vocabulary > WHOLE_VOCABULARY:
            raise RunError(
                f"llama.cpp gives log-probabilities as JSON, which would be {self.vocabulary * 99 / 1e6:.0f} MB for "
                f"each token of a vocabulary of {self.vocabulary:,}: they are not asked for all at once."
            )
        for ids, log_probs in self.top_log_probs(rows, self.vocabulary, name):
            whole = torch.full((len(ids), self.vocabulary), _LOWEST).scatter_(1, ids, log_probs)
            yield whole.log_softmax(-1)

    def top_log_probs(self, rows: Sequence[Sequence[int]], k: int, name: str) -> Iterator[TopTokens]:
        """The k best tokens after each token of each row, a row at a time; each slot takes a piece of the text."""
        refuse_media("llama.cpp", rows)

        def work(slot: int, piece: tuple[Sequence[int], range]) -> TopTokens:
            row, places = piece
            # A token that is no part of a character: llama.cpp leaves the probabilities out for those
            harmless = self.tokenizer.bos_token_id
            found = [self._ask(slot, row[: t + 1], k, harmless) for t in places]
            tops = [position["top_logprobs"] for position in found if position]
            ids = torch.tensor([[entry["id"] for entry in top] for top in tops], dtype=torch.long)
            log_probs = torch.tensor([[entry["logprob"] for entry in top] for top in tops], dtype=torch.float32)
            return TopTokens(
                ids.view(len(tops), -1 if tops else k), log_probs.view(len(tops), -1 if tops else k).clamp_(min=_LOWEST)
            )

        size = max(1, -(-sum(map(len, rows)) // self._slots))
        pieces = [(row, range(len(row))[i : i + size]) for row in rows for i in range(0, len(row), size)]
        found = self._each(pieces, work, name)
        for row in rows:
            parts = [next(found) for _ in range(0, len(row), size)]
            yield TopTokens(torch.cat([part.ids for part in parts]), torch.cat([part.log_probs for part in parts]))

    def answers(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, name: str) -> list[list[int]]:
        """See `Engine`. Prompts may have images and sound (`Prompt.media`).

        Raises:
            UnusableMedium: A file can't be used.
            RunError: There are no towers, or llama.cpp makes other tokens of a prompt with media than training.
        """
        if self._marker is None:
            refuse_media("llama.cpp without a file of towers (mmproj-*.gguf)", prompts, "answers")

        def work(slot: int, prompt: Sequence[int]) -> list[int]:
            asked = {"n_predict": max_new_tokens, "return_tokens": True}
            answer = self._complete(slot, {"prompt": self._prompt(prompt), **asked})
            check_length(prompt, answer["tokens_evaluated"], self._sized)
            ids: list[int] = answer["tokens"]
            end = next((i for i, token in enumerate(ids) if token in self.stops), len(ids))
            return ids[: end + 1]

        return list(self._each(prompts, work, name))

    def written(
        self, prompt: Sequence[int], max_new_tokens: int, sampling: Mapping[str, Any]
    ) -> Generator[int, None, None]:
        """A continuation as token ids while it is written, its end included; whoever stops early ends it.

        Args:
            prompt: Token ids, perhaps with media (`Prompt`).
            max_new_tokens: Tokens at most.
            sampling: llama.cpp's options; greedy ones are `GREEDY`.

        Raises:
            RunError: As `answers`.
        """
        asked = {"prompt": self._prompt(prompt), "n_predict": max_new_tokens, "return_tokens": True, **sampling}
        for number, event in enumerate(self._server.stream("/completion", **asked, cache_prompt=True, id_slot=0)):
            if not number:
                check_length(prompt, event["tokens_evaluated"], self._sized)
            for token in ids_of(self.tokenizer, event):
                yield token
                if token in self.stops:
                    return

    def _prompt(self, ids: Sequence[int]) -> Any:
        return asked_prompt(self._server.post, self.tokenizer, ids, self._marker)

    def speed(self, prompt: Sequence[int], tokens: int) -> tuple[float, float]:
        """Tokens a second of a prompt that is read anew and of an answer of so many tokens, by llama.cpp's clock."""
        asked = {"prompt": list(prompt), "n_predict": tokens, "temperature": 0.0, "ignore_eos": True}
        timed = self._server.post("/completion", **asked, cache_prompt=False, id_slot=0, response_fields=["timings"])
        return timed["timings"]["prompt_per_second"], timed["timings"]["predicted_per_second"]

    def token_ids(self, text: str) -> list[int]:
        """llama.cpp's own token ids of a text, with `<bos>`, control tokens read as such."""
        ids: list[int] = self._server.post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]
        return ids

    def prompt_of(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """A conversation as the file's own template writes it, without `<bos>`, which llama.cpp puts before it."""
        asked = {"messages": messages} | ({"tools": tools} if tools else {})
        return str(self._server.post("/apply-template", **asked)["prompt"])

    def _each(self, items: Sequence[T], work: Callable[[int, T], R], name: str) -> Iterator[R]:
        """The work on each item, in their order; a slot is one item's at a time."""
        free: SimpleQueue[int] = SimpleQueue()
        for slot in range(self._slots):
            free.put(slot)

        def one(item: T) -> R:
            slot = free.get()
            try:
                return work(slot, item)
            finally:
                free.put(slot)

        yield from in_order(items, one, self._slots, name)

    def _complete(self, slot: int, asked: dict[str, Any]) -> dict[str, Any]:
        fields = ["tokens", "tokens_evaluated", "completion_probabilities"]
        answer: dict[str, Any] = self._server.post(
            "/completion", **{**GREEDY, "cache_prompt": True, **asked}, id_slot=slot, response_fields=fields
        )
        return answer

    def _ask(self, slot: int, prompt: Sequence[int], k: int, token: int) -> dict[str, Any] | None:
        """The probabilities after a prompt, of a token and the k best; None where the token is part of a character."""
        asked = {"prompt": list(prompt), "n_predict": 1, "n_probs": k, "logit_bias": [[token, _FORCED]]}
        # Which token is drawn doesn't matter: to draw from the best one alone is faster than from the whole vocabulary
        one = {"samplers": ["top_k"], "top_k": 1}
        positions = self._complete(slot, asked | one).get("completion_probabilities")
        found: dict[str, Any] | None = positions[0] if positions else None
        return found

    def _token(self, slot: int, prompt: Sequence[int], token: int) -> tuple[float, int]:
        """A token's log-probability after a prompt, and the best token there."""
        if found := self._ask(slot, prompt, 1, token):
            return max(found["logprob"], _LOWEST), found["top_logprobs"][0]["id"]
        for k in (_MANY, self.vocabulary):
            found = self._ask(slot, prompt, k, self.tokenizer.bos_token_id)
            top = found["top_logprobs"] if found else []
            for entry in top:
                if entry["id"] == token:
                    return max(entry["logprob"], _LOWEST), top[0]["id"]
        raise RunError(f"llama.cpp gave no probability for token {token}.")
