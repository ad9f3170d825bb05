"""Attaches LoRA adapters, continues from stored ones, counts what is trained, and saves."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from gemma_tune.config import AdapterConfig
from gemma_tune.errors import UserError
from gemma_tune.models.four_bit import init_loftq, is_four_bit
from gemma_tune.models.load import key_mapping_of
from gemma_tune.models.source import Source

# What a stored adapter decides, and what the configuration must not contradict.
_STORED = ("r", "lora_alpha", "use_dora", "use_rslora")


@dataclass(frozen=True)
class Counts:
    """What is trained and what is quantised, in numbers of weights.

    Attributes:
        total: All weights of the model, the adapter's among them; a tied matrix counts once.
        trainable: Weights with a gradient.
        four_bit: Weights held in 4 bit.
        four_bit_layers: Linear layers held in 4 bit.
        adapted_layers: Layers with an adapter.
    """

    total: int
    trainable: int
    four_bit: int
    four_bit_layers: int
    adapted_layers: int

    def line(self) -> str:
        """One line for the terminal and the report."""
        parts = [f"trained: {self.trainable:,} of {self.total:,} weights ({self.trainable / self.total:.2%})"]
        if self.adapted_layers:
            parts.append(f"adapters on {self.adapted_layers} layers")
        if self.four_bit:
            parts.append(
                f"4-bit: {self.four_bit:,} weights ({self.four_bit / self.total:.2%}) in {self.four_bit_layers} layers"
            )
        return ", ".join(parts)


def count(model: nn.Module) -> Counts:
    """Counts the weights of a model."""
    layers = [m for m in model.modules() if is_four_bit(m)]
    packed = {id(m.weight): m.in_features * m.out_features for m in layers}
    total = trainable = 0
    for p in model.parameters():
        n = packed.get(id(p), p.numel())  # a 4-bit tensor holds two weights a byte
        total += n
        trainable += n if p.requires_grad else 0
    adapted = sum(hasattr(m, "lora_A") for m in model.modules())
    return Counts(total, trainable, sum(packed.values()), len(layers), adapted)


def attach(model: Any, adapter: AdapterConfig, source: Source) -> Any:
    """The model with what is to be trained set trainable.

    Args:
        model: The loaded base.
        adapter: `peft_type=none` trains every weight.
        source: Names the adapter to continue from, and where LoftQ finds the 16-bit weights.

    Returns:
        The model itself, or a PeftModel around it.

    Raises:
        UserError: Names that match no layer, or a stored adapter of another shape.
    """
    if source.adapter is not None:
        return _continue(model, adapter, source.adapter)
    if adapter.peft_type == "none":
        return model
    loftq = adapter.init_lora_weights == "loftq"
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=adapter.target_modules,
        use_dora=adapter.use_dora,
        use_rslora=adapter.use_rslora,
        init_lora_weights=True if loftq else adapter.init_lora_weights,
    )
    try:
        peft_model = get_peft_model(model, config)
    except ValueError as error:
        leaves = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise UserError(
            f"adapter.target_modules: {str(error).splitlines()[0]} Linear layers: {', '.join(leaves)}."
        ) from error
    if loftq and not init_loftq(peft_model.get_base_model(), source, key_mapping_of(source)):
        raise UserError(
            f"adapter.init_lora_weights=loftq needs the 16-bit weights, and {source.base} has no .safetensors files."
        )
    return peft_model


def _continue(model: Any, adapter: AdapterConfig, folder: Path) -> Any:
    if adapter.peft_type == "none":
        raise UserError(
            f"{folder} is an adapter, and adapter=none trains every weight: continue it with adapter=lora, or name "
            "the merged model's folder (export/merged)."
        )
    stored = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    differing = [k for k in _STORED if stored.get(k) != getattr(adapter, k)]
    if differing:
        raise UserError(
            *(f"adapter.{k}={getattr(adapter, k)}, but {folder} has {stored.get(k)}: set adapter.{k}={stored.get(k)}."
              for k in differing)
        )  # fmt: skip
    return PeftModel.from_pretrained(model, str(folder), is_trainable=True)


class AdapterSaver:
    """Saves an adapter so that it fits the published base.

    PiSSA and OLoRA take the adapter's start out of the base's weights. An adapter saved as it stands would only fit
    that changed base, so what was learned is saved as a plain LoRA of twice the rank (PEFT's conversion).
    """

    def __init__(self, model: Any, adapter: AdapterConfig) -> None:
        self._start: tempfile.TemporaryDirectory[str] | None = None
        if isinstance(model, PeftModel) and str(adapter.init_lora_weights).startswith(("pissa", "olora")):
            self._start = tempfile.TemporaryDirectory(prefix="adapter-start-")
            config = model.peft_config["default"]
            init, config.init_lora_weights = config.init_lora_weights, True
            model.save_pretrained(self._start.name)
            config.init_lora_weights = init

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Writes the adapter, the tokenizer with its template, and the generation config that stops."""
        kwargs = {"path_initial_model_for_weight_conversion": self._start.name} if self._start else {}
        model.save_pretrained(folder, **kwargs)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the run's report.md says it all
        tokenizer.save_pretrained(folder)
        model.get_base_model().generation_config.save_pretrained(folder)
        if self._start:
            self._start.cleanup()
