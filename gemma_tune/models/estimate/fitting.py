"""The settings with which a run fits in a memory: the fewest, cheapest first."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

from gemma_tune.config import Config
from gemma_tune.config.methods import Reads
from gemma_tune.config.parallel import ParallelConfig
from gemma_tune.models.estimate.activations import offloads
from gemma_tune.models.estimate.memory import estimate, has_live_teacher
from gemma_tune.models.estimate.size import ModelSize
from gemma_tune.models.sharding import recomputes, sharding_of
from gemma_tune.validation.processes import sharding_problems
from gemma_tune.validation.trainer_options import trainer_options

_SHORTEST = 256  # tokens of a row


@dataclass(frozen=True)
class Fitted:
    """Settings with which the estimate fits.

    Attributes:
        words: What is set beside the configuration, as on the command line.
        cfg: The configuration with them.
        memory: GiB, by part, with the total.
    """

    words: list[str]
    cfg: Config
    memory: dict[str, float]


def what_fits(
    cfg: Config,
    shape: ModelSize,
    mixed: bool,
    longest: int,
    free: float,
    beside: float = 0.0,
    other_recipes: bool = True,
    on_gpu: bool = False,
) -> Fitted | None:
    """The fewest options, cheapest first, with which the estimate fits; None if none do.

    Args:
        cfg: The configuration.
        shape: The model's sizes.
        mixed: Whether products run in bfloat16 over float32 weights.
        longest: Tokens of the longest row, after cutting.
        free: GiB.
        beside: GiB of a model that scores the trained one.
        other_recipes: Whether lora_sft and qlora_sft may take the place of the recipe.
        on_gpu: Whether what needs GPUs may be proposed: parallel=fsdp2 for several processes, and offloading.
    """
    tried = copy.deepcopy(cfg)
    words: dict[str, str] = {}
    for change in (
        _nothing,
        _small_batches,
        _recompute,
        _cached_teacher,
        _share,
        _adapters,
        _four_bit,
        _offload,
        _shorter,
    ):
        if change in (_share, _offload) and not on_gpu:
            continue
        if change in (_adapters, _four_bit) and cfg.traits.adapter_recipes and not other_recipes:
            continue
        for key, word in change(tried):
            words[key] = word
        now_mixed = mixed and tried.model.dtype == "float32"
        rows = longest if cfg.traits.rewarded else min(longest, tried.train.max_length * cfg.traits.sequences)
        memory = estimate(tried, shape, now_mixed, rows, beside, on_gpu)
        if memory["total"] <= free:
            if tried.parallel.strategy == cfg.parallel.strategy:
                words.pop("parallel", None)
            return Fitted(list(words.values()), tried, memory)
    return None


_Words = Iterator[tuple[str, str]]


def _nothing(cfg: Config) -> _Words:
    yield from ()


def _small_batches(cfg: Config) -> _Words:
    t = cfg.train
    least = 2 if cfg.traits.reads is Reads.LABELLED else 1  # KTO compares with the other rows of a batch
    several = (t.per_device_train_batch_size or 1) // least
    if several > 1:
        t.gradient_accumulation_steps *= several
        t.per_device_train_batch_size = least
        if cfg.traits.rewarded and t.steps_per_generation:  # as many completions a generation as before
            t.steps_per_generation *= several
            yield "generation", f"train.steps_per_generation={t.steps_per_generation}"
        yield "batch", f"train.per_device_train_batch_size={least}"
        yield "accumulation", f"train.gradient_accumulation_steps={t.gradient_accumulation_steps}"


def _recompute(cfg: Config) -> _Words:
    if not recomputes(cfg):
        cfg.train.gradient_checkpointing = True
        yield "recompute", "train.gradient_checkpointing=true"


def _cached_teacher(cfg: Config) -> _Words:
    if has_live_teacher(cfg):
        cfg.quant.teacher = "cache"
        yield "teacher", "quant.teacher=cache"


def _share(cfg: Config) -> _Words:
    if cfg.parallel.strategy == "fsdp2" or sharding_of(cfg).processes == 1:
        return
    cfg.parallel.strategy = "fsdp2"
    if any(sharding_problems(cfg)):  # of this recipe or model
        cfg.parallel.strategy = "ddp"
    else:
        yield "parallel", "parallel=fsdp2"


def _adapters(cfg: Config) -> _Words:
    if cfg.adapter.peft_type == "none":
        cfg.adapter.peft_type = "lora"
        if not cfg.traits.float32:
            cfg.model.dtype = "bfloat16"  # as it is for adapters, where nothing else is said
        yield "recipe", "recipe=lora_sft" if cfg.traits.adapter_recipes else "adapter=lora"


def _four_bit(cfg: Config) -> _Words:
    if not cfg.traits.four_bit:
        return
    if cfg.parallel.strategy == "fsdp2" and sharding_of(cfg).processes > 1:  # which is refused over 4-bit weights
        if cfg.parallel.activation_checkpointing:
            cfg.train.gradient_checkpointing = True
            yield "recompute", "train.gradient_checkpointing=true"
        cfg.parallel = ParallelConfig()
        yield "parallel", "parallel=ddp"
    if not cfg.model.load_in_4bit:
        cfg.model.load_in_4bit = True
        yield ("recipe", "recipe=qlora_sft") if cfg.traits.adapter_recipes else ("four_bit", "model.load_in_4bit=true")
    if cfg.model.dtype != "bfloat16":
        cfg.model.dtype = "bfloat16"
        yield "dtype", "model.dtype=bfloat16"


def _offload(cfg: Config) -> _Words:
    name = "activation_offloading"
    if cfg.traits.trainer and name in trainer_options(cfg.traits.trainer) and not offloads(cfg):
        cfg.train.extra[name] = True
        yield "offload", f"train.extra.{name}=true"


def _shorter(cfg: Config) -> _Words:
    if not cfg.traits.rewarded and cfg.train.max_length > _SHORTEST:
        cfg.train.max_length = _SHORTEST
        yield "length", f"train.max_length={_SHORTEST}"
