"""What llama.cpp computes otherwise than Transformers, for comparisons that shall show nothing else.

- GELU on a CPU is a table over float16 (ggml-cpu/vec.h). In a dense model that moves logits little; in one with experts
  a rounded number turns the choice of an expert (mean KL 2.3e-4 in place of 7e-8 on random weights).
- Gemma 3n's sparse activations are cut at a multiple of their standard deviation, which llama.cpp divides by N - 1 and
  Transformers by N (src/models/gemma3n.cpp, `gaussian_topk`).
- Of the towers: see `towers_as_llama_cpp` and `as_llama_hears`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

# The table's ends: below and above it, 0 and the number itself
_END = 10.0
# What keeps the logarithm of a band of sound finite
_QUIET = 1e-3


class GgmlGelu(nn.Module):  # type: ignore[misc]
    """GELU as ggml computes it on a CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Of any shape, float32."""
        table = functional.gelu(input.half().float(), approximate="tanh").half().float()
        return torch.where(input <= -_END, 0.0, torch.where(input >= _END, input, table))


class LlamaGemma3nMlp(nn.Module):  # type: ignore[misc]
    """Gemma 3n's block of two projections as llama.cpp computes it; it shares the layers of the one it replaces."""

    def __init__(self, replaced: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = replaced.gate_proj, replaced.up_proj, replaced.down_proj
        self.activation_sparsity = float(replaced.activation_sparsity)
        self.act_fn = GgmlGelu()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Of any shape whose last dimension is the hidden size."""
        gate = self.gate_proj(hidden_states)
        if self.activation_sparsity > 0:
            times = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(self.activation_sparsity)).to(gate.dtype)
            gate = functional.relu(gate - (gate.mean(-1, keepdim=True) + times * gate.std(-1, keepdim=True)))
        found: torch.Tensor = self.down_proj(self.act_fn(gate) * self.up_proj(hidden_states))
        return found


@contextlib.contextmanager
def as_llama_cpp(model: nn.Module) -> Iterator[None]:
    """Within it, the model computes as llama.cpp does; afterwards it is as it was."""
    gelu = type(ACT2FN["gelu_pytorch_tanh"])
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if hasattr(child, "_gaussian_topk"):
                replaced.append((parent, name, child))
                setattr(parent, name, LlamaGemma3nMlp(child))
            elif type(child) is gelu:
                replaced.append((parent, name, child))
                setattr(parent, name, GgmlGelu())
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


@contextlib.contextmanager
def towers_as_llama_cpp(model: nn.Module) -> Iterator[None]:
    """Within it, towers and language part compute as llama.cpp does on a CPU from float32 files; afterwards as before.

    Beside GELU, ggml computes a convolution as a product of matrices that it rounds to float16 first (`ggml_im2col`):
    the patches of images, and the frames of sound where they are subsampled. On random weights of Gemma 4 that moves
    log-probabilities by 0.2.
    """
    rounded = [module for name, module in model.named_modules() if isinstance(module, nn.Conv2d) or _is_patches(name)]
    kept = [(module.weight, module.weight.data) for module in rounded]
    hooks = [module.register_forward_pre_hook(_rounded_input) for module in rounded]
    try:
        for weight, data in kept:
            weight.data = data.half().to(data.dtype)
        with as_llama_cpp(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for weight, data in kept:
            weight.data = data


def _is_patches(name: str) -> bool:
    """Whether it is Gemma 4's layer of patches, a convolution in llama.cpp."""
    return name.endswith("patch_embedder.input_proj")


def _rounded_input(_module: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (given[0].half().to(given[0].dtype), *given[1:])


def as_llama_hears(inputs: Mapping[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """The towers' inputs as llama.cpp computes them: of sound, where a band is quiet.

    Gemma 4's extractor takes the logarithm of a band's magnitude plus 0.001, and llama.cpp that of the larger of the
    two (`mtmd_audio_preprocessor_gemma4a`). Gemma 4 12B takes the samples themselves, the same in both.

    Args:
        inputs: What the towers take, by the names of the whole model's arguments.
        config: Of the language part.
    """
    found = dict(inputs)
    if "input_features" in found and not config.model_type.startswith("gemma4_unified"):
        features = found["input_features"]
        mask = found["input_features_mask"].bool()[..., None]
        magnitude = (features.double().exp() - _QUIET).clamp_min(_QUIET)
        found["input_features"] = torch.where(mask, magnitude.log().to(features.dtype), features)
    return found
