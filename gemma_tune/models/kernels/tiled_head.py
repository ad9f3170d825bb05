"""The head at single positions, one tile of tokens after the other: log-probabilities of tokens, entropies, gradients.

For a head that isn't trained, the gradient of each log-probability with respect to its hidden state, [N, H], is
computed in the forward pass, from the logits that are there already; a backward pass multiplies it by what comes from
above. So logits are computed once, and only those of one tile are held: [TOKENS, V] in the type of the products. They
are read in float32, a block of the vocabulary that fits a processor's cache at a time. For a head that is trained, or
where the entropy's gradient is wanted, the backward pass computes each tile's logits again.

Logits are the head's product in bfloat16 where the model computes in bfloat16; everything after it is float32.

Suffixes of shapes: N positions, H hidden size, V vocabulary, T tokens of a tile, C columns of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

TOKENS = 256
COLUMNS = 1 << 15  # of the head whose gradient is added up at once
_ENTRIES = 1 << 18  # of a block, 1 MiB in float32: half of a core's second cache

OUTPUTS = ("entropy", "is_top1", "mean_logits", "log_sum_sq_probs")


@dataclass(frozen=True)
class HeadOptions:
    """How logits become log-probabilities, and what else is computed.

    Attributes:
        softcap: c of c·tanh(logit / c); None: no cap.
        temperature: Logits are divided by it, after the cap.
        outputs: Of `OUTPUTS`, besides the log-probabilities.
        entropy_gradient: Whether the entropy is part of the loss.
    """

    softcap: float | None = None
    temperature: float = 1.0
    outputs: tuple[str, ...] = ()
    entropy_gradient: bool = False


def token_log_probs(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, targets_N: torch.Tensor, options: HeadOptions
) -> dict[str, torch.Tensor]:
    """Of each target its log-probability, in nats, with gradients; and what the options ask for besides.

    Args:
        hidden_NH: Hidden states after the model's last norm.
        weight_VH: The head's weights.
        targets_N: The token at each position, int64.
        options: How logits become log-probabilities.

    Returns:
        `log_probs`, float32 [N], and by the options `entropy` (nats), `is_top1` (whether no token is more likely, and
        none that is as likely has a lower id), `mean_logits` and `log_sum_sq_probs` (log Σ p²), [N].
    """
    found = _TokenLogProbs.apply(hidden_NH, weight_VH, targets_N, options)
    return {n: x for n, x in zip(("log_probs", *OUTPUTS), found, strict=True) if x is not None}


def _compute_type(hidden: torch.Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _blocks(tile_TV: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(tile_TV.split(max(256, _ENTRIES // len(tile_TV)), 1))


def _scaled(logits: torch.Tensor, o: HeadOptions) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Capped logits over the temperature, and the cap's derivative; both float32, `logits` may be overwritten."""
    slope = None
    if o.softcap is not None:
        tanh = logits.div_(o.softcap).tanh_()
        logits, slope = tanh * o.softcap, tanh.square_().neg_().add_(1)
    return (logits if o.temperature == 1 else logits.mul_(1 / o.temperature)), slope


