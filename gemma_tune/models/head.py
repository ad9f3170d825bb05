"""The language-model head over the trained tokens: logits, negative log-likelihood and KL divergence, in chunks.

Only positions whose next token is trained go through the head, and `CHUNK` of them at a time: the float32 logits of
256 positions over 262,144 tokens take 256 MiB. A backward pass computes the logits of each chunk again.

Suffixes of shapes: B rows of a batch, S tokens of a padded row, N positions of all rows whose next token is trained,
H hidden size, V vocabulary, K tokens of each position whose log-probabilities are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gemma_tune.models.kernels.label_positions import at_labels
from gemma_tune.models.sharded import is_sharded, whole_weight

CHUNK = 256
Head = Callable[[torch.Tensor], torch.Tensor]  # hidden states [N, H] → float32 logits [N, V]


class TopK(NamedTuple):
    """The largest log-probabilities at N positions.

    Attributes:
        ids: Token ids, int64, [N, K].
        log_probs: float32, in nats, [N, K]; the probability that is missing to 1 belongs to all other tokens together.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor


def head_of(base: Any) -> Head:
    """The head of a language model, with the softcap of those families that have one."""
    cap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)  # Gemma 1 has none
    called: Head = base.lm_head
    if is_sharded(base):  # called by itself, it would begin another pass through its group
        called = partial(functional.linear, weight=whole_weight(base.lm_head.weight))

    def head(hidden_NH: torch.Tensor) -> torch.Tensor:
        logits_NV: torch.Tensor = called(hidden_NH).float()
        return logits_NV if cap is None else torch.tanh(logits_NV / cap) * cap

    return head


def trained_positions(labels_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which positions have a trained token next, bool [B, S-1], and these tokens, [N]."""
    next_BS = labels_BS[:, 1:]
    trained = next_BS != -100
    return trained, next_BS[trained]


def trained_states(
    base: Any, inputs: dict[str, Any], through: Any = None, media: Mapping[str, Any] = MappingProxyType({})
) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden state before each trained token, [N, H], and these tokens, [N]; row by row.

    Args:
        base: The model, without a PeftModel around it.
        inputs: `input_ids` and `labels`, [B, S]; `attention_mask` and `position_ids` where there are some.
        through: What is called instead: the wrapper that averages the gradients of several processes, or gathers
            sharded weights. Past it, gradients would stay apart without an error.
        media: What `seeing` yields.
    """
    given = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "position_ids")} | {**media}
    trained, labels_N = trained_positions(inputs["labels"])
    with at_labels(base, functional.pad(trained, (0, 1))) as places:
        if through is None:
            hidden_BSH = base.model(**given, use_cache=False).last_hidden_state
        else:
            hidden_BSH = _states_through(through, base, given)
    return hidden_BSH[:, :-1][trained] if places is None else hidden_BSH[places.read], labels_N


def _states_through(wrapper: Any, base: Any, given: dict[str, Any]) -> torch.Tensor:
    """The last hidden states, [B, S, H], of a forward pass of the wrapper, whose head sees one position only."""
    kept: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> Any:
        kept.append(output.last_hidden_state)
        output.last_hidden_state = output.last_hidden_state[:, :1]
        return output

    hook = base.model.register_forward_hook(keep)
    try:
        wrapper(**given, use_cache=False)
    finally:
        hook.remove()
    return kept[0]


def nll(hidden_NH: torch.Tensor, head: Head, labels_N: torch.Tensor, reduction: str = "none") -> torch.Tensor:
    """Negative log-likelihood in nats: of each token, [N], or with `reduction="sum"` of all together."""

    def of_chunk(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(head(hidden), labels, reduction=reduction)

    found = _in_chunks(of_chunk, hidden_NH, labels_N)
    return torch.stack(found).sum() if reduction == "sum" else torch.cat(found)


def top_k(hidden_NH: torch.Tensor, head: Head, k: int) -> TopK:
    """The K largest log-probabilities at each position; without gradients."""

    def of_chunk(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = head(hidden)
        top = logits.topk(k, dim=-1)
        return top.indices, top.values - logits.logsumexp(-1, keepdim=True)

    with torch.no_grad():
        ids, log_probs = zip(*_in_chunks(of_chunk, hidden_NH), strict=True)
    return TopK(torch.cat(ids), torch.cat(log_probs))


def kl_from_top_k(hidden_NH: torch.Tensor, head: Head, reference: TopK) -> torch.Tensor:
    """KL(reference ‖ model) in nats, summed over N positions; see `bucketed_kl`."""

    def of_chunk(hidden: torch.Tensor, ids: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
        logits = head(hidden)
        whole = ids.shape[-1] == logits.shape[-1]
        # Below 1e-6 the rest is an error of log-probabilities that were stored in float16
        return bucketed_kl(log_probs, logits.log_softmax(-1).gather(-1, ids), whole, least_rest=1e-6).sum()

    return torch.stack(_in_chunks(of_chunk, hidden_NH, *reference)).sum()


def bucketed_kl(
    log_p_NK: torch.Tensor, log_q_NK: torch.Tensor, whole: bool = False, least_rest: float = 0.0
) -> torch.Tensor:
    """KL(p ‖ q) in nats at each position, [N], over K tokens and one bucket for all others.

    It is at most the KL over all tokens: merging tokens into a bucket can only make it smaller.

    Args:
        log_p_NK: Log-probabilities of the K tokens.
        log_q_NK: Those of the other distribution, of the same tokens.
        whole: Whether the K tokens are all there are, so that there is no bucket.
        least_rest: A bucket that p gives no more than this counts nothing.
    """
    p_NK = log_p_NK.exp()
    kl_N = torch.where(log_p_NK == -torch.inf, 0.0, p_NK * (log_p_NK - log_q_NK)).sum(-1)
    if whole:
        return kl_N
    rest_p_N = (1 - p_NK.sum(-1)).clamp_min(0.0)
    rest_q_N = (1 - log_q_NK.exp().sum(-1)).clamp_min(1e-12)
    of_rest_N = rest_p_N * (rest_p_N.clamp_min(1e-12).log() - rest_q_N.log())
    return kl_N + torch.where(rest_p_N > least_rest, of_rest_N, 0.0)


def _in_chunks(of_chunk: Callable[..., Any], *tensors: torch.Tensor) -> list[Any]:
    """What `of_chunk` gives of each `CHUNK` positions; nothing that it computes is kept for the backward pass."""
    chunks = zip(*(tensor.split(CHUNK) for tensor in tensors), strict=True)
    return [checkpoint(of_chunk, *chunk, use_reentrant=False) for chunk in chunks]
