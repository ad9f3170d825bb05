"""The fullest moment of a training step on a CPU, beside what weights and the optimizer's state take all the time."""

from __future__ import annotations

from collections.abc import Mapping

from gemma_tune.config import Config
from gemma_tune.models.estimate.activations import activations, computed_tokens, has_our_head, trains_embedding
from gemma_tune.models.estimate.size import ModelSize

# Of all that a step allocates and frees, as measured with glibc 2.36: the gradients of a layer's weights stay among its
# activations, which are free then, and the next layer's blocks don't fit between them
_HOLES = 0.2
_FLOAT32 = 4.0


def fullest_moment(
    cfg: Config, shape: ModelSize, act: float, stream: float, longest: int, parts: Mapping[str, float]
) -> float:
    """Bytes of a step's tensors where they are most.

    The head's logits and gradient, then the gradients that pass through the MLP of one layer come on top of the
    activations, which go as gradients of weights come: unless gradients are accumulated, those of the weights are there
    when the activations of the last layer are left. Then come the embedding's own gradient and what the optimizer
    computes of the largest weight.

    Args:
        cfg: The configuration.
        shape: The model's sizes.
        act: Bytes of a number that is multiplied.
        stream: Bytes of a number of the residual stream.
        longest: Tokens of the longest row, after cutting.
        parts: Bytes of `gradients`, `activations` and `logits`.
    """
    kept, head, gradients = (parts[name] for name in ("activations", "logits", "gradients"))
    full = cfg.adapter.peft_type == "none"
    summed = trains_embedding(cfg) and has_our_head(cfg, on_gpu=False) and not cfg.traits.classifies
    of_head = shape.vocab_size * shape.hidden_size * _FLOAT32 if summed else 0.0
    tokens = computed_tokens(cfg, shape, longest, on_gpu=False)
    passing = tokens * (3 * shape.mlp_width * act + 2 * shape.hidden_size * stream)
    there = 0.0 if cfg.train.gradient_accumulation_steps == 1 else gradients
    begin = there + kept + max(head, of_head + passing)
    last_layer = _whole(cfg, shape, act, stream, longest) / shape.num_hidden_layers
    own = shape.layer_parameters / shape.parameters if full else 1 / shape.num_hidden_layers
    end = gradients + max(last_layer + passing - own * gradients, _of_largest(cfg, shape, stream))
    return max(begin, end, _generation(cfg, shape, act, longest))


def beside(
    cfg: Config, shape: ModelSize, act: float, stream: float, longest: int, parts: Mapping[str, float]
) -> dict[str, float]:
    """Bytes that a step takes beside its parts, `heap`, and those that parts take of one another's, `reused`, below 0.

    `heap` has holes between blocks, too. Arguments are those of `fullest_moment`.
    """
    more = fullest_moment(cfg, shape, act, stream, longest, parts)
    more -= sum(parts[name] for name in ("activations", "logits", "gradients"))
    freed = _whole(cfg, shape, act, stream, longest) + parts["logits"] + parts["gradients"]
    holes = _HOLES * (freed + _of_largest(cfg, shape, stream))
    return {"heap": max(0.0, more) + holes, "reused": min(0.0, more)}


def _whole(cfg: Config, shape: ModelSize, act: float, stream: float, longest: int) -> float:
    """Bytes of the activations of all layers, as if none were computed again."""
    return activations(cfg, shape, act, stream, longest, on_gpu=False, again=False)


def _of_largest(cfg: Config, shape: ModelSize, weight: float) -> float:
    """AdamW's denominator and its root, of the embedding."""
    largest = max(shape.vocab_size * shape.hidden_size, shape.table_parameters)
    return 2 * largest * weight if trains_embedding(cfg) else 0.0


def _generation(cfg: Config, shape: ModelSize, act: float, longest: int) -> float:
    """The keys and values of all tokens at once, and while the cache grows by one token a copy of a layer's."""
    if not cfg.traits.rewarded or cfg.train.use_vllm:
        return 0.0
    assert cfg.train.per_device_train_batch_size is not None  # filled in before a run begins
    at_once = cfg.train.per_device_train_batch_size * cfg.train.passes_per_generation * longest
    return at_once * shape.key_width * (shape.num_hidden_layers + 1) * act
