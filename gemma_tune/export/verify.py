"""Loads an exported folder with plain Transformers and compares it with the trained model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoTokenizer

from gemma_tune.chat.render import Prompt
from gemma_tune.config import Config
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.errors import RunError
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.evals.samples import prompt_ids
from gemma_tune.export.file_tensor import FileTensor, FileTensors
from gemma_tune.export.plain_transformers import load_exported
from gemma_tune.media.stored import only_in_calls
from gemma_tune.models.source import Source
from gemma_tune.models.towers.media import media_of

# 512 positions at most: at Gemma's vocabulary 512 MiB of log-probabilities on the host.
_ROWS, _TOKENS = 8, 64
# Nats a position. The weights are compared to the bit elsewhere; this finds gross errors, such as an engine that reads
# the folder in another way. Rounding to bfloat16 gave 9e-6 on the embedded model after 60 steps, 1.3e-2 on the shape
# of Gemma 3 270M after three steps of full fine-tuning, the small updates of which it takes back in part.
_MAX_KL_FLOAT32, _MAX_KL_ROUNDED = 1e-4, 1e-1


class ArtifactDiffers(RunError):
    """An exported file doesn't hold the trained model."""


@dataclass(frozen=True)
class Reference:
    """Outputs of the trained model that its export is compared with.

    Attributes:
        rows: Token ids, [T] each.
        log_probs: Log-probabilities after each token, float32 on the CPU, [T, V] each.
        prompts: Prompts answered greedily.
        answers: Their answers' ids.
        max_new_tokens: Length of the answers at most.
        measure: The run's own evaluation, of a model and its tokenizer.
        dtype: The trained model's own type. The export is loaded in it, so that what differs is the weights and not
            the arithmetic.
        max_kl: Mean KL that rounding to `export.dtype` can explain, nats a position.
        images_kwargs: What the images of `rows` were prepared with, as far as no file of the export can say it.
    """

    rows: list[list[int]]
    log_probs: list[torch.Tensor]
    prompts: list[list[int]]
    answers: list[list[int]]
    max_new_tokens: int
    measure: Callable[[Any, Any], Evaluation]
    dtype: torch.dtype
    max_kl: float
    images_kwargs: dict[str, Any]


def take_reference(
    cfg: Config,
    model: Any,
    tokenizer: Any,
    train: TokenizedRows,
    held_out: TokenizedRows,
    measure: Callable[[Any, Any], Evaluation],
) -> Reference:
    """Stores the trained model's log-probabilities and greedy answers, on held-out rows where there are any.

    Args:
        cfg: `eval`, and the batch size of evaluations.
        model: The trained model.
        tokenizer: Its tokenizer.
        train: The rows trained on.
        held_out: The rows held out.
        measure: The run's own evaluation, of a model and its tokenizer.
    """
    rows = held_out if held_out.rendered else train
    dtype = model.get_input_embeddings().weight.dtype
    ids = [Prompt(r) if r.media else r.input_ids[:_TOKENS] for r in rows.rendered[:_ROWS]]
    prompts = [prompt_ids(tokenizer, r) for r in rows.records[:_ROWS]]
    prompts = [p for p in prompts if len(p) <= cfg.train.max_length]
    engine = TransformersEngine(model, tokenizer)
    return Reference(
        ids,
        list(engine.log_probs(ids, "reference")),
        prompts,
        engine.answers(prompts, cfg.eval.max_new_tokens, "reference"),
        cfg.eval.max_new_tokens,
        measure,
        dtype,
        _MAX_KL_FLOAT32 if dtype == torch.float32 and cfg.export.dtype == "float32" else _MAX_KL_ROUNDED,
        only_in_calls(tokenizer.media.images_kwargs) if getattr(tokenizer, "media", None) else {},
    )


def verify_merged(folder: Path, reference: Reference, device: torch.device) -> dict[str, float]:
    """Loads a merged folder with plain Transformers and compares.

    Args:
        folder: The merged folder.
        reference: What the trained model said.
        device: Where to load it if it fits beside the trained one; else on the CPU.

    Returns:
        `export_kl` (nats a position), `export_top1` (share of positions with the same best token),
        `export_same_answers` (share of greedy answers equal to the last token), `export_stopped` (share that end with
        a stop token), and what the run's own evaluation says of the export (rounding to `export.dtype` can undo small
        updates), under its own names; one of the former names has `measured_` before it there.

    Raises:
        ArtifactDiffers: The mean KL is above what rounding to `export.dtype` can explain.
    """
    # Twice the files' size: they may be loaded in a wider type than they are stored in.
    size = 2 * sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    fits = device.type == "cpu" or size * 1.2 < torch.cuda.mem_get_info(device)[0]
    place = {"": str(device) if fits else "cpu"}
    if not fits:
        print(f"{folder} doesn't fit on the GPU beside the trained model: it is checked on the CPU.", file=sys.stderr)
    model = load_exported(folder, reference.dtype, place)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    images = tuple(reference.images_kwargs.items())
    source = Source(str(folder), None, None, str(folder), images_kwargs=images)
    tokenizer.media, _ = media_of(source, model.config, tokenizer)
    engine = TransformersEngine(model, tokenizer)
    kl, top1 = [], []
    for found, expected in zip(engine.log_probs(reference.rows, "export"), reference.log_probs, strict=True):
        kl.append((expected.exp() * (expected - found)).sum(-1))
        top1.append((expected.argmax(-1) == found.argmax(-1)).float())
    figures = {"export_kl": torch.cat(kl).mean().item(), "export_top1": torch.cat(top1).mean().item()}
    answers = engine.answers(reference.prompts, reference.max_new_tokens, "export")
    if answers:
        same = [a == b for a, b in zip(answers, reference.answers, strict=True)]
        figures["export_same_answers"] = sum(same) / len(answers)
        figures["export_stopped"] = sum(bool(a) and a[-1] in engine.stops for a in answers) / len(answers)
    if figures["export_kl"] > reference.max_kl:
        raise ArtifactDiffers(
            f"{folder}: not the trained model: KL {figures['export_kl']:.2e} (at most {reference.max_kl:g}), "
            f"same best token at {figures['export_top1']:.1%} of the positions."
        )
    measured = reference.measure(model, tokenizer).figures  # a test may be called `export`
    return figures | {f"measured_{n}" if n in figures else n: value for n, value in measured.items()}


def verify_written(folder: Path, tensors: FileTensors) -> None:
    """Reads the weights back and compares them, to the bit, with those that were to be written.

    Args:
        folder: A folder of safetensors files.
        tensors: Every weight by its name.

    Raises:
        ArtifactDiffers: A weight is missing, too many, or another one.
    """
    left = dict(tensors)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (not a mapping)
                expected = left.pop(name, None)
                if expected is None or not _equal(stored.get_tensor(name), FileTensor.of(expected)):
                    raise ArtifactDiffers(f"{file}: {name} isn't the weight that was to be written.")
    if left:
        raise ArtifactDiffers(f"{folder}: {len(left)} weights were not written, for example {next(iter(left))}.")


def _equal(stored: torch.Tensor, expected: FileTensor) -> bool:
    if (tuple(stored.shape), stored.dtype) != (expected.shape, expected.dtype):
        return False
    place, flat = 0, stored.flatten()
    for block in expected.blocks():
        start, place = place, place + block.numel()
        if not torch.equal(flat[start:place], block.flatten()):
            return False
    return bool(place == flat.numel())
