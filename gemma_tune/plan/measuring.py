"""Times training steps on this machine, on random weights of a model's shape."""

from __future__ import annotations

import statistics
import time

import torch
import transformers
from accelerate.utils import set_seed
from transformers import AutoConfig

from gemma_tune.config import Config
from gemma_tune.errors import UserError
from gemma_tune.models.estimate.capacity import free_memory
from gemma_tune.models.estimate.memory import in_unit
from gemma_tune.models.estimate.size import size_of
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.hardware import pick_device
from gemma_tune.models.load import load_config
from gemma_tune.models.published import published
from gemma_tune.models.source import find_source
from gemma_tune.plan.speed import Speed

_SHAPE = "google/gemma-3-270m-it"
_EMBEDDED = "assets://tiny"
_STEPS = 3
# Tokens of a step: enough to keep a GPU at work, and few enough for a processor
_TOKENS = {"cuda": 2048, "cpu": 256}


def measured_speed(cfg: Config) -> Speed:
    """Forward and backward passes over every weight, after one that isn't counted; the median of three.

    Raises:
        UserError: The shape doesn't fit in the memory.
    """
    name = _SHAPE if cfg.model.model_name_or_path == _EMBEDDED else cfg.model.model_name_or_path
    found = published(name)
    whole = AutoConfig.for_model(found.model_type, **found.text) if found else load_config(find_source(cfg.model))
    text, size, device = whole.get_text_config(), size_of(whole), pick_device(cfg.model)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    needed = 2.5 * size.parameters * torch.finfo(dtype).bits / 8 / 2**30  # weights, gradients, activations
    if needed > (free := free_memory(device)):
        raise UserError(
            f"plan.measure=true: weights and gradients of {name} need about {in_unit(needed)}, and {in_unit(free)} are "
            "free; leave model=… out to measure Gemma 3 270M."
        )
    set_seed(cfg.seed)
    with torch.device(device):
        model = getattr(transformers, FAMILIES[text.model_type].language_class)(text).to(dtype).train()
        ids = torch.randint(0, text.vocab_size, (1, _TOKENS.get(device.type, 256)))
    seconds = []
    for _ in range(_STEPS + 1):
        begin = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    step = statistics.median(seconds[1:])
    flops = 6.0 * size.computed_parameters * ids.numel() / step
    return Speed(
        flops,
        f"measured here: {flops / 1e12:.3g} TFLOPS, {ids.numel()} tokens in {step:.2f} s, forward and backward over "
        f"random {str(dtype).removeprefix('torch.')} weights of {name}'s shape on the {device.type}, {_STEPS} steps",
    )
