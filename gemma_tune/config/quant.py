"""`quant=…`: the int4 grid that a model is trained for and exported on."""

from __future__ import annotations

from dataclasses import dataclass, field

from gemma_tune.config.option import option


@dataclass
class Stage2Config:
    """The training on the grid that follows the tuning in `recipe=tune_to_int4`; all else is as in `train`."""

    peft_type: str | None = option(
        None,
        "none trains every weight, lora an adapter inside the quantiser, with `adapter`'s rank; null: as `adapter`.",
        choices=("none", "lora"),
    )
    learning_rate: float | None = option(None, "Peak learning rate; null: as recipe=qat has it.", above=0)
    per_device_train_batch_size: int | None = option(
        None, "Rows of one forward pass; null: as `train` has it where that is set, else as recipe=qat.", at_least=1
    )
    num_train_epochs: float = option(0.5, "Passes over the training rows; ignored where max_steps is set.", above=0)
    max_steps: int = option(-1, "Optimizer steps in all; -1: by num_train_epochs.", at_least=-1)


@dataclass
class QuantConfig:
    """docs/int4.md explains the grids."""

    grid: str = option(
        "none",
        "Grid of the projections: q4_0 (scales of 5 bits: the same numbers in every file), q4_0_fp16 (llama.cpp's own "
        "rule), q3_0 (3 bit, for trying).",
        choices=("none", "q4_0", "q4_0_fp16", "q3_0"),
    )
    embedding: str = option(
        "none", "Grid of the embedding and the head tied to it; none: 16 bit.", choices=("none", "q8_0", "q4_0")
    )
    cross_entropy: float = option(
        0.0, "Share of cross-entropy in the loss; the rest is KL to the unquantised model.", at_least=0, at_most=1
    )
    teacher: str = option(
        "cache",
        "cache: the unquantised model's probabilities are computed once and kept on disk; live: at every step, by a "
        "second copy of the model.",
        choices=("cache", "live"),
    )
    teacher_top_k: int = option(64, "Probabilities kept a token, the largest ones; 6 bytes each.", at_least=1)
    max_kl_samples: int = option(
        64, "Held-out rows on which the distance from the unquantised model is measured.", at_least=1
    )
    teacher_folder: str | None = option(
        None,
        "Folder of the cache, to use it again in other runs; null: `teacher/` in the run folder.",
        path="cache",
    )
    stage2: Stage2Config = field(default_factory=Stage2Config)

    @property
    def embedding_grid(self) -> str | None:
        """The grid of the embedding, or None where it is kept in 16 bit."""
        return None if self.embedding == "none" else self.embedding

    @property
    def keeps_targets(self) -> bool:
        """Whether the unquantised model's probabilities are kept on disk: a loss of cross-entropy alone needs none."""
        return self.teacher == "cache" and self.cross_entropy < 1
