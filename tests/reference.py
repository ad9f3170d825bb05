"""Losses with plain Transformers: no TRL, no PEFT and no code of ours. The chat's text is built by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig


def plain_rows(path: Path, n: int) -> list[list[dict[str, Any]]]:
    """The conversations of the first n lines; only those that are user and assistant in turn."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:n]]
    return [r["messages"] for r in rows]


def ids_and_mask(tokenizer: Any, messages: list[dict[str, Any]]) -> tuple[list[int], list[bool]]:
    """Token ids, and which of them are an answer's or the stop token's: each turn's ids from its prefix."""
    text, mask = "<bos>", [False]
    for message in messages:
        role = {"user": "user", "assistant": "model"}[message["role"]]
        text += f"<start_of_turn>{role}\n"
        head = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        text += message["content"].strip() + "<end_of_turn>"
        end = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        text += "\n"
        whole = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        mask += [False] * (head - len(mask)) + [role == "model"] * (end - head) + [False] * (whole - end)
    return tokenizer(text, add_special_tokens=False)["input_ids"], mask


def load_plain(folder: Path, four_bit: bool = False) -> Any:
    """The model in float32; 4-bit with the settings of QLoRA's paper."""
    config = None
    if four_bit:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
    )
    # Training mode (there is no dropout): in evaluation mode bitsandbytes changes to a bfloat16 kernel on some CPUs.
    return model.train()


def mean_loss(model: Any, rows: list[tuple[list[int], list[bool]]]) -> float:
    """Mean negative log-likelihood over all trained tokens, each row by itself, without padding."""
    total, tokens = 0.0, 0
    for ids, mask in rows:
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for i in range(1, len(ids)):
            if mask[i]:
                total -= log_probs[i - 1, ids[i]].item()
                tokens += 1
    return total / tokens


def rows_for(folder: Path, path: Path, n: int) -> list[tuple[list[int], list[bool]]]:
    """The first n conversations as ids and masks."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [ids_and_mask(tokenizer, m) for m in plain_rows(path, n)]
