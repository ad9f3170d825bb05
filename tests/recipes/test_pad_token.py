"""A checkpoint whose padding token is its stop token: the stop token is trained all the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from every_recipe import STEPS, short_words
from short_runs import losses, short_run
from transformers import AutoTokenizer

from gemma_tune.config import ModelConfig
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.source import find_source


def padded_with(token: str, tiny: Path, folder: Path) -> Path:
    """A copy of the embedded model with another padding token, in each of its files that name one."""
    shutil.copytree(tiny, folder)
    number = AutoTokenizer.from_pretrained(tiny).convert_tokens_to_ids(token)
    for name, key, value in (
        ("tokenizer_config.json", "pad_token", token),
        ("config.json", "pad_token_id", number),
        ("generation_config.json", "pad_token_id", number),
    ):
        file = folder / name
        file.chmod(0o644)
        file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), key: value}), encoding="utf-8")
    assert AutoTokenizer.from_pretrained(folder).pad_token == token
    return folder


@pytest.mark.parametrize("token", ["<eos>", "<end_of_turn>", "<bos>"])
def test_padding_is_never_a_token_of_the_chat(token: str, tiny: Path, tmp_path: Path) -> None:
    """Also for the score of a reward model, which is read at the last token that isn't padding."""
    folder = padded_with(token, tiny, tmp_path / "model")
    tokenizer = load_tokenizer(find_source(ModelConfig(model_name_or_path=str(folder))))
    assert (tokenizer.pad_token, tokenizer.pad_token_id, tokenizer.padding_side) == ("<pad>", 0, "right")


@pytest.mark.slow
def test_the_stop_token_is_trained(finished: Any, tiny: Path, tmp_path: Path) -> None:
    """Padded batches: the same losses as with `<pad>`."""
    whole, _ = finished("lora_sft")
    model = padded_with("<end_of_turn>", tiny, tmp_path / "model")
    words = [*short_words("lora_sft", whole), f"model.model_name_or_path={model}", "train.save_steps=null"]
    words += ["export=none", "eval.evaluators=[]", "eval.num_samples=0"]
    short_run("lora_sft", tmp_path / "run", *words, steps=STEPS)
    assert losses(tmp_path / "run") == losses(whole)
