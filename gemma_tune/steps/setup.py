"""The first step: what is known before a row is read or a weight is loaded, and what surely does not fit."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset

from gemma_tune.config import AdapterConfig, Config, ModelConfig
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.errors import UserError
from gemma_tune.export.writable import check_writable
from gemma_tune.models.adapters.token_rows import with_rows
from gemma_tune.models.adapters.weight_counts import WeightCounts
from gemma_tune.models.check_source import check_source
from gemma_tune.models.estimate.capacity import check_disk, check_memory, free_memory, host_warning, memory_warning
from gemma_tune.models.estimate.memory import estimate, reset_peak
from gemma_tune.models.estimate.size import ModelSize, published_size, size_of
from gemma_tune.models.hardware import check_hardware, mixed_precision, pick_device
from gemma_tune.models.kernels.host_table import loading_for
from gemma_tune.models.load import load_config, load_tokenizer
from gemma_tune.models.sharded import loading_to_shard
from gemma_tune.models.sharding import sharding_of
from gemma_tune.models.source import Source, find_source
from gemma_tune.run.folder import RunFolder
from gemma_tune.train.check_inputs import CheckInputs
from gemma_tune.validation.schedulers import scheduler_problems

_FIND_TO_TRAIN = partial(find_source, continues=True)


@dataclass(frozen=True)
class Setup:
    """What is known of the model and the machine.

    Attributes:
        source: Where the weights are.
        tokenizer: With the chat template that is trained on and saved; None: not on this machine (a dry run goes on).
        config: Transformers' configuration of the checkpoint; None: not on this machine.
        size: The model's sizes; None: unknown.
        device: Where it is trained.
        mixed: Whether products run in bfloat16 over float32 weights.
        free: GiB of memory that are free.
        beside: GiB that a reward model takes; 0 without one.
        adapter: What is trained, with the rows of the added tokens.
        missing: Why there is no configuration or tokenizer.
    """

    source: Source
    tokenizer: Any
    config: Any
    size: ModelSize | None
    device: torch.device
    mixed: bool
    free: float
    adapter: AdapterConfig
    beside: float = 0.0
    missing: UserError | None = None

    @property
    def context(self) -> int:
        """Tokens that the model can hold."""
        return self.config.get_text_config().max_position_embeddings if self.config else sys.maxsize

    def with_media(self, cfg: Config, rows: Any) -> Setup:
        """The same with towers beside the model, where the rows to train on have media.

        Args:
            cfg: The configuration.
            rows: Tokenized rows, pairs, labelled answers, or prompts.
        """
        dataset, most = getattr(rows, "dataset", None), getattr(rows, "most_media", 0)
        if isinstance(dataset, Dataset) and "media" in dataset.column_names:
            counts = [sum(medium["tokens"] for medium in media) for media in dataset["media"]]
            most = max(counts) * cfg.traits.sequences
            if cfg.train.packing:  # of what packed rows have in the mean
                most = max(most, cfg.train.max_length * sum(counts) // rows.tokens)
        return replace(self, size=replace(self.size, media_tokens=most)) if self.size and most else self

    def memory(self, cfg: Config, longest: int) -> dict[str, float]:
        """GiB that training needs, by part, where sequences have at most `longest` tokens."""
        assert self.size is not None
        return estimate(cfg, self.size, self.mixed, longest, self.beside, self.device.type == "cuda")

    def check_inputs(
        self,
        cfg: Config,
        model: Any,
        counts: WeightCounts,
        rows: TokenizedRows,
        longest: int,
        weighs_tokens: bool = True,
        frozen: int = 0,
    ) -> CheckInputs:
        """What the checks before training look at.

        Args:
            cfg: The configuration.
            model: The model, with its adapter.
            counts: How many weights there are, and how many of them are trained.
            rows: The rows to train on.
            longest: Tokens of the longest sequence of a training batch.
            weighs_tokens: Whether the trainer divides each step's loss by the tokens of all its forward passes.
            frozen: Weights that are meant to stay as they are where all others are trained.
        """
        assert self.size is not None
        memory = (self.memory(cfg, longest)["total"], self.free)
        return CheckInputs(cfg, model, self.tokenizer, rows, counts, self.size, weighs_tokens, memory, frozen)

    def memory_warning(self, cfg: Config, longest: int) -> list[str]:
        """What to say where the estimate is above the memory that is free."""
        assert self.size is not None
        on_gpu = self.device.type == "cuda"
        warning = memory_warning(cfg, self.size, self.mixed, longest, self.free, self.beside, on_gpu=on_gpu)
        of_host = host_warning(cfg, self.size, self.mixed, longest) if on_gpu else None
        return [said for said in (warning, of_host) if said]


def look_at_model(
    cfg: Config,
    find: Callable[[ModelConfig], Source] = _FIND_TO_TRAIN,
    beside: Callable[[Config], float] = lambda _: 0.0,
    merges: bool = False,
) -> Setup:
    """Finds the checkpoint and reads its configuration and tokenizer; one that is not downloaded yet is no error.

    Args:
        cfg: The configuration.
        find: What the model's name means.
        beside: Gives the GiB of a reward model beside the trained one.
        merges: Whether a stored adapter is merged into the weights before training.

    Raises:
        UserError: An option that this machine cannot do, or a local checkpoint that cannot be used.
    """
    check_hardware(cfg)
    if problems := [*scheduler_problems(cfg)]:  # a rate that was left to us, or is that of a second training
        raise UserError(*problems)
    source, device = find(cfg.model), pick_device(cfg.model)
    config = tokenizer = size = missing = None
    adapter = cfg.adapter
    try:
        config = load_config(source)
        size = size_of(config)
        tokenizer = load_tokenizer(source, cfg.model.chat_template)
    except UserError as error:
        if source.folder is not None:
            raise
        missing, size = error, size or published_size(cfg.model.model_name_or_path)
    if config is not None:
        if tokenizer is not None:
            adapter = with_rows(adapter, config, tokenizer, source.added_tokens)
        check_source(cfg.model, adapter, source, config, trains=True, merges=merges, packed=cfg.quant.continues)
        check_writable(cfg, config, tokenizer, source)
    mixed, free = mixed_precision(cfg, device), free_memory(device, sharding_of(cfg).per_machine)
    return Setup(source, tokenizer, config, size, device, mixed, free, adapter, beside(cfg), missing)


def set_up(cfg: Config, folder: RunFolder, look: Callable[[Config], Setup] = look_at_model) -> Setup:
    """Finds the model, and refuses what surely does not fit before a long file is read.

    Args:
        cfg: The configuration.
        folder: The run folder.
        look: `look_at_model`, perhaps with other arguments.

    Raises:
        UserError: Hardware, model, memory or disk.
    """
    setup = look(cfg)
    if setup.missing:
        raise setup.missing
    assert setup.size is not None  # of a configuration that was read
    check_memory(cfg, setup.size, setup.mixed, setup.free, setup.beside, on_gpu=setup.device.type == "cuda")
    check_disk(cfg, setup.size, setup.source, folder.path, resumed=folder.goes_on)
    return setup


@contextlib.contextmanager
def loading(cfg: Config, folder: RunFolder, setup: Setup) -> Iterator[None]:
    """Seeds everything, and measures the seconds of loading and the peak of memory from here on."""
    set_seed(cfg.seed)
    reset_peak(setup.device)
    with folder.timed("load"), loading_to_shard(cfg), loading_for(cfg):
        yield
