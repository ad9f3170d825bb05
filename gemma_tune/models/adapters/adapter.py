"""Attaches LoRA adapters, and counts trained and quantized weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import ParamWrapper
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from gemma_tune.config import AdapterConfig
from gemma_tune.config.adapter import ALL_LINEAR
from gemma_tune.errors import UserError
from gemma_tune.models.adapters.adapter_checks import check_matches, check_names, not_placed
from gemma_tune.models.adapters.adapter_config import stored_rows
from gemma_tune.models.adapters.adapter_files import check_reach, continued, load_adapter
from gemma_tune.models.adapters.stored_adapter import read_adapter
from gemma_tune.models.adapters.token_rows import grown
from gemma_tune.models.adapters.trained_rows import fill_reference, tell_head
from gemma_tune.models.adapters.weight_counts import WeightCounts
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.estimate.size import empty_model
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.four_bit import is_four_bit
from gemma_tune.models.four_bit_weights import init_loftq
from gemma_tune.models.kernels.lora import FUSED_LAYERS, Layers
from gemma_tune.models.load import family_of
from gemma_tune.models.source import Source
from gemma_tune.models.towers.stored_towers import check_stored_towers
from gemma_tune.models.unwrap import plain_name

# The name that TRL gives to the copy of an adapter that is its reference
_REFERENCE = "ref"


def count(model: nn.Module) -> WeightCounts:
    """Counts the weights of a model."""
    layers = [m for m in model.modules() if is_four_bit(m)]
    packed = {id(m.weight): m.in_features * m.out_features for m in layers}
    total = trainable = 0
    for p in model.parameters():
        n = packed.get(id(p), p.numel())  # a 4-bit tensor holds two weights a byte
        total += n
        trainable += n if p.requires_grad else 0
    adapted = sum(hasattr(m, "lora_A") for m in model.modules())
    config = getattr(model, "config", None)
    family = FAMILIES.get(getattr(config, "model_type", ""))
    fused = [p for n, p in model.named_parameters() if family and family.is_expert(plain_name(n))]
    bits = max((8 * p.element_size() for p in fused), default=0)
    experts = sum(p.numel() for p in fused)
    on_experts = sum(isinstance(m, ParamWrapper) for m in model.modules())
    return WeightCounts(
        total, trainable, sum(packed.values()), len(layers), adapted, experts, len(fused), bits, on_experts
    )


def attach(
    model: Any, adapter: AdapterConfig, source: Source, layers: Layers = FUSED_LAYERS, trained_whole: Sequence[str] = ()
) -> Any:
    """Makes the weights to train trainable: an adapter's, or all.

    Args:
        model: The loaded base.
        adapter: `peft_type=none` trains every weight.
        source: Names the adapter to continue from, and where LoftQ finds the 16-bit weights.
        layers: Our classes to use instead of PEFT's adapter layers, by the class of the adapted layer.
        trained_whole: Layers that are trained in full and saved with the adapter: the head of a classifier.

    Returns:
        The model itself, or a PeftModel around it.

    Raises:
        UserError: Names that match no layer, or a stored adapter of another shape.
    """
    if source.adapter is not None:
        continued = load_adapter(model, adapter, source.adapter)
        _check_reach(continued)
        _complete(continued)
        return continued
    if adapter.peft_type == "none":
        return model
    loftq = adapter.init_lora_weights == "loftq"
    peft_model = _placed(model, adapter, source, layers, trained_whole)
    if loftq and not init_loftq(peft_model.get_base_model(), CheckpointFiles.of(source, family_of(source))):
        raise UserError(
            f"adapter.init_lora_weights=loftq needs the 16-bit weights, and {source.base} has no .safetensors files."
        )
    return peft_model


def _placed(
    model: Any,
    adapter: AdapterConfig,
    source: Source,
    layers: Layers = FUSED_LAYERS,
    trained_whole: Sequence[str] = (),
) -> Any:
    """A PeftModel with a new adapter, as `attach` describes it."""
    loftq = adapter.init_lora_weights == "loftq"
    family = FAMILIES[model.config.model_type]
    config = LoraConfig(
        task_type="SEQ_CLS" if trained_whole else "CAUSAL_LM",
        modules_to_save=[*trained_whole, *adapter.modules_to_save] or None,
        trainable_token_indices=adapter.trainable_token_indices or None,
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=list(family.linear_layers) if adapter.target_modules == ALL_LINEAR else adapter.target_modules,
        target_parameters=adapter.target_parameters or None,
        layers_to_transform=adapter.layers_to_transform,
        rank_pattern=dict(adapter.rank_pattern),
        alpha_pattern=dict(adapter.alpha_pattern),
        use_dora=adapter.use_dora,
        use_rslora=adapter.use_rslora,
        init_lora_weights=True if loftq else adapter.init_lora_weights,
        revision=source.revision,  # the saved adapter names the base that it was trained on
    )
    config._register_custom_module(layers)
    check_names(model, adapter)
    try:
        peft_model = get_peft_model(model, config)
    except ValueError as error:
        raise not_placed(model, error) from error
    _check_reach(peft_model)
    check_matches(peft_model, adapter)
    _complete(peft_model)
    return peft_model


def _complete(model: Any) -> None:
    """What PEFT leaves out beside the LoRA layers: the head's missing bias, and float32 for layers trained whole."""
    tell_head(model)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for parameter in module.modules_to_save.parameters():
                parameter.data = parameter.data.float()  # small updates would be rounded away


