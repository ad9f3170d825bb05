"""Checks of the recipes that neither train nor read data (doctor, plan, models)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from gemma_tune.config import Config
from gemma_tune.config.methods import METHODS
from gemma_tune.config.train import TrainConfig
from gemma_tune.run.paths import CONFIGS
from gemma_tune.validation.chat_and_preview import problems_of_output
from gemma_tune.validation.paths import missing_paths
from gemma_tune.validation.suggest import did_you_mean


def looks_only(cfg: Config) -> Iterator[str]:
    """What has no effect on a recipe that looks and does nothing."""
    if cfg.output_dir is not None:
        yield f"output_dir has no effect with recipe={cfg.recipe}, which keeps no run folder; leave it out."
    if cfg.adapter.peft_type != "none":
        yield f"adapter has no effect with recipe={cfg.recipe}, which trains nothing; leave it out."


def models_problems(cfg: Config) -> Iterator[str]:
    """What `recipe=models` can't do."""
    m = cfg.models
    if m.fetch is not None and m.inspect is not None:
        yield "models.fetch and models.inspect are both set; choose one."
    if m.revision is not None and m.fetch is None and m.inspect is None:
        yield "models.revision has no effect without models.fetch or models.inspect; leave it out."
    name = m.inspect
    if name and not (CONFIGS / "model" / f"{name}.yaml").is_file():
        yield from missing_paths(cfg, "models")


def plan_problems(cfg: Config) -> Iterator[str]:
    """What `recipe=plan` can't do."""
    plan, known = cfg.plan, trained_recipes()
    if not plan.recipes:
        yield f"plan.recipes is empty: name some of {', '.join(known)}."
    for name in plan.recipes:
        if name not in known:
            yield f"plan.recipes: {name} is none that can be planned: {', '.join(known)}.{did_you_mean(name, known)}"
    if cfg.train.extra != TrainConfig().extra:
        yield "train.extra has no effect with recipe=plan; leave it out."
    if plan.measure and plan.memory_gb is not None:
        yield "plan.measure=true times this machine, and plan.memory_gb names another one; leave one of the two out."
    if plan.measure and plan.tflops is not None:
        yield "plan.measure=true measures what plan.tflops says; leave one of the two out."
    if plan.output_file is not None:
        if Path(plan.output_file).suffix.lower() not in (".md", ".json"):
            yield f"plan.output_file={plan.output_file}: name it .md or .json."
        yield from problems_of_output("plan.output_file", plan.output_file, [], cfg.overwrite)


def trained_recipes() -> list[str]:
    """The shipped recipes that train once; one of several trainings is planned by these."""
    found = []
    for file in sorted((CONFIGS / "recipe").glob("*.yaml")):
        named = re.search(r"^method: (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        method = METHODS.get(named[1]) if named else None
        if method and method.trains and not method.stages:
            found.append(file.stem)
    return found
