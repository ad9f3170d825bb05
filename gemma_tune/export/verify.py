"""Loads what was exported, as anyone would, and compares it with the trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemma_tune.chat import Rendered
from gemma_tune.evals.mode import evaluating
from gemma_tune.evals.samples import greedy_answers

# Positions compared: 512 rows of 262,144 float32 log-probabilities would be 512 MiB a side, so few are held at once.
_ROWS, _TOKENS = 8, 64
_MAX_KL, _MIN_TOP1 = 1e-2, 0.90


class ArtifactDiffers(RuntimeError):
    """The exported file isn't the trained model."""


@dataclass(frozen=True)
class Reference:
    """What the trained model says, taken before it is exported.

    Attributes:
        rows: Token ids, [T] each.
        log_probs: Log-probabilities after each token, float32 on the CPU, [T, V] each.
        prompts: Prompts answered greedily.
        answers: Their answers' ids.
        max_new_tokens: Length of the answers at most.
    """

    rows: list[list[int]]
    log_probs: list[torch.Tensor]
    prompts: list[list[int]]
    answers: list[list[int]]
    max_new_tokens: int


def _log_probs(model: Any, ids: list[int]) -> torch.Tensor:
    device = model.get_input_embeddings().weight.device
    with evaluating(model):
        logits = model(input_ids=torch.tensor([ids], device=device)).logits[0]
    return logits.float().log_softmax(-1).cpu()


def take_reference(
    model: Any, tokenizer: Any, rows: Sequence[Rendered], prompts: Sequence[list[int]], max_new_tokens: int
) -> Reference:
    """Notes the trained model's log-probabilities and greedy answers.

    Args:
        model: The trained model.
        tokenizer: Its tokenizer.
        rows: Rendered rows, held out where there are any; the first few tokens of the first few are used.
        prompts: Prompts to answer.
        max_new_tokens: Tokens of an answer at most.
    """
    ids = [r.input_ids[:_TOKENS] for r in rows[:_ROWS]]
    kept = [list(p) for p in prompts]
    return Reference(
        ids,
        [_log_probs(model, i) for i in ids],
        kept,
        greedy_answers(model, tokenizer, kept, max_new_tokens),
        max_new_tokens,
    )


def verify_merged(folder: Path, reference: Reference, device: torch.device) -> dict[str, float]:
    """Loads a merged folder with plain Transformers and compares.

    Returns:
        `mean_kl` (nats a position), `top1` (share of positions with the same best token), `same_answers` (share of
        greedy answers equal to the last token), `stopped` (share that end with a stop token).

    Raises:
        ArtifactDiffers: A gross difference; rounding to `export.dtype` alone doesn't reach it.
    """
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    fits = device.type == "cpu" or size * 1.2 < torch.cuda.mem_get_info(device)[0]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map={"": str(device) if fits else "cpu"})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    kl, top1 = [], []
    for ids, expected in zip(reference.rows, reference.log_probs, strict=True):
        found = _log_probs(model, ids)
        kl.append((expected.exp() * (expected - found)).sum(-1))
        top1.append((expected.argmax(-1) == found.argmax(-1)).float())
    answers = greedy_answers(model, tokenizer, reference.prompts, reference.max_new_tokens)
    stops = set(model.generation_config.eos_token_id)
    figures = {"mean_kl": torch.cat(kl).mean().item(), "top1": torch.cat(top1).mean().item()}
    if answers:
        figures["same_answers"] = sum(a == b for a, b in zip(answers, reference.answers, strict=True)) / len(answers)
        figures["stopped"] = sum(a[-1] in stops for a in answers) / len(answers)
    if figures["mean_kl"] > _MAX_KL or figures["top1"] < _MIN_TOP1:
        raise ArtifactDiffers(
            f"{folder}: not the trained model: mean KL {figures['mean_kl']:.2e} (at most {_MAX_KL}), "
            f"same best token at {figures['top1']:.1%} (at least {_MIN_TOP1:.0%})."
        )
    return figures
