"""Merges an adapter into the weights, and holds the merged model to the logits that the adapter itself gives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from gemma_tune.errors import RunError
from gemma_tune.models.four_bit import is_four_bit
from gemma_tune.models.four_bit_weights import weight_of
from gemma_tune.models.logits import float32_layers, logits_of, states_of
from gemma_tune.models.unwrap import language_part, stored_tensors

ADAPTER = "default"  # PEFT's name of the adapter that is trained, or loaded

ROWS, _TOKENS = 4, 32
# Of the largest logit. Both models are computed in float32, so that rounding is all that differs: 2e-6 on the embedded
# model, 2.5e-5 on a random Gemma 4, where changing each embedded number by 2⁻²² of itself moves logits by 1.1e-5. Wrong
# merges were off by 0.09 and more.
_MOST = 1e-4

Read = Callable[[], torch.Tensor]


class MergeDiffers(RunError):
    """Merged weights that are another model than the base with its adapter."""


def merged_weight(layer: LoraLayer, adapter: str = ADAPTER) -> torch.Tensor:
    """W + ΔW in float32, [out, in]; with DoRA rescaled to the learned magnitude of each row.

    PEFT's own merge of a 4-bit layer rounds the sum to 4 bit again; this doesn't.
    Source of the DoRA formula: https://arxiv.org/abs/2402.09353, equation 5.
    """
    merged = weight_of(layer.get_base_layer()) + layer.get_delta_weight(adapter).detach().float().cpu()
    magnitudes = getattr(layer, "lora_magnitude_vector", {})
    if adapter in magnitudes:
        magnitude = magnitudes[adapter].weight.detach().float().cpu()  # [out]
        merged = merged * (magnitude / merged.norm(dim=1)).unsqueeze(1)
    return merged


def _merged_parameters(wrapper: Any) -> Iterator[tuple[str, Read]]:
    """Every tensor of the module inside PEFT's wrappers, W + ΔW of those that have one, float32 on the CPU."""
    wrappers: dict[str, Any] = {}
    module = wrapper
    while isinstance(module, ParamWrapper):
        wrappers[module.parameter_name] = module
        module = module.base_layer
    for own, tensor in stored_tensors(module, recurse=False):
        if own in wrappers:
            yield own, partial(_merged_parameter, tensor, wrappers[own])
        else:
            yield own, tensor.detach().cpu


def _merged_parameter(tensor: torch.Tensor, wrapper: Any) -> torch.Tensor:
    with torch.no_grad():
        return with_expert_adapter(tensor.float(), wrapper, ADAPTER).cpu()


def with_expert_adapter(weight: torch.Tensor, wrapper: Any, adapter: str) -> torch.Tensor:
    """W + s·B·A of fused experts, [E, out, in], as PEFT's wrapper of the tensor adds it.

    Args:
        weight: W, float32.
        wrapper: PEFT's `ParamWrapper`; its factors of all experts stand in two matrices.
        adapter: The adapter's name.
    """
    a, b = expert_factors(wrapper, adapter)
    return torch.baddbmm(weight, b.float(), a.float(), alpha=wrapper.scaling[adapter])


