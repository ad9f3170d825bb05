"""`train=…`: the trainer's options that we name; every other one goes through `train.extra`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gemma_tune.config.option import option


@dataclass
class TrainConfig:
    """Names are those of TRL's and Transformers' own options."""

    learning_rate: float | None = option(
        None,
        "Peak learning rate; null: 2e-4 for adapters, 2e-5 where every weight is trained; for models narrower than "
        "512, as the embedded one is, 8e-3 and 2e-3; lower ones on the grid, with preferences and with rewards.",
        above=0,
    )
    lr_scheduler_type: str = option("cosine", "Schedule of the learning rate, one of Transformers' names.")
    warmup_steps: float = option(0.03, "Optimizer steps of warm-up; below 1: share of all steps.", at_least=0)
    num_train_epochs: float = option(1.0, "Passes over the training rows; ignored where max_steps is set.", above=0)
    max_steps: int = option(-1, "Optimizer steps in all; -1: by num_train_epochs.", at_least=-1)
    per_device_train_batch_size: int | None = option(
        None,
        "Rows of one forward pass on one device; null: 8, or 2 packed ones, or 4 for models narrower than 512 (on "
        "the grid 8, completions 256).",
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
    loss_type: str | None = option(
        None, "SFT, DPO, GRPO: the loss, one of TRL's names; null: as the recipe has it, else TRL's default."
    )
    beta: float | None = option(
        None,
        "DPO: strength of the pull to the reference; RL: weight of the KL to the model as it began (0: none, and no "
        "second copy of it). null: TRL's default.",
        at_least=0,
    )
    num_generations: int = option(8, "RL: completions of each prompt.", at_least=2)
    max_completion_length: int | None = option(
        None, "RL: tokens of a completion at most; null: 256, or 32 for models narrower than 512.", at_least=1
    )
    temperature: float = option(1.0, "RL: temperature that completions are sampled at.", above=0)
    num_iterations: int = option(1, "RL: updates for each completion (μ).", at_least=1)
    steps_per_generation: int | None = option(
        None,
        "RL: forward passes that one generation of completions is divided among; null: gradient_accumulation_steps.",
        at_least=1,
    )
    epsilon: float = option(0.2, "RL: by how much a ratio may fall below 1, and rise above it.", above=0)
    epsilon_high: float | None = option(None, "RL: by how much it may rise, where that is another value.", above=0)
    scale_rewards: str = option(
        "group",
        "GRPO: what advantages are divided by: the spread in a prompt's group, in the batch, or nothing.",
        choices=("group", "batch", "none"),
    )
    importance_sampling_level: str = option(
        "token", "GRPO: whether ratios are of tokens or of whole completions.", choices=("token", "sequence")
    )
    mask_truncated_completions: bool = option(False, "RL: leave completions that were cut off out of the loss.")
    use_vllm: bool = option(False, "RL: let vLLM write the completions, in place of Transformers.")
    vllm_mode: str = option(
        "colocate", "vLLM in this process, or a server (`trl vllm-serve`).", choices=("colocate", "server")
    )
    optim: str = option("adamw_torch", "Optimizer, one of Transformers' names (8-bit and paged ones: bitsandbytes).")
    weight_decay: float = option(0.0, "Decay of the weights a step.", at_least=0)
    max_grad_norm: float = option(1.0, "Gradients longer than this are scaled down; 0: never.", at_least=0)
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: much less memory, about a third more time."
    )
    bf16: bool | None = option(
        None,
        "Products in bfloat16 over float32 weights; null: where the weights are float32 and a GPU has "
        "it, or, with rewards, a CPU.",
    )
    logging_steps: int = option(1, "Optimizer steps between two lines of metrics.jsonl.", at_least=1)
    eval_steps: int | None = option(
        None, "Optimizer steps between two evaluations while training (`eval.during_training`); null: none.", at_least=1
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
        None,
        "Folder of a checkpoint, or `latest`: the newest one of the run folder.",
        path="checkpoint",
    )
    extra: dict[str, Any] = option({}, "Any other option of the trainer's own dataclass, by its name there.")

    @property
    def passes_per_generation(self) -> int:
        """RL: forward passes that one generation of completions is divided among."""
        return self.steps_per_generation or self.gradient_accumulation_steps

    @property
    def generation_period(self) -> int:
        """RL: optimizer steps from one generation of completions to the next that begins with a step.

        Only there a run can be resumed exactly: the completions at hand are in no checkpoint.
        """
        passes = math.lcm(self.passes_per_generation * self.num_iterations, self.gradient_accumulation_steps)
        return passes // self.gradient_accumulation_steps
