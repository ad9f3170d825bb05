"""`make bench-speed`, part grpo-step: a whole step of GRPO on the shape of Gemma 3 270M, a plain TRL script and ours.

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
    """The seconds of the first step's parts: a plain TRL script, and ours with every speed-up."""
    shape_270m.make(scratch / "model")
    rows, data = scratch / "prompts.jsonl", Path(os.environ["GEMMA_TUNE_TEST_DATA"])
    long_prompts(data / "gsm8k" / "train.jsonl", rows, prompt, 4, scratch / "model")
    return {"TRL": plain(scratch, rows, answers, tokens), "ours": ours(scratch, rows, answers, tokens)}


def plain(scratch: Path, rows: Path, answers: int, tokens: int) -> dict[str, Any]:
    """`benchmarks/plain_grpo.py`."""
    training = {
        "max_steps": 1, "per_device_train_batch_size": answers, "num_generations": answers, "num_iterations": 2,
        "max_completion_length": tokens, "generation_kwargs": {"min_new_tokens": tokens}, "learning_rate": 1e-5,
    }  # fmt: skip
    asked = {
        "model": str(scratch / "model"), "rows": str(rows), "output_dir": str(scratch / "TRL"), "bfloat16": True,
        "attn_implementation": "sdpa", "training": training,
    }  # fmt: skip
    command = [sys.executable, str(Path(__file__).with_name("plain_grpo.py")), json.dumps(asked)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    generate, both = found["parts"]["generate"], found["parts"]["both"]
    parts = {"generate": generate, "score": both - generate, "reward": 0.0, "update": found["step"] - both}
    return {f"time/{name}": seconds for name, seconds in parts.items()} | {"length": found["length"]}


def ours(scratch: Path, rows: Path, answers: int, tokens: int) -> dict[str, Any]:
    """`recipe=grpo`."""
    (scratch / "mine.py").write_text(REWARD, encoding="utf-8")
    folder = scratch / "ours"
    words = [
        "recipe=grpo", "adapter=lora", f"model.model_name_or_path={scratch}/model", "data=columns",
        f"data.train_file={rows}", "data.prompt_column=question", "data.completion_column=answer", "reward=none",
        f"reward.functions.own={scratch}/mine.py:own", "tracker=none", "eval=none", "export=none",
        "train.max_steps=1", "train.warmup_steps=0",
        f"train.per_device_train_batch_size={answers}", f"train.num_generations={answers}",
        f"train.max_completion_length={tokens}", f"output_dir={folder}",
        "train.extra.generation_kwargs={min_new_tokens: " + str(tokens) + "}",
        "data.validation_split_percentage=0", "train.num_iterations=2",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "gemma_tune", *words], check=True, stdout=subprocess.DEVNULL)
    line = next(line for line in logged(folder) if "loss" in line)
    parts = {k: v for k, v in line.items() if k.startswith("time/")}
    return parts | {"length": line["completions/mean_length"]}