def expert_factors(wrapper: Any, adapter: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A [E, r, in] and B [E, out, r] of PEFT's wrapper of a tensor of fused experts; see `with_expert_adapter`."""
    a, b = (part[adapter].weight for part in (wrapper.lora_A, wrapper.lora_B))
    a = a.reshape(wrapper.num_experts, -1, a.shape[-1])
    return a, b.reshape(len(b), -1, wrapper.num_experts).permute(2, 0, 1)


def _with_tokens(wrapper: TrainableTokensWrapper) -> torch.Tensor:
    """The embedding with the trained rows in their places, float32, [V, H]."""
    layer = wrapper.token_adapter
    weight = weight_of(layer.get_base_layer()).clone()
    weight[layer.token_indices[ADAPTER]] = layer.trainable_tokens_delta[ADAPTER].detach().float().cpu()
    return weight


def _is_merged(module: nn.Module) -> bool:
    return isinstance(module, LoraLayer | TrainableTokensWrapper | ModulesToSaveWrapper)


def merged_weights(model: Any) -> Iterator[tuple[str, Read]]:
    """Every weight under its plain name; merged when it is called for, on the CPU. A tied head is the embedding."""
    base = language_part(model)
    tied = base.config.get_text_config().tie_word_embeddings
    inside = "\0"  # the prefix of the layer that the walk is in; its parts are in the weight that was yielded
    for name, module in base.named_modules():
        if name.startswith(inside):
            continue
        if _is_merged(module) or (tied and name == "lm_head"):
            inside = f"{name}."
        if tied and name == "lm_head":
            continue
        if isinstance(module, ParamWrapper):
            yield from ((f"{name}.{own}", read) for own, read in _merged_parameters(module))
        elif isinstance(module, LoraLayer):
            yield f"{name}.weight", partial(merged_weight, module)
        elif isinstance(module, TrainableTokensWrapper):
            yield f"{name}.weight", partial(_with_tokens, module)
        elif isinstance(module, ModulesToSaveWrapper):
            for own, parameter in module.modules_to_save[ADAPTER].named_parameters():
                yield f"{name}.{own}", parameter.detach().cpu
        elif is_four_bit(module):
            yield f"{name}.weight", partial(weight_of, module)
        else:
            for own, tensor in stored_tensors(module, recurse=False):
                yield f"{name}.{own}", tensor.detach().cpu


class _Merged(nn.Module):  # type: ignore[misc]
    """Stands in for a layer with an adapter: the plain layer with the merged weights, which are read at each call."""

    def __init__(self, plain: nn.Module, weights: dict[str, Read], device: torch.device) -> None:
        super().__init__()
        self._plain = (plain,)  # in a tuple, so that its weights are none of the model's
        self._weights, self._device = weights, device

    @property
    def weight(self) -> torch.Tensor:
        """The plain layer's weight: its device and type are asked for."""
        weight: torch.Tensor = self._plain[0].weight
        return weight

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The plain layer's output."""
        found = {own: read().float().to(self._device) for own, read in self._weights.items()}
        if is_four_bit(self._plain[0]):
            return functional.linear(args[0], found["weight"])
        output: torch.Tensor = functional_call(self._plain[0], found, args, kwargs)
        return output


def _plain_layer(module: Any) -> nn.Module:
    if isinstance(module, LoraLayer):
        return _plain_layer(module.get_base_layer())
    plain: nn.Module = getattr(module, "original_module", module)
    return plain


@contextlib.contextmanager
def _as_merged(model: Any) -> Iterator[None]:
    """Within it, the layers with an adapter compute with the weights that `merged_weights` gives, float32."""
    base, reads = language_part(model), dict(merged_weights(model))
    device = base.get_input_embeddings().weight.device
    tied = base.config.get_text_config().tie_word_embeddings and "lm_head" in dict(base.named_children())
    embedding, _ = next((n, m) for n, m in base.named_modules() if m is base.get_input_embeddings())
    replaced: dict[str, tuple[nn.Module, str]] = {}
    for name, module in base.named_modules():
        own = embedding if tied and name == "lm_head" else name
        changed = _is_merged(module) or (own != name and _is_merged(base.get_submodule(embedding)))
        if changed and not any(name.startswith(f"{other}.") for other in replaced):
            replaced[name] = module, own
    try:
        for name, (module, own) in replaced.items():
            weights = {n.removeprefix(f"{own}."): read for n, read in reads.items() if n.startswith(f"{own}.")}
            base.set_submodule(name, _Merged(_plain_layer(module), weights, device))
        yield
    finally:
        for name, (module, _) in replaced.items():
            base.set_submodule(name, module)


def _some(model: Any, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """The first rows, cut short, and one with the tokens that the adapter has trained rows of."""
    found = [list(row[:_TOKENS]) for row in rows[:ROWS]]
    for module in model.modules():
        if isinstance(module, TrainableTokensWrapper):
            return [*found, module.token_adapter.token_indices[ADAPTER][:_TOKENS]]
    return found


def _compare(expected: torch.Tensor, found: Sequence[torch.Tensor], what: str) -> float:
    merged = torch.cat([part.cpu() for part in found])
    difference, largest = (merged - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= _MOST * max(1.0, largest):
        raise MergeDiffers(
            f"{what}: merged into the weights, this adapter gives another model: its logits differ by {difference:.2g} "
            f"from those of the adapter itself (at most {_MOST:g} of the largest, {largest:.3g}), at {len(expected)} "
            "positions, before anything is rounded. Nothing was exported from it; use the adapter unmerged."
        )
    return float(difference)


def check_merge(model: Any, rows: Sequence[Sequence[int]], what: str = "the trained adapter") -> float | None:
    """Compares what an export is made of, before it is rounded, with the adapter's own forward pass.

    Args:
        model: The trained model; it is not changed.
        rows: Token ids; the first few are used.
        what: The adapter, for the message.

    Returns:
        The largest difference of a logit, in float32; None without an adapter.

    Raises:
        MergeDiffers: It is more than the order of summation explains.
    """
    if not any(_is_merged(module) for module in model.modules()):
        return None
    some = _some(model, rows)
    with float32_layers(model):
        expected = torch.cat([part.cpu() for part in logits_of(model, states_of(model, some))])
        with _as_merged(model):
            found = list(logits_of(model, states_of(model, some)))
    return _compare(expected, found, what)


def merge(model: Any, rows: Sequence[Sequence[int]], what: str) -> Any:
    """The plain model with the adapter merged into its weights by PEFT, compared with the adapter's forward pass.

    Args:
        model: A PeftModel.
        rows: Token ids; the first few are used.
        what: The adapter, for the message.

    Raises:
        MergeDiffers: See `check_merge`.
    """
    some = _some(model, rows)
    expected = torch.cat([part.cpu() for part in logits_of(model, states_of(model, some))])
    merged = model.merge_and_unload()
    _compare(expected, list(logits_of(merged, states_of(merged, some))), what)
    return merged
