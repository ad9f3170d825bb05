"""A plain TRL script for GRPO, as its documentation would have one write it: for `make bench-rl` and `bench-speed`.

python benchmarks/plain_grpo.py '{"model": …, "rows": …, "training": {…}}'
"""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer


def right(completions: list[Any], answer: list[str], **given: Any) -> list[float]:
    """1 where the last number is the row's."""
    found = [re.findall(r"-?\d+", completion[0]["content"]) for completion in completions]
    return [float(bool(numbers) and numbers[-1] == wanted) for numbers, wanted in zip(found, answer, strict=True)]


def length(completion_ids: list[list[int]], **given: Any) -> list[float]:
    """One that differs between completions of random weights, as that of `make bench-speed`."""
    return [float(sum(ids) % 7) for ids in completion_ids]


class TimedTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's own, and the seconds of generation, and of generation and scoring together."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds = {"generate": 0.0, "both": 0.0}

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        found = super()._generate_single_turn(*args, **kwargs)
        self.seconds["generate"] += time.perf_counter() - begun
        return found

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        begun = time.perf_counter()
        found = super()._generate_and_score_completions(inputs)
        self.seconds["both"] += time.perf_counter() - begun
        return found


def main(asked: dict[str, Any]) -> None:
    """Trains, and writes the rewards and the seconds of the training loop and of its parts as one line of JSON.

    `bfloat16` trains an adapter of a model in bfloat16; without it all weights are trained, in float32.
    """
    narrow = asked.get("bfloat16", False)
    rows = load_dataset("json", data_files=asked["rows"], split="train")
    rows = rows.map(lambda row: {"prompt": [{"role": "user", "content": row["question"]}]}, remove_columns=["question"])
    training = GRPOConfig(
        output_dir=asked["output_dir"], use_cpu=True, report_to="none", save_strategy="no", logging_steps=1,
        gradient_checkpointing=False, bf16=narrow, **asked["training"],
    )  # fmt: skip
    trainer = TimedTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            asked["model"], dtype="bfloat16" if narrow else "float32", attn_implementation=asked["attn_implementation"]
        ),
        args=training,
        reward_funcs=length if narrow else right,
        train_dataset=rows,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if narrow else None,
    )
    seconds = trainer.train().metrics["train_runtime"]
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    line = next(line for line in trainer.state.log_history if "loss" in line)
    lengths = line["completions/mean_length"]
    found = {"seconds": seconds, "rewards": rewards, "parts": trainer.seconds, "step": line["step_time"]}
    print(json.dumps({**found, "length": lengths}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
