"""`make bench-speed`, part grpo-step: a whole step of `recipe=grpo`, shape of Gemma 3 270M, prompts shared or not.

One after the other: the parts of a step are measured by the run itself, which must not be stopped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import shape_270m
from bench_sft import logged
from transformers import AutoTokenizer

REWARD = "def own(completions, records):\n    return [float(len(c) % 7) for c in completions]\n"


def long_prompts(source: Path, target: Path, tokens: int, count: int, model: Path) -> None:
    """GSM8K's questions joined to prompts of about so many tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    with target.open("w", encoding="utf-8") as file:
        for _ in range(count):
            text = ""
            while len(tokenizer(text)["input_ids"]) < tokens - 10:
                text += rows.pop()["question"] + "\n"
            ids = tokenizer(text, add_special_tokens=False)["input_ids"][: tokens - 10]
            row = {"question": tokenizer.decode(ids), "answer": "#### 1"}
            file.write(json.dumps(row) + "\n")


def measure(scratch: Path, prompt: int, answers: int, tokens: int) -> dict[str, Any]:
    """The logged line of the first step with prompts shared and not."""
    shape_270m.make(scratch / "model")
    rows, data = scratch / "prompts.jsonl", Path(os.environ["GEMMA_TUNE_TEST_DATA"])
    long_prompts(data / "gsm8k" / "train.jsonl", rows, prompt, 4, scratch / "model")
    (scratch / "mine.py").write_text(REWARD, encoding="utf-8")
    found = {}
    for shared in ("false", "true"):
        folder = scratch / f"grpo-{shared}"
        words = [
            "recipe=grpo", "adapter=lora", f"model.model_name_or_path={scratch}/model", "data=columns",
            f"data.train_file={rows}", "data.prompt_column=question", "data.completion_column=answer", "reward=none",
            f"reward.functions.own={scratch}/mine.py:own", "tracker=none", "eval=none", "export=none",
            "train.max_steps=1", "train.warmup_steps=0",
            f"train.per_device_train_batch_size={answers}", f"train.num_generations={answers}",
            f"train.max_completion_length={tokens}", f"train.compact_batches={shared}", f"output_dir={folder}",
            "train.extra.generation_kwargs={min_new_tokens: " + str(tokens) + "}",
            "data.validation_split_percentage=0", "train.num_iterations=2",
        ]  # fmt: skip
        subprocess.run([sys.executable, "-m", "gemma_tune", *words], check=True, stdout=subprocess.DEVNULL)
        line = next(line for line in logged(folder) if "loss" in line)
        found[shared] = {k: v for k, v in line.items() if k.startswith("time/")} | {
            "length": line["completions/mean_length"],
            "loss": line["loss"],
        }
    return found
