"""KL divergence from a reference model, token by token, on the held-out rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from gemma_tune.chat import Rendered
from gemma_tune.chat.render import Prompt
from gemma_tune.config import Config, ModelConfig
from gemma_tune.engines.base import Engine
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.errors import UserError
from gemma_tune.evals.base import Evaluator, Inputs, Outcome, ScoredRow
from gemma_tune.evals.samples import asked_text, row_ids
from gemma_tune.models.head import CHUNK, bucketed_kl
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_model
from gemma_tune.models.source import Source, find_source
from gemma_tune.processes import in_shares


def kl_and_agreement(reference: torch.Tensor, found: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(reference ‖ found) in nats, and whether the best token is the same, at each position.

    Args:
        reference: Log-probabilities, [T, V].
        found: Log-probabilities, [T, V].

    Returns:
        float64 [T] and bool [T].

    Raises:
        ValueError: A log-probability is NaN.
    """
    for whose, log_probs in (("the reference", reference), ("the model", found)):
        if log_probs.isnan().any():
            raise ValueError(f"{whose} gives NaN as a log-probability")
    # In float64 a chunk over 262,144 tokens takes 512 MiB
    chunks = zip(reference.split(CHUNK), found.split(CHUNK), strict=True)
    kl_T = torch.cat([bucketed_kl(p.double(), q, whole=True) for p, q in chunks])
    return kl_T, reference.argmax(-1) == found.argmax(-1)


def reference_of(cfg: Config) -> tuple[ModelConfig, Source]:
    """The reference model's configuration and source: `model` with another name, and without its revision.

    Raises:
        UserError: There is no such model.
    """
    other = replace(
        cfg.model, model_name_or_path=str(cfg.eval.kl.reference), revision=None, tokenizer_name_or_path=None
    )
    with _as_reference():
        return other, find_source(other)


@contextlib.contextmanager
def _as_reference() -> Iterator[None]:
    """Errors about the reference name its own key, `eval.kl.reference`."""
    try:
        yield
    except UserError as error:
        problems = [p.replace("model.model_name_or_path", "eval.kl.reference") for p in error.problems]
        raise UserError(*problems) from error


def _loaded(other: ModelConfig, source: Source, tokenizer: Any) -> Any:
    with _as_reference():
        return load_model(other, source, tokenizer)


def prepare(inputs: Inputs) -> Evaluator:
    """Kullback-Leibler divergence from `eval.kl.reference`'s probabilities to the model's, where the loss counts.

    Returns:
        An evaluator that gives `mean_kl` (nats per token), `top1_agreement` (share of positions with the same best
        token) and `kl_tokens`.

    Raises:
        UserError: No rows are held out, or the reference can't be used or has another tokenizer.
    """
    cfg = inputs.cfg
    other, source = reference_of(cfg)
    with _as_reference():
        tokenizer = load_tokenizer(source, other.chat_template)
    if tokenizer.get_vocab() != inputs.tokenizer.get_vocab():
        raise UserError(f"eval.kl.reference={cfg.eval.kl.reference}: its tokenizer differs from the model's.")
    records = inputs.held_out.records[: cfg.eval.kl.max_samples]
    rows = inputs.held_out.rendered[: len(records)]
    if not rows:
        raise UserError("eval.evaluators: kl needs held-out rows, and there are none; set data.validation_file.")
    ids, prompts = row_ids(records), [asked_text(inputs.tokenizer, r) for r in records]

    def evaluate(engine: Engine, limit: int | None = None) -> Outcome:
        chosen = rows[:limit]
        reference = TransformersEngine(_loaded(other, source, tokenizer), tokenizer)

        def of_share(share: list[Rendered]) -> Iterator[tuple[int, float, float]]:
            asked = [Prompt(row) for row in share]
            pairs = zip(reference.log_probs(asked, "reference"), engine.log_probs(asked, "kl"), strict=True)
            for (theirs, ours), row in zip(pairs, share, strict=True):
                counts = torch.tensor(row.labels[1:]) != -100
                kl, same = kl_and_agreement(theirs[:-1][counts], ours[:-1][counts])
                yield int(counts.sum()), kl.mean().item(), same.double().mean().item()

        kl_rows: list[ScoredRow] = []
        agreement: list[ScoredRow] = []
        for (weight, kl, same), name, prompt in zip(in_shares(chosen, of_share), ids, prompts, strict=False):
            shared = {"id": name, "weight": weight, "prompt": prompt}
            kl_rows.append({**shared, "score": kl})
            agreement.append({**shared, "score": same})
        tokens = sum(row["weight"] for row in kl_rows)
        figures = {
            "mean_kl": sum(row["score"] * row["weight"] for row in kl_rows) / tokens,
            "top1_agreement": sum(row["score"] * row["weight"] for row in agreement) / tokens,
            "kl_tokens": tokens,
        }
        return Outcome(figures, {"mean_kl": kl_rows, "top1_agreement": agreement})

    return evaluate
