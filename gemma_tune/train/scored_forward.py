"""The forward pass that TRL's trainers score tokens with, where ours is faster.

TRL gives a model a forward pass of its own (`add_fused_lm_head`), which SFT, GRPO, RLOO, DPO and KTO call with
`fused_lm_head=True` for log-probabilities of labels. Ours takes its place, and gives the same numbers:

- The head is ours (`models/kernels/tiled_head.py`). Where Triton is missing, as on a CPU, TRL's computes the logits of
  all positions, three times, with float32 products; on a GPU it skips the others itself.
- Layers that share keys and values compute the positions of labels alone (`models/kernels/label_positions.py`).
- Batches are computed without padding, and prompts that rows share once (`models/kernels/compact_batch.py`).
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft.utils.other import TrainableTokensWrapper
from torch import nn
from torch.nn import functional
from trl.trainer.utils import FusedCausalLMOutput

from gemma_tune.models.family import BY_DOCUMENT
from gemma_tune.models.kernels.compact_batch import CompactBatch, compact, may_share
from gemma_tune.models.kernels.label_positions import at_labels
from gemma_tune.models.kernels.tiled_head import HeadOptions, token_log_probs
from gemma_tune.models.sharded import whole_weight
from gemma_tune.models.towers.towers import towers_of

_PLAIN = (nn.Linear, TrainableTokensWrapper)  # heads whose product is that with their `weight`


@dataclass(frozen=True)
class Scoring:
    """What of a forward pass is ours.

    Attributes:
        tiled_head: Whether the head is ours.
        compact_batches: Whether batches have no padding, and rows share prompts; it needs attention by document.
        head: How logits become log-probabilities, and what is computed besides; its softcap is the model's.
        wide: Whether the head computes in float32 (`cast_lm_head_to_fp32`).
    """

    tiled_head: bool = True
    compact_batches: bool = True
    head: HeadOptions = field(default_factory=HeadOptions)
    wide: bool = False


def use_scored_forward(model: Any, scoring: Scoring) -> None:
    """Gives a language part that TRL's trainer has prepared (`add_fused_lm_head`) our forward pass, once.

    A call with `output_router_logits` stays TRL's, and so does a head that is no plain layer.

    Args:
        model: The language part, without a PeftModel around it.
        scoring: What of it is ours.
    """
    theirs = model.forward
    if getattr(theirs, "is_ours", False):
        return

    drops = [module for module in model.modules() if isinstance(module, nn.Dropout)]  # to walk through once

    def forward(self: Any, *args: Any, **given: Any) -> Any:
        if not given.get("fused_lm_head") or given.get("output_router_logits") or args:
            return theirs(*args, **given)
        score = functools.partial(_theirs_at_labels, model, theirs)
        if scoring.tiled_head and type(model.get_output_embeddings()) in _PLAIN:
            score = functools.partial(_scored, model, scoring)
        short = _compact(model, given, drops) if scoring.compact_batches else None
        return score(**given) if short is None else _in_compact(score, short, given)

    forward.is_ours = True  # type: ignore[attr-defined]
    # `generate` validates its arguments by it. Neither `wraps` nor a plain function: from those accelerate, when it
    # takes its mixed precision off a model, makes a method that is called with the model twice
    forward.__signature__ = inspect.signature(type(model).forward)  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)


def _compact(model: Any, given: dict[str, Any], drops: Sequence[Any]) -> CompactBatch | None:
    """The compact form of a batch, where attention can have it."""
    ids, labels, mask = (given.get(name) for name in ("input_ids", "labels", "attention_mask"))
    towers = towers_of(model)
    if model.config._attn_implementation != BY_DOCUMENT or (towers is not None and towers.batch is not None):
        return None
    if ids is None or labels is None or given.get("position_ids") is not None or isinstance(mask, dict):
        return None
    if getattr(model.get_input_embeddings(), "neftune_noise_alpha", None):  # noise of each row, by the row's length
        return None
    return compact(ids, mask, labels, share=may_share(drops))


def _in_compact(score: Any, short: CompactBatch, given: dict[str, Any]) -> Any:
    mask = given["labels"][:, 1:] != -100
    items = given.get("num_items_in_batch")
    given = {n: x for n, x in given.items() if n not in ("labels", "num_items_in_batch")}
    found = score(**given | short.inputs() | {"shift_labels": short.shift_labels})
    return _output({name: short.in_batch(x, mask.shape) for name, x in _per_token(found)}, mask, items)


def _per_token(found: FusedCausalLMOutput) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, x) for name, x in found.items() if name not in ("loss", "label_mask", "aux_loss"))


def _theirs_at_labels(model: Any, theirs: Any, **given: Any) -> FusedCausalLMOutput:
    """TRL's forward pass; layers that share keys and values compute the positions of labels alone."""
    shifted = given.get("shift_labels")
    if shifted is None:
        shifted = functional.pad(given["labels"][:, 1:], (0, 1), value=-100)
    with at_labels(model, shifted != -100) as places:
        if places is None:
            return theirs(**given)
        kept = shifted.gather(1, places.index).masked_fill(~places.read, -100)
        rest = {name: value for name, value in given.items() if name != "labels"}
        found = theirs(**rest | {"shift_labels": kept})
    width = shifted.shape[1] - (given.get("shift_labels") is None)
    rows = {
        name: x.new_zeros(shifted.shape).scatter(1, places.index, x.masked_fill(~places.read, 0))[:, :width]
        for name, x in _per_token(found)
    }
    return _output(rows, (shifted != -100)[:, :width], given.get("num_items_in_batch"))


def _output(rows: dict[str, torch.Tensor], mask: torch.Tensor, items: Any) -> FusedCausalLMOutput:
    count = mask.sum().clamp(min=1) if items is None else items
    return FusedCausalLMOutput(loss=-rows["log_probs"].sum() / count, label_mask=mask, **rows)


def _scored(model: Any, scoring: Scoring, fused_lm_head: bool = True, **given: Any) -> FusedCausalLMOutput:
    """TRL's forward pass with our head."""
    labels, shifted, items = (given.pop(name, None) for name in ("labels", "shift_labels", "num_items_in_batch"))
    own = shifted is None
    shifted = labels[:, 1:] if own else shifted
    mask = shifted != -100
    with at_labels(model, functional.pad(mask, (0, 1)) if own else mask) as places:
        hidden = model.base_model(**given | {"use_cache": False}).last_hidden_state
    states = hidden[:, : mask.shape[1]][mask] if places is None else hidden[places.read]
    weight = whole_weight(model.get_output_embeddings().weight)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    kind = states.device.type
    enabled = torch.is_autocast_enabled(kind) and not scoring.wide
    with torch.autocast(kind, enabled=enabled, dtype=torch.get_autocast_dtype(kind)):
        states = states.float() if scoring.wide else states
        found = token_log_probs(states, weight, shifted[mask], replace(scoring.head, softcap=cap))
    # `masked_scatter` leaves a way for gradients where no position is trained, too
    rows = {name: x.new_zeros(mask.shape).masked_scatter(mask, x) for name, x in found.items()}
    return _output(rows, mask, items)
