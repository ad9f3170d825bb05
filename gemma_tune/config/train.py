"""`train=…`: the trainer's options that we name; every other one goes through `train.extra`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from gemma_tune.config.option import BATCH, STEPS, TOKENS, option

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_TIME = re.compile(r"^(?:\d+(?:\.\d+)?[dhms])+$")

# Schedules that follow the metric of `metric_for_best_model`
BY_METRIC = ("reduce_lr_on_plateau", "greedy")


@dataclass
class TrainConfig:
    """Names are those of TRL's and Transformers' own options."""

    learning_rate: float | None = option(
        None,
        "Peak learning rate; null: 2e-4 for adapters, 2e-5 where every weight is trained; 8e-3 and 2e-3 for models "
        "with a hidden size below 512, as the embedded one; lower for QAT, preferences and rewards.",
        above=0,
        at_most=1e6,
    )
    towers_learning_rate: float | None = option(
        None,
        "Peak learning rate of the towers and projectors that model.train_towers names; null: 5e-6, and 1e-4 for "
        "models with a hidden size below 512; of adapters (model.train_towers=lora) train.learning_rate.",
        above=0,
        at_most=1e6,
    )
    lr_scheduler_type: str = option("cosine", "Schedule of the learning rate, one of Transformers' names.")
    warmup_steps: float = option(
        0.03, "Warm-up in optimizer steps; below 1: as a share of all steps.", at_least=0, at_most=STEPS
    )
    num_train_epochs: float = option(1.0, "Epochs; ignored where max_steps is set.", above=0, at_most=1e6)
    max_steps: int = option(-1, "Total number of optimizer steps; -1: by num_train_epochs.", at_least=-1, at_most=STEPS)
    per_device_train_batch_size: int | None = option(
        None,
        "Examples of one forward pass on one device; null: 8, or 2 packed sequences, or 4 for models with a hidden "
        "size below 512 (QAT 8, completions 256).",
        at_least=1,
        at_most=BATCH,
    )
    per_device_eval_batch_size: int = option(
        8, "Examples of one evaluation pass on one device.", at_least=1, at_most=BATCH
    )
    gradient_accumulation_steps: int = option(
        1, "Forward passes whose gradients are added up before an optimizer step.", at_least=1, at_most=BATCH
    )
    max_length: int = option(
        1024,
        "Maximum number of tokens of an example, or of a packed sequence; longer examples are truncated.",
        at_least=8,
        at_most=TOKENS,
    )
    packing: bool | None = option(
        None,
        "Pack several examples into one sequence of max_length tokens (best fit); they don't attend to each other. "
        "null: yes, but not for models with a hidden size below 512, which learn more from many small steps, nor "
        "with group_by_length and group_by_beginning.",
    )
    train_sampling_strategy: str = option(
        "random",
        "Order of the examples: random, sequential, group_by_length (batches of examples of similar length, in "
        "random order: less padding without packing), or SFT: group_by_beginning (of examples that begin alike, whose "
        "beginning is computed once: many questions about a document, system turns, lists of tools).",
        choices=("random", "sequential", "group_by_length", "group_by_beginning"),
    )
    tiled_head: bool | None = option(
        None,
        "Compute the logits of trained positions alone, 256 at a time, and their gradients in the forward pass; false: "
        "TRL's head, whose losses differ by rounding. null: on a CPU.",
    )
    compact_batches: bool = option(
        True,
        "Compute a batch as one row without padding, in which what rows begin with alike (a system turn, tools, a "
        "prompt) is computed once, without dropout. It needs attention by_document (the default "
        "on a CPU), and changes losses by rounding.",
    )
    prefix_caching: bool = option(
        True,
        "RL: compute a prompt once when its completions are generated, and repeat its keys and values for them "
        "(without dropout, text alone; vLLM has an option of its own).",
    )
    skip_zero_advantages: bool = option(
        True,
        "RL: leave completions whose advantage is 0 out of the update where nothing but the advantage gives them a "
        "gradient (GRPO: with beta 0); the loss stays the same, and the logged entropy is that of the others.",
    )
    keep_freed_memory: bool | None = option(
        None,
        "Let glibc keep the memory that a step frees for the next one, for as long as the process runs; other C "
        "libraries have no such setting. null: on a CPU, but with rewards it goes back to the system before and after "
        "a generation; true: it is kept then, too, which is faster and takes more memory.",
    )
    loss_type: str | None = option(
        None, "SFT, DPO, KTO, GRPO: the loss, by TRL's name; null: as the recipe has it, else TRL's default."
    )
    loss: str | None = option(
        None,
        "SFT: a loss of your own, `path/to/file.py:function`, called as Transformers' `compute_loss_func`: (outputs, "
        "labels, num_items_in_batch=…).",
        path="function",
    )
    beta: float | None = option(
        None,
        "KL coefficient β. DPO, KTO: how far the model may move from the reference; RL: weight of the KL divergence "
        "from the initial model (0: none, and no second copy of it). null: TRL's default.",
        at_least=0,
        at_most=1e6,
    )
    desirable_weight: float = option(1.0, "KTO: weight of the loss of good answers (λ_D).", at_least=0, at_most=1e6)
    undesirable_weight: float = option(
        1.0,
        "KTO: weight of the loss of bad answers (λ_U); its authors advise weights with which the good answers weigh 1 "
        "to 1.33 times as much in all.",
        at_least=0,
        at_most=1e6,
    )
    num_generations: int = option(8, "RL: completions for each prompt (group size).", at_least=2, at_most=BATCH)
    max_completion_length: int | None = option(
        None,
        "RL: maximum number of tokens of a completion; null: 256, or 32 for models with a hidden size below 512.",
        at_least=1,
        at_most=TOKENS,
    )
    temperature: float = option(1.0, "RL: sampling temperature of completions.", above=0, at_most=1000)
    num_iterations: int = option(1, "RL: updates for each completion (μ).", at_least=1, at_most=BATCH)
    steps_per_generation: int | None = option(
        None,
        "RL: forward passes over which one generation of completions is spread; null: gradient_accumulation_steps.",
        at_least=1,
        at_most=BATCH,
    )
    epsilon: float = option(
        0.2, "RL: clipping range ε: the ratio is clipped at 1 - ε and 1 + ε.", above=0, at_most=1000
    )
    epsilon_high: float | None = option(
        None, "RL: upper clipping range, where it is another one.", above=0, at_most=1000
    )
    scale_rewards: str = option(
        "group",
        "GRPO: standard deviation that advantages are divided by: of the prompt's group, of the batch, or none.",
        choices=("group", "batch", "none"),
    )
    importance_sampling_level: str = option(
        "token", "GRPO: importance ratios of single tokens or of whole completions.", choices=("token", "sequence")
    )
    mask_truncated_completions: bool = option(False, "RL: leave truncated completions out of the loss.")
    use_vllm: bool = option(False, "RL: generate completions with vLLM, not with Transformers.")
    vllm_mode: str = option(
        "colocate", "vLLM in this process, or as a server (`trl vllm-serve`).", choices=("colocate", "server")
    )
    optim: str = option("adamw_torch", "Optimizer, by Transformers' name (8-bit and paged ones: bitsandbytes).")
    weight_decay: float = option(0.0, "Weight decay.", at_least=0, at_most=1000)
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm; 0: no clipping.", at_least=0, at_most=1e9)
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: much less memory, about a third more time."
    )
    bf16: bool | None = option(
        None,
        "Compute in bfloat16 with float32 weights (mixed precision); null: where the weights are float32 and the "
        "GPU supports it or, with rewards, the CPU.",
    )
    torch_compile: bool = option(
        False,
        "Compile the norms and feed-forward blocks of the layers with torch.compile for training, in place of "
        "model.fused_layers; the first steps take longer, by half a minute or more. It changes losses by rounding. Not "
        "with quantized training nor fsdp2.",
    )
    profile: bool = option(
        False,
        "Profile ten steps after the first three with torch.profiler, or those that there are: profile/trace.json.gz, "
        "for https://ui.perfetto.dev, and a table of the 30 operations that take longest, profile/operations.txt.",
    )
    logging_steps: int = option(
        1, "Optimizer steps between two lines of metrics.jsonl; checkpoints have one, too.", at_least=1, at_most=STEPS
    )
    eval_steps: int | None = option(
        None,
        "Optimizer steps between two evaluations during training (`eval.during_training`); null: none.",
        at_least=1,
        at_most=STEPS,
    )
    metric_for_best_model: str | None = option(
        None,
        "Metric of those evaluations (`held_out_loss`, `test_exact_match`, …) that decides on the best step; the "
        "weights of that step are loaded at the end, evaluated and exported. null: the last step.",
    )
    greater_is_better: bool | None = option(
        None,
        "Whether a greater value of that metric is better; null: yes, unless its name ends in loss, perplexity or kl.",
    )
    early_stopping_patience: int | None = option(
        None,
        "Evaluations without improvement in a row before training stops; null: no early stopping.",
        at_least=1,
        at_most=STEPS,
    )
    early_stopping_threshold: float = option(
        0.0, "Minimum improvement that resets the patience.", at_least=0, at_most=1e9
    )
    save_steps: int | None = option(
        None,
        "Optimizer steps between two checkpoints; null: none, except of the best step where one is kept.",
        at_least=1,
        at_most=STEPS,
    )
    save_total_limit: int | None = option(
        2, "Checkpoints to keep, the newest ones and the best; null: all.", at_least=1, at_most=STEPS
    )
    resume_from_checkpoint: str = option(
        "auto",
        "auto: the same command goes on with a run that was interrupted, from its newest whole checkpoint; latest: the "
        "same, but it is an error where there is none; never: such a run is refused; or a checkpoint's folder.",
        path="checkpoint",
    )
    resume_data_changed: bool = option(
        False, "Go on with an interrupted run although files that it reads, its data or its model, have changed."
    )
    max_time: str | None = option(
        None,
        "Time after which the run saves a checkpoint and ends, with exit status 0: `2h`, `90m`, `1h30m`; the same "
        "command goes on.",
    )
    extra: dict[str, Any] = option({}, "Any other option of the trainer, by its name in TRL's dataclass.")

    @property
    def max_seconds(self) -> float | None:
        """`max_time` in seconds; None for no limit, 0 for what is no time."""
        if self.max_time is None:
            return None
        if not _TIME.match(self.max_time):
            return 0.0
        parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", self.max_time)
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)

    @property
    def joined_losses(self) -> list[str]:
        """DPO: the losses that are added up; TRL's default where none is named."""
        return [name.strip() for name in (self.loss_type or "sigmoid").split("+")]

    @property
    def passes_per_generation(self) -> int:
        """RL: forward passes over which one generation of completions is spread."""
        return self.steps_per_generation or self.gradient_accumulation_steps

    @property
    def generation_period(self) -> int:
        """RL: optimizer steps between two generations of completions that coincide with the begin of a step.

        A run can be resumed exactly only there: checkpoints don't hold the current completions.
        """
        passes = math.lcm(self.passes_per_generation * self.num_iterations, self.gradient_accumulation_steps)
        return passes // self.gradient_accumulation_steps
