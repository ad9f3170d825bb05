"""A plain TRL script for GRPO, as its documentation would have one write it, on the rows of `make bench-rl`.

python benchmarks/plain_grpo.py '{"model": …, "rows": …, "training": {…}}'
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from datasets import load_dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer


def right(completions: list[Any], answer: list[str], **given: Any) -> list[float]:
    """1 where the last number is the row's."""
    found = [re.findall(r"-?\d+", completion[0]["content"]) for completion in completions]
    return [float(bool(numbers) and numbers[-1] == wanted) for numbers, wanted in zip(found, answer, strict=True)]


def main(asked: dict[str, Any]) -> None:
    """Trains, and writes the rewards and the seconds of the training loop as one line of JSON."""
    rows = load_dataset("json", data_files=asked["rows"], split="train")
    rows = rows.map(lambda row: {"prompt": [{"role": "user", "content": row["question"]}]}, remove_columns=["question"])
    training = GRPOConfig(
        output_dir=asked["output_dir"], use_cpu=True, report_to="none", save_strategy="no", logging_steps=1,
        gradient_checkpointing=False, bf16=False, **asked["training"],
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            asked["model"], dtype="float32", attn_implementation=asked["attn_implementation"]
        ),
        args=training,
        reward_funcs=right,
        train_dataset=rows,
    )
    seconds = trainer.train().metrics["train_runtime"]
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    print(json.dumps({"seconds": seconds, "rewards": rewards}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
