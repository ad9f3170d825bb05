"""What can't be written of a model is refused before a weight of it is loaded."""

from __future__ import annotations

import importlib.util
from typing import Any

from gemma_tune.config import Config
from gemma_tune.errors import UserError
from gemma_tune.models.folders import ADAPTER_VLLM
from gemma_tune.models.source import Source
from gemma_tune.validation.adapter_parts import AdapterParts
from gemma_tune.validation.adapter_vllm import not_in_adapter_vllm


def check_writable(cfg: Config, config: Any, tokenizer: Any, source: Source) -> None:
    """Raises UserError where an engine can't compute the model, or hold its tokenizer, and its file is asked for.

    Args:
        cfg: `export`.
        config: The model's configuration.
        tokenizer: Its tokenizer; None: not on this machine.
        source: What it is loaded from.
    """
    # Writers of files import PEFT, gguf, compressed-tensors: each where its format is asked for
    if any(name.startswith("gguf") for name in cfg.export.formats):
        from gemma_tune.export.gguf_files import check_gguf

        check_gguf(cfg, config, tokenizer, source)
    if ADAPTER_VLLM in cfg.export.formats:
        _check_adapter_vllm(cfg, source)
    if "mlx" in cfg.export.formats:
        from gemma_tune.export import mlx_folder

        mlx_folder.check_config(config.get_text_config())
    if "phone" in cfg.export.formats and importlib.util.find_spec("transformers.integrations.gemma_quant") is None:
        raise UserError("export.formats: this Transformers doesn't know the format phone: pip install -U transformers")


def _check_adapter_vllm(cfg: Config, source: Source) -> None:
    if source.adapter is not None:
        from gemma_tune.export import adapter_vllm
        from gemma_tune.models.adapters.adapter_config import stored_config

        adapter_vllm.check_adapter(source.adapter, stored_config(source.adapter))
    elif not cfg.traits.trains:
        raise UserError(
            f"export.formats={ADAPTER_VLLM}: {cfg.model.model_name_or_path} is no adapter on a base that is on this "
            "machine; use merged, which holds the whole model."
        )
    elif not cfg.adapter.target_parameters:
        raise UserError(not_in_adapter_vllm(AdapterParts()) or "")
