"""`train=…`: the trainer's options that we name; every other one goes through `train.extra`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gemma_tune.config.option import option


@dataclass
class TrainConfig:
    """Names are those of TRL's `SFTConfig` and Transformers' `TrainingArguments`."""

    learning_rate: float | None = option(
        None,
        "Peak learning rate; null: 2e-4 for adapters, 2e-5 where every weight is trained; for models narrower than "
        "512, as the embedded one is, 8e-3 and 2e-3.",
        above=0,
    )
    lr_scheduler_type: str = option("cosine", "Schedule of the learning rate, one of Transformers' names.")
    warmup_steps: float = option(0.03, "Optimizer steps of warm-up; below 1: share of all steps.", at_least=0)
    num_train_epochs: float = option(1.0, "Passes over the training rows; ignored where max_steps is set.", above=0)
    max_steps: int = option(-1, "Optimizer steps in all; -1: by num_train_epochs.", at_least=-1)
    per_device_train_batch_size: int | None = option(
        None,
        "Rows of one forward pass on one device; null: 8, or 2 packed ones, or 4 for models narrower than 512.",
        at_least=1,
    )
    per_device_eval_batch_size: int = option(8, "Rows of one evaluation pass on one device.", at_least=1)
    gradient_accumulation_steps: int = option(1, "Forward passes added up before an optimizer step.", at_least=1)
    max_length: int = option(1024, "Tokens of a row, or of a packed row, at most; longer rows are cut.", at_least=8)
    packing: bool | None = option(
        None,
        "Put several rows into one of max_length tokens (the best fit); they don't see each other. null: yes, but not "
        "for models narrower than 512, which learn more from many small steps, nor with group_by_length.",
    )
    train_sampling_strategy: str = option(
        "random",
        "Order of the rows: random, sequential, or group_by_length (batches of rows of like length, in random order: "
        "less padding where rows aren't packed).",
        choices=("random", "sequential", "group_by_length"),
    )
    optim: str = option("adamw_torch", "Optimizer, one of Transformers' names (8-bit and paged ones: bitsandbytes).")
    weight_decay: float = option(0.0, "Decay of the weights a step.", at_least=0)
    max_grad_norm: float = option(1.0, "Gradients longer than this are scaled down; 0: never.", at_least=0)
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: much less memory, about a third more time."
    )
    bf16: bool | None = option(
        None, "Products in bfloat16 over float32 weights; null: where a GPU has it and the weights are float32."
    )
    logging_steps: int = option(1, "Optimizer steps between two lines of metrics.jsonl.", at_least=1)
    eval_steps: int | None = option(
        None, "Optimizer steps between two evaluations while training (`eval.while_training`); null: none.", at_least=1
    )
    metric_for_best_model: str | None = option(
        None,
        "The figure of those evaluations (`held_out_loss`, `test_exact_match`, …) by which the best step is kept; its "
        "weights are loaded at the end, evaluated and exported. null: the last step's.",
    )
    greater_is_better: bool | None = option(
        None, "Whether a greater figure is better; null: yes, but not where its name ends in loss, perplexity or kl."
    )
    early_stopping_patience: int | None = option(
        None, "Evaluations in a row that bring no better figure before training stops; null: it never does.", at_least=1
    )
    early_stopping_threshold: float = option(
        0.0, "By how much more a figure must be better to count as such for the patience.", at_least=0
    )
    save_steps: int | None = option(
        None, "Optimizer steps between two checkpoints; null: none but the best step's, where one is kept.", at_least=1
    )
    save_total_limit: int | None = option(2, "Checkpoints kept, the newest ones and the best; null: all.", at_least=1)
    resume_from_checkpoint: str | None = option(
        None, "Folder of a checkpoint, or `latest`: the newest one of the run folder."
    )
    extra: dict[str, Any] = option({}, "Any other option of the trainer's own dataclass, by its name there.")
