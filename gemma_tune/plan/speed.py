"""How long training takes: from operations and a peak, or from what was measured on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config import Config, PlanConfig
from gemma_tune.models.estimate.flops import per_weight
from gemma_tune.models.estimate.size import ModelSize
from gemma_tune.models.sharding import recomputes, sharding_of

# Cards by their memory in GB: name, and 10^12 operations a second in bfloat16 with float32 sums, without sparsity, as
# NVIDIA's papers on the architectures have it (Ada, Blackwell RTX, Hopper).
CARDS = {
    8: ("RTX 4060", 30.2),
    16: ("RTX 4080", 97.5),
    24: ("RTX 4090", 165.2),
    32: ("RTX 5090", 209.5),
    80: ("H100 SXM", 989.4),
}


@dataclass(frozen=True)
class Speed:
    """Operations that training reaches.

    Attributes:
        flops: Operations a second.
        said: Where that comes from, for tables.
    """

    flops: float
    said: str


def operations(cfg: Config, size: ModelSize) -> float | None:
    """Floating-point operations of training for each token; None where completions are generated, which takes longest.

    A multiplication and an addition for each of the N weights that a token meets: 2N forward, 2N for the gradients of
    the activations, and 2N for those of the weights, where they are trained. Recomputed activations are a second
    forward pass; a reference or a teacher is one more. The products inside of attention are left out: some percent at
    1,024 tokens.
    """
    if cfg.traits.rewarded:
        return None
    passes = per_weight(cfg)
    passes += 2.0 if recomputes(cfg) else 0.0
    has_reference = cfg.traits.compares_answers and not cfg.traits.classifies
    passes += 2.0 if has_reference or cfg.traits.quantizes else 0.0
    return passes * size.computed_parameters


def expected_speed(plan: PlanConfig) -> Speed | None:
    """The share of a card's peak; None where no card is known that has this memory."""
    if plan.tflops is not None:
        return Speed(plan.tflops * 1e12 * plan.utilization, f"{plan.utilization:.0%} of {plan.tflops:g} TFLOPS")
    if plan.memory_gb is None:
        return None
    smaller = [gb for gb in CARDS if gb <= plan.memory_gb]
    if not smaller:
        return None
    name, tflops = CARDS[max(smaller)]
    said = f"{plan.utilization:.0%} of the {tflops:g} TFLOPS of an {name}"
    return Speed(tflops * 1e12 * plan.utilization, said)


def hours(cfg: Config, size: ModelSize, speed: Speed, tokens: float = 1e6) -> float | None:
    """Hours for a number of tokens of training data, padding included; None where they can't be estimated.

    Several processes share the tokens; what they send one another is left out.
    """
    each = operations(cfg, size)
    return None if each is None else each * tokens / speed.flops / sharding_of(cfg).processes / 3600


def in_words(hours: float | None) -> str:
    """A time that is an estimate: `≈ 3.2 h`."""
    if hours is None:
        return "–"
    seconds = hours * 3600
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"≈ {seconds / length:.0f} {unit}" if seconds >= 10 * length else f"≈ {seconds / length:.1f} {unit}"
    return f"≈ {seconds:.0f} s"
