"""Which adapters a GGUF LoRA file can hold; asked before training and of a stored adapter. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from gemma_tune.config import Config
from gemma_tune.validation.adapter_parts import AdapterParts, planned_parts

_INSTEAD = "use gguf_f16, gguf_q8_0 or merged, which hold the whole model"


_WHY = {
    "dora": "DoRA rescales the rows of the weights",
    "modules_to_save": "modules_to_save are whole layers",
    "experts": "fused experts are adapted (target_parameters)",
    "towers": "towers for images and sound are trained with the adapter (model.train_towers)",
    "token_rows": "rows of the embedding are trained (added tokens, trainable_token_indices)",
}


def not_in_gguf_lora(parts: AdapterParts) -> str | None:
    """Why llama.cpp can't add an adapter with these parts to its base, with what to do; None where it can."""
    if found := parts.among(_WHY):
        return f"a GGUF LoRA file holds products of two matrices alone, and {', '.join(found)}; {_INSTEAD}."
    return None


def gguf_lora_problems(cfg: Config) -> Iterator[str]:
    """What a training with `export.formats=gguf_lora` can't write at its end."""
    a = cfg.adapter
    if "gguf_lora" not in cfg.export.formats or not cfg.traits.trains:
        return
    if a.peft_type == "none":
        yield f"export.formats=gguf_lora with adapter=none: there is no adapter; {_INSTEAD}."
        return
    if why := not_in_gguf_lora(planned_parts(cfg)):
        yield f"export.formats=gguf_lora: {why}"
    init = str(a.init_lora_weights).lower()
    if init.startswith("loftq"):
        yield (
            "export.formats=gguf_lora with adapter.init_lora_weights=loftq: this adapter makes up for the rounding of "
            f"its 4-bit base, and no GGUF file of the base has that rounding; {_INSTEAD}."
        )
    elif init.startswith(("pissa", "olora")):  # their start is taken out of the weights
        yield (
            f"export.formats=gguf_lora with adapter.init_lora_weights={init}: it trains on a changed base. The adapter "
            "that is saved fits the published one: afterwards, recipe=export export=gguf_lora "
            "model.model_name_or_path=RUN."
        )
