"""What can't be written of a model is refused before a weight of it is loaded."""

from __future__ import annotations

import importlib.util
from typing import Any

from gemma_tune.config import Config
from gemma_tune.errors import UserError
from gemma_tune.export import mlx_folder
from gemma_tune.export.gguf_files import check_gguf
from gemma_tune.models.source import Source


def check_writable(cfg: Config, config: Any, tokenizer: Any, source: Source) -> None:
    """Raises UserError where an engine can't compute the model, or hold its tokenizer, and its file is asked for.

    Args:
        cfg: `export`.
        config: The model's configuration.
        tokenizer: Its tokenizer; None: not on this machine.
        source: What it is loaded from.
    """
    check_gguf(cfg, config, tokenizer, source)
    if "mlx" in cfg.export.formats:
        mlx_folder.check_config(config.get_text_config())
    if "phone" in cfg.export.formats and importlib.util.find_spec("transformers.integrations.gemma_quant") is None:
        raise UserError("export.formats: this Transformers doesn't know the format phone: pip install -U transformers")
