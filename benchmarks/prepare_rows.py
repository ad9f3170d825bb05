"""Prepares rows for SFT, ours or as TRL's `SFTTrainer` does: how long it takes, and the token ids that come out.

python benchmarks/prepare_rows.py '{"by": "ours" or "trl", "rows": …, "processes": …}'
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from gemma_tune.config import DataConfig, ModelConfig
from gemma_tune.data.loading import load_rows
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import ASSETS

MAX_LENGTH = 1024
TINY = str(ASSETS / "tiny")


def processor_seconds() -> float:
    """Of this process and those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def outcome(dataset: Any, seconds: float, processor: float) -> dict[str, Any]:
    """What is printed: a digest of the token ids, row by row, and what was needed for them."""
    said, labels = hashlib.sha256(), 0
    for batch in dataset.with_format("arrow").iter(1000):
        ids = batch.column("input_ids").combine_chunks()
        said.update(np.asarray(ids.value_lengths(), np.int32).tobytes())
        said.update(np.asarray(ids.flatten(), np.int32).tobytes())
        labels += int(np.count_nonzero(np.asarray(batch.column("labels").combine_chunks().flatten()) != -100))
    return {
        "rows": len(dataset), "seconds": seconds, "processor_seconds": processor, "token_ids": said.hexdigest(),
        "labels": labels,
    }  # fmt: skip


def ours(rows: str, processes: int) -> dict[str, Any]:
    """`load_rows`: reads, checks, looks for duplicates, renders, tokenizes and counts."""
    tokenizer = load_tokenizer(find_source(ModelConfig(TINY)))
    data = DataConfig(train_file=rows, format="prompt_completion", dataset_num_proc=processes)
    begin, used = time.perf_counter(), processor_seconds()
    train, _ = load_rows(data, tokenizer, MAX_LENGTH, seed=0)
    return outcome(train.dataset, time.perf_counter() - begin, processor_seconds() - used)


def trl(rows: str, processes: int) -> dict[str, Any]:
    """`load_dataset`, and what `SFTTrainer` takes longer for all rows than for one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    datasets.disable_caching()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(TINY), AutoTokenizer.from_pretrained(TINY)

    def prepared(source: Any, folder: str) -> Any:
        training = SFTConfig(
            folder, max_length=MAX_LENGTH, dataset_num_proc=processes, use_cpu=True, report_to="none",
            shuffle_dataset=False,
        )  # fmt: skip
        return SFTTrainer(model, training, train_dataset=source, processing_class=tokenizer).train_dataset

    def spent(what: Any) -> tuple[Any, float, float]:
        begin, used = time.perf_counter(), processor_seconds()
        return what(), time.perf_counter() - begin, processor_seconds() - used

    def loaded() -> Any:
        return datasets.load_dataset("json", data_files=rows, split="train", cache_dir=folder)

    with tempfile.TemporaryDirectory() as folder:
        source, *loading = spent(loaded)
        one = source.select([0])
        prepared(one, folder)  # what is imported and compiled at first
        _, *alone = spent(lambda: prepared(one, folder))
        dataset, *whole = spent(lambda: prepared(source, folder))
        seconds, processor = (a + b - c for a, b, c in zip(loading, whole, alone, strict=True))
        return outcome(dataset, seconds, processor)


def write_messages(source: Path, target: Path) -> None:
    """Rows of prompt and completion as lists of messages, which both read as a conversation."""
    with source.open(encoding="utf-8") as rows, target.open("w", encoding="utf-8") as file:
        for row in map(json.loads, rows):
            row = {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main(asked: dict[str, Any]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    print(json.dumps((ours if asked["by"] == "ours" else trl)(asked["rows"], asked["processes"])))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
