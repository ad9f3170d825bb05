"""`plan.…`: what `recipe=plan` plans for."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import option

# Recipes that are planned for where nothing else is said.
_RECIPES = ["full_sft", "lora_sft", "qlora_sft", "qat", "dpo", "grpo"]


@dataclass
class PlanConfig:
    """Which models fit which recipes in how much memory, with the settings, the command and the time."""

    memory_gb: float | None = option(
        None,
        "Memory of the GPU in GB as it is sold (a GB is 2^30 bytes), of which 1 is kept for CUDA and torch; null: what "
        "is free on this machine.",
        above=0,
        at_most=1e5,
    )
    recipes: list[str] = option(_RECIPES, "Recipes that train; the columns of the table.")
    tflops: float | None = option(
        None,
        "Peak of the GPU in bfloat16 without sparsity, in 10^12 operations a second, for the estimated time; null: "
        "that of a card with this memory (docs/guide.md lists them).",
        above=0,
        at_most=1e6,
    )
    utilization: float = option(0.3, "Share of that peak that training is taken to reach.", above=0, at_most=1)
    measure: bool = option(
        False,
        "Time training steps on this machine, on random weights of the model's shape (without model=… those of "
        "Gemma 3 270M), and take times from them.",
    )
    output_file: str | None = option(
        None, "Write the plan with every setting and command, too: a .md or .json file.", path="output"
    )
