"""How many weights of a model are trained, and how many are quantized."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightCounts:
    """What is trained and what is quantized, in numbers of weights.

    Attributes:
        total: All weights of the model, the adapter's among them; a tied matrix counts once.
        trainable: Weights with a gradient.
        four_bit: Weights held in 4 bit.
        four_bit_layers: Linear layers held in 4 bit.
        adapted_layers: Layers with an adapter.
        experts: Weights of fused experts, which 4-bit weights don't reach.
        expert_tensors: How many tensors they are.
        expert_bits: Bits of each of these weights.
        experts_adapted: How many of these tensors have adapters.
    """

    total: int
    trainable: int
    four_bit: int
    four_bit_layers: int
    adapted_layers: int
    experts: int = 0
    expert_tensors: int = 0
    expert_bits: int = 0
    experts_adapted: int = 0

    def line(self) -> str:
        """One line for the terminal and the report."""
        parts = [f"trained: {self.trainable:,} of {self.total:,} weights ({self.trainable / self.total:.2%})"]
        if self.adapted_layers:
            parts.append(f"adapters on {self.adapted_layers} layers")
        if self.four_bit:
            parts.append(
                f"4-bit: {self.four_bit:,} weights ({self.four_bit / self.total:.2%}) in {self.four_bit_layers} layers"
            )
        if self.experts and (self.adapted_layers or self.four_bit):
            parts.append(
                f"experts: {self.experts:,} weights ({self.experts / self.total:.2%}) in {self.expert_tensors} tensors "
                + (
                    f"in {self.expert_bits} bit, with an adapter for each expert"
                    if self.experts_adapted
                    else f"stay frozen and in {self.expert_bits} bit (4-bit weights don't reach fused experts, and "
                    "adapters with adapter.target_parameters alone)"
                )
            )
        return ", ".join(parts)
