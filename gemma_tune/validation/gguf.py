"""Checks of a GGUF file as the model: evaluate, chat and serve take one; llama.cpp runs it as it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from gemma_tune.config import ChatConfig, Config, ModelConfig
from gemma_tune.config.methods import Kind
from gemma_tune.config.quant import STORED
from gemma_tune.run.paths import resolve
from gemma_tune.validation.suggest import missing_path

# Every other key of `model` is about loading weights with Transformers.
_WITH_LLAMA_CPP = (
    "model_name_or_path", "base_url", "served_name", "tokenizer_name_or_path", "chat_template", "images_kwargs",
)  # fmt: skip


def gguf_problems(cfg: Config) -> Iterator[str]:
    """What can't be done with a GGUF file."""
    name = cfg.model.model_name_or_path
    if not cfg.traits.gguf:
        more = (
            f" Its codes are trained on with quant={STORED} quant.checkpoint_file={name} on the folder of a checkpoint "
            "of this size (model.model_name_or_path)."
        )
        yield (
            f"model.model_name_or_path={name}: recipe={cfg.recipe} needs a checkpoint, and this is a GGUF file, which "
            "recipe=evaluate, recipe=chat and recipe=serve take; name the checkpoint or the run that it was made from."
            f"{more if cfg.traits.quantizes and cfg.traits.trains else ''}"
        )
        return
    if not resolve(name).is_file():
        yield missing_path("model.model_name_or_path", name, "file")
        return
    if importlib.util.find_spec("xllamacpp") is None:
        yield (
            f"model.model_name_or_path={name}: llama.cpp, which runs GGUF files, isn't installed: "
            "pip install 'gemma_tune[gguf]' brings it."
        )
    chats = cfg.traits.kind is Kind.CHAT
    if chats and cfg.chat.batch_size != ChatConfig().batch_size:
        yield "chat.batch_size has no effect on a GGUF file, which answers one prompt after the other; leave it out."
    if not chats and "kl" in cfg.eval.evaluators:  # its reference is loaded by Transformers, with these
        return
    for key, default in vars(ModelConfig()).items():
        value = getattr(cfg.model, key)
        if key not in _WITH_LLAMA_CPP and value not in (default, "cpu"):
            yield f"model.{key} has no effect on a GGUF file, which llama.cpp runs as it is on the CPU; leave it out."
