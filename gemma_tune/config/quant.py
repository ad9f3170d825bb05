"""`quant=…`: the quantization format that a model is trained for and exported in."""

from __future__ import annotations

from dataclasses import dataclass, field

from gemma_tune.config.option import BATCH, ROWS, STEPS, TOKENS, option

# The grid that a checkpoint's weights are on already
STORED = "q4_0_checkpoint"
# The grid of Gemma's phone format, one scale for each output channel, and the bits that a layer can have there
CHANNEL, CHANNEL_BITS = "int4_channel", (8, 4, 2)


@dataclass
class Stage2Config:
    """The second training of `recipe=tune_to_int4`, in the quantization format; all else is as in `train`."""

    peft_type: str | None = option(
        None,
        "none trains every weight; lora an adapter inside the quantizer, with the rank of `adapter`; null: as "
        "`adapter`.",
        choices=("none", "lora"),
    )
    learning_rate: float | None = option(
        None, "Peak learning rate; null: the default of recipe=qat.", above=0, at_most=100
    )
    per_device_train_batch_size: int | None = option(
        None,
        "Examples of one forward pass; null: as in `train` where it is set, else the default of recipe=qat.",
        at_least=1,
        at_most=BATCH,
    )
    num_train_epochs: float = option(0.5, "Epochs; ignored where max_steps is set.", above=0, at_most=1e6)
    max_steps: int = option(-1, "Total number of optimizer steps; -1: by num_train_epochs.", at_least=-1, at_most=STEPS)


@dataclass
class QuantConfig:
    """docs/int4.md explains the formats."""

    grid: str = option(
        "none",
        "Quantization format of the linear layers: q4_0 (scales of 5 bits: the same numbers in every file), "
        "q4_0_fp16 (llama.cpp's own rule), q4_0_checkpoint (the codes and scales that a QAT checkpoint has already), "
        "q3_0 (3 bits, for experiments); int4_channel (one scale for each output channel, for export.formats=[phone]).",
        choices=("none", "q4_0", "q4_0_fp16", STORED, "q3_0", CHANNEL),
    )
    embedding: str = option(
        "none",
        "Quantization format of the embedding and the head tied to it; none: 16 bit; q4_0_checkpoint: as the "
        "checkpoint has it, on its 4-bit grid or in 16 bit; int8_channel, int4_channel, int2_channel: with "
        "quant.grid=int4_channel.",
        choices=("none", "q8_0", "q4_0", STORED, *(f"int{bits}_channel" for bits in CHANNEL_BITS)),
    )
    int2_modules: list[str] = option(
        [],
        "quant.grid=int4_channel: layers that get 2 bits in place of 4, as regular expressions that are searched for "
        "in their names, for example ['layers\\.(1[5-9]|2\\d|3[0-4])\\.mlp'].",
    )
    int8_modules: list[str] = option(
        [], "quant.grid=int4_channel: layers that get 8 bits, also ones that would stay in 16 bit, in the same way."
    )
    calibration_samples: int = option(
        32,
        "quant.grid=int4_channel: training examples on which the scales of 8-bit activations are calibrated, before "
        "anything is trained; 0: activations are not rounded.",
        at_least=0,
        at_most=ROWS,
    )
    checkpoint_file: str | None = option(
        None,
        "GGUF file whose codes and scales are trained on, with quant.grid=q4_0_checkpoint: its weights take the place "
        "of the model's; null: those of the model.",
        path="file",
    )
    per_layer_embedding: str = option(
        "none",
        "Quantization format of the table of per-layer embeddings, which is half of Gemma 4 E2B and of Gemma 3n E2B; "
        "none: 16 bit; int8_channel, int4_channel, int2_channel: with quant.grid=int4_channel.",
        choices=("none", "q8_0", "q4_0", *(f"int{bits}_channel" for bits in CHANNEL_BITS)),
    )
    cross_entropy: float = option(
        0.0,
        "Share of cross-entropy in the loss; the rest is the KL divergence from the unquantized model.",
        at_least=0,
        at_most=1,
    )
    teacher: str = option(
        "cache",
        "cache: the probabilities of the unquantized model are computed once and kept on disk; live: they are "
        "computed at every step, by a second copy of the model.",
        choices=("cache", "live"),
    )
    teacher_top_k: int = option(
        64, "Largest probabilities kept for each token; 6 bytes each.", at_least=1, at_most=TOKENS
    )
    max_kl_samples: int = option(
        64,
        "Validation examples on which the KL divergence from the unquantized model is measured.",
        at_least=1,
        at_most=ROWS,
    )
    teacher_folder: str | None = option(
        None, "Folder of the cache, to reuse it in other runs; null: `teacher/` in the run folder.", path="cache"
    )
    stage2: Stage2Config = field(default_factory=Stage2Config)

    @property
    def by_channel(self) -> bool:
        """Whether each output channel has one scale, and activations are rounded, too."""
        return self.grid == CHANNEL

    @property
    def other_bits(self) -> dict[int, list[str]]:
        """Patterns of layers that have other bits than the grid, by their bits."""
        return {2: self.int2_modules, 8: self.int8_modules}

    @property
    def continues(self) -> bool:
        """Whether the codes and scales of the checkpoint are kept, and nothing is derived from its weights."""
        return self.grid == STORED

    @property
    def embedding_grid(self) -> str | None:
        """The quantization format of the embedding, or None where it is kept in 16 bit."""
        return None if self.embedding == "none" else self.embedding

    @property
    def per_layer_grid(self) -> str | None:
        """The quantization format of the per-layer embeddings, or None where they are kept in 16 bit."""
        return None if self.per_layer_embedding == "none" else self.per_layer_embedding

    @property
    def keeps_targets(self) -> bool:
        """Whether the unquantized model's probabilities are kept on disk; cross-entropy alone needs none."""
        return self.teacher == "cache" and self.cross_entropy < 1
