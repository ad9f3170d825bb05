"""`export=…`: what users take away beside the adapter."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import option


@dataclass
class ExportConfig:
    """Names are those of `save_pretrained`, where it has one."""

    format: str = option("merged", "merged: a plain Transformers folder.", choices=("none", "merged"))
    dtype: str = option("bfloat16", "Type of the exported weights.", choices=("bfloat16", "float32"))
    max_shard_size: str = option("5GB", "Largest file of the exported weights.")
