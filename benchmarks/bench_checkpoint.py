"""`make bench-checkpoint`: how long training stands still for a checkpoint of more than 1 GB.

Ours (sealed with digests, on the disk, then renamed) against Transformers' own saving followed by the same fsync of
every file: in turn, in one process, with the same weights and optimizer. Written to docs/benchmarks/.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from figures import DOCS, conditions, conditions_line
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, Trainer
from trl import SFTConfig

from gemma_tune.run.checkpoints import to_disk
from gemma_tune.run.paths import ASSETS
from gemma_tune.train.sft import GemmaSFTTrainer

PAIRS = 7


def trainer_in(folder: Path) -> GemmaSFTTrainer:
    """A trainer after one step: 110 million weights in float32, with AdamW's two moments."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=16_384, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, tie_word_embeddings=True, bos_token_id=2, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config)
    args = SFTConfig(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=1, save_strategy="no", report_to="none",
        use_cpu=True, bf16=False, disable_tqdm=True, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    from datasets import Dataset

    rows = Dataset.from_list([{"input_ids": [2, 5, 9, 1], "labels": [2, 5, 9, 1]}] * 2)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    trainer = GemmaSFTTrainer(model=model, args=args, processing_class=tokenizer, train_dataset=rows)
    trainer.train()
    return trainer


def theirs(trainer: Any, folder: Path) -> None:
    """Transformers' own saving, then an fsync of every file."""
    Trainer._save_checkpoint(trainer, trainer.model, None)
    written = folder / f"checkpoint-{trainer.state.global_step}"
    for path in (*sorted(p for p in written.rglob("*") if p.is_file()), written):
        to_disk(path)


def ours(trainer: Any, folder: Path) -> None:
    """What a run of ours does."""
    trainer._save_checkpoint(trainer.model, None)


def main() -> None:
    """Measures, and writes both files."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trainer = trainer_in(folder)
        seconds: dict[str, list[float]] = {"Transformers": [], "gemma_tune": []}
        size = 0
        for i in range(PAIRS + 1):  # the first pair warms up
            pair = [("Transformers", theirs), ("gemma_tune", ours)]
            for name, save in pair if i % 2 else reversed(pair):
                for old in (*folder.glob("checkpoint-*"), *folder.glob("step-*")):
                    shutil.rmtree(old)
                begun = time.perf_counter()
                save(trainer, folder)
                if i:
                    seconds[name].append(time.perf_counter() - begun)
                size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    ratios = [a / b for a, b in zip(seconds["gemma_tune"], seconds["Transformers"], strict=True)]
    found = {
        "bytes": size,
        "seconds": seconds,
        "ratio": statistics.median(ratios),
        "ratios": sorted(ratios),
        **conditions(),
    }
    (DOCS / "checkpoint.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# What a checkpoint costs", "",
        f"Made by `make bench-checkpoint` on {conditions_line(found)}", "",
        f"A checkpoint of {size / 1e9:.2f} GB (weights and AdamW's moments in float32), {PAIRS} pairs in turn in one",
        "process. Transformers' saving is followed by an fsync of every file; ours has the digests of all files, too,",
        "and the folder takes its name when the disk has everything. Training stands still for the whole time.", "",
        "| | median seconds |", "| --- | --- |",
        *(f"| {name} | {statistics.median(values):.2f} |" for name, values in seconds.items()), "",
        f"Ratio {found['ratio']:.3f} (median of the pairs; {min(ratios):.2f} to {max(ratios):.2f}).",
        "Required: at most 1.3.",
    ]  # fmt: skip
    (DOCS / "checkpoint.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
