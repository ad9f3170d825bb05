"""Trains the embedded model from scratch: its rows, its batches, and Transformers' Trainer."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from gemma_tune.models.contexts import training_attention
from gemma_tune.train.callbacks import ProgressBar
from gemma_tune.train.nonfinite import NonFiniteLoss
from tools.tiny_model.text import documents

BATCH_TOKENS = 2048
LEAST_COUNT = 1000  # every token of the vocabulary is a target at least so often
_CHUNK = 2000


class StopAtNonFinite(TrainerCallback):  # type: ignore[misc]
    """Stops at a NaN or infinite logged loss or gradient."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for name in ("loss", "grad_norm"):
            value = (logs or {}).get(name)
            if isinstance(value, float) and not math.isfinite(value):
                raise NonFiniteLoss(
                    f"{name} is {value} at step {state.global_step}: lower train.learning_rate, or look at the rows "
                    "of this step; metrics.jsonl holds all steps before."
                )


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids with `<bos>`; plain text ends with `<eos>`, a chat with its own last line."""
    rows = tokenizer(texts)["input_ids"]
    stop = tokenizer.eos_token_id
    return [row if text.startswith("<start_of_turn>") else [*row, stop] for row, text in zip(rows, texts, strict=True)]


@dataclass(frozen=True)
class TrainingText:
    """What the model is trained on.

    Attributes:
        rows: Token ids.
        counts: How often each id is a target.
        words: Every word and number of the documents.
    """

    rows: list[list[int]]
    counts: Counter[int]
    words: set[str]


def training_text(tokenizer: Any, count: int, seed: int, least_count: int = LEAST_COUNT) -> TrainingText:
    """The documents as token ids, and random tokens said twice, until every token was a target often enough.

    Args:
        tokenizer: The embedded model's.
        count: Documents.
        seed: Of the documents; those of other seeds are others.
        least_count: Times that each token of the vocabulary must be a target.
    """
    source, rows, words = documents(seed), [], set()
    for start in tqdm(range(0, count, _CHUNK), desc="text", unit_scale=_CHUNK, unit=" rows", disable=None, leave=False):
        texts = list(itertools.islice(source, min(_CHUNK, count - start)))
        rows += encode(tokenizer, texts)
        words |= words_of(texts)
    counts = target_counts(rows)
    rng = random.Random(seed)
    bag = [i for i in range(len(tokenizer)) for _ in range(math.ceil(max(0, least_count - counts[i]) / 2))]
    rng.shuffle(bag)
    while bag:
        n = rng.randint(6, 40)
        said, bag = bag[:n], bag[n:]
        rows.append([tokenizer.bos_token_id, *said, *said])
        counts.update(said * 2)
    return TrainingText(rows, counts, words)


def words_of(texts: Iterable[str]) -> set[str]:
    """Every word and number of the texts."""
    return set(itertools.chain.from_iterable(re.findall(r"\w+", t) for t in texts))


def target_counts(rows: Iterable[list[int]]) -> Counter[int]:
    """How often each id is a target: everywhere but in a row's first place."""
    return Counter(itertools.chain.from_iterable(row[1:] for row in rows))


class TokenBatches(Dataset[dict[str, torch.Tensor]]):  # type: ignore[misc]
    """Rows of like length together, each batch as it goes into the model.

    Args:
        rows: Token ids.
        pad_id: Padding on the right; causal attention never looks at it, so no mask is needed.
        tokens: Tokens of a batch at most, padding included.
    """

    def __init__(self, rows: list[list[int]], pad_id: int, tokens: int = BATCH_TOKENS) -> None:
        self._pad_id = pad_id
        self._batches: list[list[list[int]]] = []
        batch: list[list[int]] = []
        for row in sorted(rows, key=len):
            if batch and (len(batch) + 1) * len(row) > tokens:
                self._batches.append(batch)
                batch = []
            batch.append(row)
        self._batches.append(batch)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels`, [B, T] both; labels are -100 on padding."""
        rows = self._batches[index]
        width = max(map(len, rows))
        ids = torch.tensor([row + [self._pad_id] * (width - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return {"input_ids": ids, "labels": ids.masked_fill(torch.arange(width) >= lengths[:, None], -100)}


def pretrain(
    model: Any, rows: list[list[int]], output: Path, rate: float, warmup_steps: int, max_steps: int, seed: int
) -> tuple[int, bool]:
    """Trains all weights on all tokens of the rows, for one epoch, with a progress bar.

    Args:
        model: As `build_model` returns it, float32.
        rows: Token ids.
        output: A folder for the Trainer; it writes nothing into it.
        rate: Peak learning rate.
        warmup_steps: Steps up to the peak.
        max_steps: Steps at most; -1 for the whole epoch.
        seed: Of the order of the batches.

    Returns:
        The number of steps, and whether they included every row.
    """
    arguments = TrainingArguments(
        output_dir=str(output),
        learning_rate=rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.02},
        warmup_steps=warmup_steps,
        max_steps=max_steps,
        num_train_epochs=1,
        weight_decay=0.0,
        max_grad_norm=1.0,
        adam_beta2=0.98,
        optim="adamw_torch_fused",
        bf16=True,
        use_cpu=True,
        per_device_train_batch_size=1,  # an item of the data set is a batch
        seed=seed,
        logging_steps=50,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    batches = TokenBatches(rows, model.config.pad_token_id)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=batches,
        data_collator=lambda items: items[0],
        callbacks=[ProgressBar(lambda: 0), StopAtNonFinite()],
    )
    trainer.remove_callback(PrinterCallback)
    with training_attention(model, None):
        trainer.train()
    model.eval()
    steps = int(trainer.state.global_step)
    return steps, steps >= len(batches)
