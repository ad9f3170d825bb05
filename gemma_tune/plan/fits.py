"""Which settings fit: the check that a run makes before it loads its model, for a memory of any size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gemma_tune.cli.compose import compose_config
from gemma_tune.config import Config
from gemma_tune.config.launch import LaunchConfig
from gemma_tune.config.parallel import ParallelConfig
from gemma_tune.config.train import TrainConfig
from gemma_tune.models.estimate.activations import longest_possible
from gemma_tune.models.estimate.fitting import Fitted, what_fits
from gemma_tune.models.family import NARROW
from gemma_tune.models.known import cannot
from gemma_tune.plan.known_models import PlannedModel
from gemma_tune.validation.processes import sharding_problems

# Of the memory that is sold, for CUDA's context and torch; the dry run names the same.
KEPT_GB = 1.0
# GB of the table where no memory is named
SIZES = (8, 16, 24, 32, 80)
# A wide model: the defaults of a recipe depend on whether a model is narrow
_WIDE = "model=gemma3_1b_it"


@dataclass(frozen=True)
class PlannedRun:
    """One recipe with one model in one memory.

    Attributes:
        recipe: The recipe.
        model: The model.
        asked: Words of the user that are part of it.
        fitted: Settings with which it fits; None where none of those that are tried do.
        refused: Why the family can't; None where it can.
    """

    recipe: str
    model: PlannedModel
    asked: list[str]
    fitted: Fitted | None
    refused: str | None = None

    @property
    def words(self) -> list[str]:
        """What follows the recipe and the model on the command line."""
        named = dict(word.split("=", 1) for word in [*self.asked, *(self.fitted.words if self.fitted else ())])
        return [f"{key}={value}" for key, value in named.items()]

    @property
    def command(self) -> str:
        """The command, to be copied; it trains on the sample until data is named."""
        return " ".join(["python -m gemma_tune", f"recipe={self.recipe}", self.model.word, *self.words])

    @property
    def mark(self) -> str:
        """L where an adapter is trained though the recipe trains every weight by default, Q over 4-bit weights."""
        words = self.fitted.words if self.fitted else []
        return "Q" if "model.load_in_4bit=true" in words else "L" if "adapter=lora" in words else ""

    @property
    def smaller(self) -> bool:
        """Whether batches, rows or what is kept had to be made smaller to fit."""
        return any(word.startswith(("train.", "quant.")) for word in (self.fitted.words if self.fitted else ()))


@dataclass
class Planner:
    """Plans runs; a recipe is composed once.

    Attributes:
        mixed: Whether a run computes in bfloat16 over float32 weights on the machine that is planned for.
        asked: Words that every run gets.
        launch: How many processes every run has.
        parallel: How they share a model.
        on_gpu: Whether GPUs are planned for.
    """

    mixed: Callable[[Config], bool]
    asked: list[str] = field(default_factory=list)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    on_gpu: bool = False
    _composed: dict[tuple[str, str], Config] = field(default_factory=dict)

    def configuration(self, model: PlannedModel, recipe: str) -> Config:
        """The recipe's configuration for a model, as the command line gives it."""
        word = model.word if model.size.hidden_size < NARROW else _WIDE
        if (recipe, word) not in self._composed:
            self._composed[recipe, word] = compose_config(recipe, [word, *self.asked])
        cfg = copy.copy(self._composed[recipe, word])
        cfg.model = copy.copy(cfg.model)
        cfg.model.model_name_or_path = model.name
        cfg.launch, cfg.parallel = self.launch, self.parallel
        return cfg

    def run(self, model: PlannedModel, recipe: str, free: float) -> PlannedRun:
        """Plans one run in `free` GiB."""
        cfg = self.configuration(model, recipe)
        sharing = sharding_problems(cfg) if cfg.parallel.strategy == "fsdp2" else iter(())
        if why := cannot(cfg, model.family) or next(sharing, None):
            return PlannedRun(recipe, model, self.words_of_all, None, why)
        longest = longest_possible(cfg)
        fitted = what_fits(cfg, model.size, self.mixed(cfg), longest, free, other_recipes=False, on_gpu=self.on_gpu)
        return PlannedRun(recipe, model, self.words_of_all, fitted)

    @property
    def words_of_all(self) -> list[str]:
        """What every run is asked for, with its processes."""
        launch = [f"launch.{key}={n}" for key in ("num_processes", "num_nodes") if (n := getattr(self.launch, key))]
        return [*self.asked, *launch, *_parallel_words(self.parallel)]

    def smallest_gpu(self, model: PlannedModel, recipe: str) -> tuple[int, PlannedRun] | None:
        """The first of `SIZES` that a run fits in, with it; None where it fits in none."""
        for gb in SIZES:
            planned = self.run(model, recipe, gb - KEPT_GB)
            if planned.fitted:
                return gb, planned
        return None


def _parallel_words(parallel: ParallelConfig) -> list[str]:
    """What is set of `parallel`, as words."""
    default = vars(ParallelConfig())
    changed = {key: value for key, value in vars(parallel).items() if value != default[key]}
    strategy = changed.pop("strategy", None)
    return [
        *([f"parallel={strategy}"] if strategy else []),
        *(f"parallel.{key}={_word(value)}" for key, value in changed.items()),
    ]


def asked_words(train: TrainConfig) -> list[str]:
    """The keys of `train` that are set, as words."""
    default = vars(TrainConfig())
    return [f"train.{key}={_word(value)}" for key, value in vars(train).items() if value != default[key]]


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