def _scan(
    tile_TV: torch.Tensor, targets_T: torch.Tensor, o: HeadOptions, keep: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The sums over the vocabulary that all outputs are made of.

    Args:
        tile_TV: Logits; with `keep` they become -Σₑ times the derivative of log p(target), e being exp(logit - m).
        targets_T: The tokens.
        o: The options.
        keep: Whether to do that.

    Returns:
        Σₑ = Σ exp(logit - m), [T], and the outputs by their names.
    """
    own, slope = _scaled(tile_TV.gather(1, targets_T[:, None]).float(), o)
    found: dict[str, torch.Tensor] = {}
    if "is_top1" in o.outputs:
        most, first = _highest(tile_TV)
        found["is_top1"] = first == targets_T
    else:
        most = tile_TV.amax(1, keepdim=True)
    m, _ = _scaled(most.float(), o)
    total, weighted, squares, plain = (torch.zeros(len(tile_TV), device=tile_TV.device) for _ in range(4))
    for block in _blocks(tile_TV):
        x, bent = _scaled(block.float(), o)
        if "mean_logits" in o.outputs:
            plain += x.sum(1)
        x = x.sub_(m)
        if "entropy" in o.outputs:
            e = x.exp()
            weighted += torch.linalg.vecdot(e, x)
        else:
            e = x.exp_()
        total += e.sum(1)
        if "log_sum_sq_probs" in o.outputs:
            squares += torch.linalg.vecdot(e, e)
        if keep:
            block.copy_(e if bent is None else e.mul_(bent))
    above = own - m
    if keep:
        mine = above.exp() - total[:, None]  # in float32: near a probability of 1 the two are almost equal
        _put(tile_TV, targets_T, mine if slope is None else mine * slope)
    log_total = total.log()
    found["log_probs"] = above[:, 0] - log_total
    found["entropy"] = log_total - weighted / total
    found["mean_logits"] = plain / tile_TV.shape[1]
    found["log_sum_sq_probs"] = squares.log() - 2 * log_total
    found["log_z"] = m[:, 0] + log_total
    return total, found


def _highest(tile_TV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row the highest logit, [T, 1], and the lowest id that has it, [T].

    On a CPU `argmax` over the vocabulary takes as long as half of the product that gives the logits, `amax` a
    twentieth of that; so it looks at the block that has the maximum alone.
    """
    width = min(1024, tile_TV.shape[1])
    of_blocks = torch.stack([block.amax(1) for block in tile_TV.split(width, 1)], 1)
    start = (of_blocks.argmax(1, keepdim=True) * width).clamp(max=tile_TV.shape[1] - width)
    place = tile_TV.gather(1, start + torch.arange(width, device=start.device)).argmax(1)
    return of_blocks.amax(1, keepdim=True), start[:, 0] + place


def _put(tile_TV: torch.Tensor, ids_T: torch.Tensor, values_T1: torch.Tensor) -> None:
    """Sets one entry of each row. (`scatter_` converts a whole tensor of bfloat16 on a CPU.)"""
    tile_TV[torch.arange(len(ids_T), device=ids_T.device), ids_T] = values_T1[:, 0].to(tile_TV.dtype)


class _TokenLogProbs(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, o: HeadOptions) -> Any:
        ctx.set_materialize_grads(False)
        again = ctx.needs_input_grad[1] or (o.entropy_gradient and ctx.needs_input_grad[0])
        keep = ctx.needs_input_grad[0] and not again
        kind = _compute_type(hidden)
        states, matrix = hidden.to(kind), weight.to(kind)
        gradient = torch.empty_like(states) if keep else None
        names = ("log_probs", *OUTPUTS, "log_z")
        found = {n: torch.empty(len(states), device=states.device, dtype=torch.float32) for n in names}
        found["is_top1"] = found["is_top1"].bool()
        for rows, tile in _tiles(states, matrix):
            with torch.autocast(states.device.type, enabled=False):  # else vecdot's products are those of bfloat16
                total, of_tile = _scan(tile, targets[rows], o, keep)
            for name, values in of_tile.items():
                found[name][rows] = values
            if gradient is not None:
                part = torch.mm(tile, matrix)
                gradient[rows] = part.mul_((-1 / o.temperature / total)[:, None])
        ctx.options, ctx.kind, ctx.kept = o, kind, keep
        if keep:
            ctx.save_for_backward(gradient)
        elif again:
            ctx.save_for_backward(hidden, weight, targets, found["log_z"], found["entropy"])
        outputs = tuple(found[n] if n in o.outputs else None for n in OUTPUTS)
        fixed = [x for n, x in zip(OUTPUTS, outputs, strict=True) if n != "entropy" or keep]
        ctx.mark_non_differentiable(*(x for x in fixed if x is not None))
        return (found["log_probs"], *outputs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, of_log_probs: Any, of_entropy: Any = None, *_: Any) -> Any:
        if ctx.kept:
            (gradient,) = ctx.saved_tensors
            known = of_log_probs is not None
            return (gradient * of_log_probs[:, None].to(gradient.dtype) if known else None), None, None, None
        return (*_gradients_again(ctx, of_log_probs, of_entropy), None, None)


def _tiles(states: torch.Tensor, matrix: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """The rows of each tile and their logits, which may be overwritten."""
    buffer = states.new_empty(min(TOKENS, len(states)), len(matrix))
    for start in range(0, len(states), TOKENS):
        rows = slice(start, start + TOKENS)
        part = states[rows]
        yield rows, torch.mm(part, matrix.T, out=buffer[: len(part)])


def _gradients_again(ctx: Any, of_log_probs: Any, of_entropy: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of hidden states and head, from logits that are computed once more."""
    hidden, weight, targets, log_z, entropy = ctx.saved_tensors
    o = ctx.options
    states, matrix = hidden.to(ctx.kind), weight.to(ctx.kind)
    of_hidden = torch.empty_like(states) if ctx.needs_input_grad[0] else None
    of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
    zero = torch.zeros_like(log_z)
    of_log_probs = zero if of_log_probs is None else of_log_probs
    for rows, tile in _tiles(states, matrix):
        above, on_entropy = of_log_probs[rows, None], None if of_entropy is None else of_entropy[rows, None]
        _, slope = _scaled(tile.gather(1, targets[rows, None]).float(), o)
        own = above if slope is None else above * slope
        mine = torch.zeros_like(own)
        for start, block in _with_starts(_blocks(tile)):
            x, bent = _scaled(block.float(), o)
            x = x.sub_(log_z[rows, None])  # log p
            p = x.exp()
            d = -above * p if on_entropy is None else -p * (above + on_entropy * (x + entropy[rows, None]))
            d = d if bent is None else d.mul_(bent)
            inside = targets[rows, None] - start
            here = (inside >= 0) & (inside < block.shape[1])
            mine += torch.where(here, d.gather(1, inside.clamp(0, block.shape[1] - 1)), 0)
            block.copy_(d.div_(o.temperature))
        _put(tile, targets[rows], (mine + own) / o.temperature)
        if of_hidden is not None:
            torch.mm(tile, matrix, out=of_hidden[rows])
        if of_weight is not None:
            for start, block in _with_starts(tile.split(COLUMNS, 1)):
                of_weight[start : start + block.shape[1]] += torch.mm(block.T, states[rows])
    return (
        None if of_hidden is None else of_hidden.to(hidden.dtype),
        None if of_weight is None else of_weight.to(weight.dtype),
    )


def _with_starts(blocks: tuple[torch.Tensor, ...]) -> Iterator[tuple[int, torch.Tensor]]:
    start = 0
    for block in blocks:
        yield start, block
        start += block.shape[1]