def check_adapter(adapter: AdapterConfig, source: Source, config: Any, trains: bool, merges: bool) -> None:
    """Refuses, before a weight is loaded, an adapter or layers to adapt that don't fit.

    Args:
        adapter: As for `check_source`, and so is the rest.
        source: Names the base, and the adapter on it.
        config: The base's configuration.
        trains: Whether an adapter is trained.
        merges: Whether the stored adapter is merged into the weights.

    Raises:
        UserError: See `attach`.
    """
    rows = [*adapter.trainable_token_indices, *(stored_rows(source.adapter) if source.adapter else ())]
    empty = empty_model(grown(config.get_text_config(), rows))
    if source.adapter is not None:
        check_stored_towers(source.adapter, config)
    if source.adapter is not None and (merges or not trains):
        stored = read_adapter(source.adapter, empty)
        if merges:
            check_reach(source.adapter, stored)
    elif source.adapter is not None:
        continued(empty, adapter, source.adapter)
        return
    if trains and adapter.peft_type != "none":
        _placed(empty, replace(adapter, init_lora_weights=True), source)


def _check_reach(model: Any) -> None:
    """Raises UserError for an adapter on the embedding or the head: they are one tied matrix, and would diverge."""
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "lora_A") and (name == "lm_head" or isinstance(module.get_base_layer(), nn.Embedding)):
            raise UserError(f"adapter.target_modules reaches {name}: head and embedding are one matrix.")


@contextlib.contextmanager
def plain_copies(model: Any) -> Iterator[None]:
    """While this is active, a copy of the model's adapter is initialised with zeros before it is filled.

    TRL would initialise its copy, the reference, like the adapter itself; with PiSSA and OLoRA that changes the base a
    second time.
    """
    config = model.peft_config["default"] if isinstance(model, PeftModel) else None
    if config is None:
        yield
        return
    init, config.init_lora_weights = config.init_lora_weights, True
    try:
        yield
    finally:
        config.init_lora_weights = init


def complete_reference(model: Any) -> None:
    """Gives TRL's copy of the adapter the trained rows of the embedding, which TRL doesn't copy, and layers that are
    trained whole in float32: TRL's copy rounds them."""
    if not isinstance(model, PeftModel) or _REFERENCE not in model.peft_config:
        return
    fill_reference(model, _REFERENCE)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.modules_to_save[_REFERENCE].float().load_state_dict(module.modules_to_save["default"].state_dict())


def drop_reference(model: Any) -> None:
    """Removes TRL's copy of the adapter, its reference, if there is one."""
    if isinstance(model, PeftModel) and _REFERENCE in model.peft_config:
        model.delete_adapter(_REFERENCE)


def weights_beside(model: Any) -> int:
    """Trained weights of an adapter outside its LoRA layers: norms and rows of the embedding that are its own."""
    own = (".modules_to_save.", ".trainable_tokens_")
    named = ((f".{name}", p) for name, p in model.named_parameters() if p.requires_grad)
    return sum(p.numel() for name, p in named if any(part in name for part in own))
