"""Makes a folder with the shape of Gemma 3 270M and random weights, for figures: nobody can download one in a test.

python tests/shape_270m.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

from gemma_tune.run.paths import ASSETS


def make(folder: Path, **sizes: Any) -> None:
    """18 layers, width 640, 4 heads of 256, 1 KV head, MLP 2048, vocabulary 262,144; bfloat16, 536 MB.

    The tokenizer is the embedded model's: its 1,536 ids are a part of the vocabulary.

    Args:
        folder: Where to.
        sizes: Of the configuration, in place of these.
    """
    torch.manual_seed(0)
    published = {
        "vocab_size": 262_144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    config = Gemma3TextConfig(**published | sizes)
    torch.set_default_dtype(torch.bfloat16)
    Gemma3ForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    AutoTokenizer.from_pretrained(ASSETS / "tiny").save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
