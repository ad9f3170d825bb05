"""What one step of quantization-aware training needs without a run: random targets, and the trainer of `recipe=qat`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig

from gemma_tune.chat import Rendered
from gemma_tune.models.head import TopK
from gemma_tune.quant.trainer import GridTrainer
from gemma_tune.run.paths import ASSETS
from gemma_tune.train.teacher_cache import TeacherCache

TOP_K = 64


def random_targets(rows: Sequence[Rendered], folder: Path, vocabulary: int = 262_144) -> TeacherCache:
    """A cache of K random probabilities at each position: what a step costs doesn't depend on them."""
    cache = TeacherCache(folder, TOP_K, "random", "random")

    def of(row: Rendered) -> TopK:
        ids = torch.stack([torch.randperm(vocabulary)[:TOP_K] for _ in range(row.trained_tokens)])
        return TopK(ids, (torch.randn(ids.shape) - 3).log_softmax(-1) - 0.1)

    cache.fill(rows, lambda batch: [of(row) for row in batch])
    return cache


def trainer_of(
    model: Any, rows: Sequence[Rendered], cache: TeacherCache, scratch: Path, on_cpu: bool = True
) -> GridTrainer:
    """The trainer of `recipe=qat` around a model."""
    arguments = SFTConfig(
        output_dir=str(scratch), use_cpu=on_cpu, bf16=False, gradient_checkpointing=False, report_to="none",
        disable_tqdm=True, dataset_kwargs={"skip_prepare_dataset": True},
        max_length=max(len(row.input_ids) for row in rows),
    )  # fmt: skip
    data = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
    trainer = GridTrainer(
        model=model, args=arguments, processing_class=AutoTokenizer.from_pretrained(ASSETS / "tiny"),
        train_dataset=data, teacher=cache.get,
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    trainer.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    return trainer
