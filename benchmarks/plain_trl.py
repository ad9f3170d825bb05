"""A plain TRL script, as its documentation has it, on the rows of `make bench-sft` and `make bench-speed`.

python benchmarks/plain_trl.py '{"model": …, "rows": …, "four_bit": …, "training": {…}}'
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from step_lines import StepLines
from transformers import AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer


def main(asked: dict[str, Any]) -> None:
    """Trains, and writes the losses and the seconds of the training loop as one line of JSON."""
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    tokenizer.chat_template = asked["chat_template"]  # Gemma's own doesn't mark what is trained on
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    training = SFTConfig(
        output_dir=asked["output_dir"],
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        assistant_only_loss=True,
        model_init_kwargs={"dtype": "bfloat16", "attn_implementation": asked.get("attn_implementation", "sdpa")}
        | ({"quantization_config": four_bit} if asked["four_bit"] else {}),
        **asked["training"],
    )
    trainer = SFTTrainer(
        model=asked["model"],
        args=training,
        train_dataset=load_dataset("json", data_files=asked["rows"], split="train"),
        processing_class=tokenizer,
        callbacks=[StepLines()],
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    seconds = trainer.train().metrics["train_runtime"]
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    print(json.dumps({"seconds": seconds, "losses": losses}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
