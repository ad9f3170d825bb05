"""Distillation: a model is trained to give a teacher's probabilities, in `recipe=qat` those of the unquantized model.

The KL itself is `kl_from_top_k` of `models/head.py`; suffixes of shapes are those of that file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gemma_tune.chat import Rendered
from gemma_tune.config import QuantConfig
from gemma_tune.models.contexts import evaluating
from gemma_tune.models.head import TopK, head_of, kl_from_top_k, nll, top_k, trained_states
from gemma_tune.models.padding import pad_rows, unpad_rows
from gemma_tune.models.towers.media import media_inputs
from gemma_tune.models.towers.towers import seeing, towers_of
from gemma_tune.models.unwrap import language_part, stored_tensors
from gemma_tune.train.batches import FILES, rows_with_media
from gemma_tune.train.sft import GemmaSFTTrainer
from gemma_tune.train.teacher_cache import TeacherCache, sight_digest, vocabulary_digest, weights_digest


def top_k_of_rows(base: Any, rows: Sequence[Rendered], k: int, tokenizer: Any = None) -> list[TopK]:
    """What a model predicts before each trained token of each row, on the CPU; similar lengths need less padding.

    Args:
        base: The model, without a PeftModel around it.
        rows: Rendered rows, which go through the model as one batch.
        k: Log-probabilities of each position, the largest ones.
        tokenizer: Its tokenizer, whose processor prepares the media of rows that have some.
    """
    inputs = pad_rows(base, rows)
    with torch.no_grad(), seeing(base, media_inputs(tokenizer, rows), inputs["input_ids"]) as given:
        hidden_NH, _ = trained_states(base, inputs, media=given)
        found = top_k(hidden_NH, head_of(base), k)
    of_each = [tensor.cpu().split([row.trained_tokens for row in rows]) for tensor in found]
    return [TopK(*tensors) for tensors in zip(*of_each, strict=True)]


class Teacher:
    """The model whose probabilities are the targets: asked at every step, or once for each row and then read from disk.

    Args:
        base: The teacher as it is now, before an adapter is attached to it.
        tokenizer: Its tokenizer.
        top_k: Log-probabilities of each position, the largest ones.
        live: Whether a copy of the teacher is kept, frozen, and asked at every step. It takes the teacher's memory
            once more.
        cache: The folder to keep the targets in, where it isn't live. None: no teacher is needed (cross_entropy=1).
    """

    def __init__(self, base: Any, tokenizer: Any, top_k: int, live: bool = False, cache: Path | None = None) -> None:
        self._base, self._k, self._folder = base, top_k, None if live else cache
        self._tokenizer = tokenizer
        self._live = _frozen_copy(base) if live else None
        self._cache: TeacherCache | None = None
        # Of the weights as they are before training changes them
        self._digests = (weights_digest(base), vocabulary_digest(tokenizer)) if self._folder else ("", "")

    def prepare(self, rows: Iterable[Rendered]) -> None:
        """Asks the teacher for every row that the cache lacks; a live one needs no preparation.

        Args:
            rows: The training rows. `base` must compute what it computed before an adapter was attached.

        Raises:
            UserError: As `TeacherCache`.
        """
        if self._folder is not None:
            sight = partial(sight_digest, self._base, self._tokenizer)
            self._cache = TeacherCache(self._folder, self._k, *self._digests, sight)
            with evaluating(self._base):
                self._cache.fill(rows, lambda batch: top_k_of_rows(self._base, batch, self._k, self._tokenizer))

    def __call__(self, row: Rendered) -> TopK:
        """The targets of a training row.

        Raises:
            KeyError: `prepare` didn't see the row.
        """
        if self._cache is not None:
            return self._cache.get(row)
        return top_k_of_rows(self._live, [row], self._k, self._tokenizer)[0]


def open_teacher(quant: QuantConfig, base: Any, tokenizer: Any, folder: Path) -> Teacher:
    """The teacher that `quant` asks for.

    Args:
        quant: `teacher`, `teacher_top_k`, `teacher_folder`.
        base: The teacher as it is now.
        tokenizer: Its tokenizer.
        folder: The run folder, which holds its targets where no other folder is named.
    """
    cache = Path(quant.teacher_folder or folder / "teacher").expanduser() if quant.keeps_targets else None
    return Teacher(base, tokenizer, quant.teacher_top_k, live=quant.teacher == "live", cache=cache)


def _frozen_copy(base: Any) -> Any:
    """A copy that is never trained; the weights of the towers beside it, which aren't trained either, are shared."""
    towers = towers_of(base)
    shared = {id(tensor): tensor for _, tensor in stored_tensors(towers.whole)} if towers else {}
    return copy.deepcopy(base, shared).eval().requires_grad_(False)


class DistillationTrainer(GemmaSFTTrainer):
    """GemmaSFTTrainer with the loss (1 - c)·KL(teacher ‖ model) + c·cross-entropy over the trained tokens.

    Args:
        teacher: Gives the targets of a row, as `Teacher` does.
        cross_entropy: c, from 0 to 1.
    """

    names_media = True

    def __init__(
        self, *args: Any, teacher: Callable[[Rendered], TopK], cross_entropy: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._teacher, self._cross_entropy = teacher, cross_entropy

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss in nats, averaged over the trained tokens of the whole optimizer step."""
        base = language_part(self.model)
        through = model if model is not self.model else None
        hidden_NH, labels_N = trained_states(base, inputs, through)
        head = head_of(base)
        total = hidden_NH.new_zeros((), dtype=torch.float32)
        if self._cross_entropy < 1:
            rows = list(map(Rendered, unpad_rows(inputs, "input_ids"), unpad_rows(inputs, "labels")))
            if media := inputs.get(FILES):
                rows = rows_with_media(rows, media, self.processing_class.media.soft_ids.values())
            of_rows = [self._teacher(row) for row in rows if row.trained_tokens]
            targets = TopK(*(torch.cat(tensors).to(hidden_NH.device) for tensors in zip(*of_rows, strict=True)))
            total = total + (1 - self._cross_entropy) * kl_from_top_k(hidden_NH, head, targets)
        if self._cross_entropy > 0:
            total = total + self._cross_entropy * nll(hidden_NH, head, labels_N, reduction="sum")
        count = len(labels_N) if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(count, device=total.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # as Trainer does: the gradients of processes are averaged
        return (loss, None) if return_outputs else loss
