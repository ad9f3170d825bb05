"""Checks of the recipes that neither train nor read data (doctor, copy, plan, models, push)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from gemma_tune.config import Config
from gemma_tune.config.methods import METHODS, Kind, Reads, named_method
from gemma_tune.config.train import TrainConfig
from gemma_tune.run.paths import CONFIGS, is_bundled, shipped_recipes
from gemma_tune.untrusted import read_yaml
from gemma_tune.validation.chat_and_preview import problems_of_output
from gemma_tune.validation.paths import missing_paths
from gemma_tune.validation.schema import overlap
from gemma_tune.validation.suggest import did_you_mean

# As huggingface_hub's `validate_repo_id` has them, which is not imported here
_REPO_PART = re.compile(r"\w(?:[\w.-]{0,94}\w)?", re.ASCII)
_BRANCH = re.compile(r"\w[\w./-]{0,200}", re.ASCII)

# What says which recipe runs, and whether
_OF_EVERY_RECIPE = ("recipe", "recipe_file", "method", "dry_run")


def unread_keys(cfg: Config, named: Collection[str]) -> Iterator[str]:
    """Keys and groups that the user has named, and that a recipe which reads no data doesn't look at.

    Args:
        cfg: The configuration.
        named: Groups of which an option was chosen, and whole keys.
    """
    method = cfg.traits
    if method.reads is not Reads.NOTHING:
        return
    others = {other.group for other in METHODS.values() if other.group}  # `no_other` speaks of these
    read = (
        *_OF_EVERY_RECIPE,
        *others,
        *method.beside_group,
        *(("tracker",) if cfg.tracker.report_to == "none" else ()),
    )
    for key in sorted(named):
        if any(overlap(key, name) for name in read):
            continue
        instead = ", or choose a model by models.inspect or models.fetch"
        hint = instead if method.kind is Kind.MODELS and key.partition(".")[0] == "model" else ""
        yield f"{key} has no effect with recipe={cfg.recipe}, which doesn't read it; leave it out{hint}."


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


def push_problems(cfg: Config) -> Iterator[str]:
    """What `recipe=push` can't do."""
    p, name = cfg.push, cfg.model.model_name_or_path
    if not p.repo_id:
        yield "push.repo_id is empty: name the repository on the Hub, push.repo_id=OWNER/NAME."
    for key, value in (("push.repo_id", p.repo_id), ("push.base_model", p.base_model)):
        if value and not is_repo_id(value):
            yield (
                f"{key}={value}: write OWNER/NAME, of letters, digits, - _ and . (none of these two in a row, nor at "
                "an end), at most 96 characters."
            )
    if is_bundled(name):
        yield "model.model_name_or_path: name the run whose artifacts are to be uploaded, for example runs/NAME."
    if p.revision is not None and not _BRANCH.fullmatch(p.revision):
        yield f"push.revision={p.revision}: this can't be the name of a branch; for example v1."
    if cfg.output_dir is not None:
        yield "output_dir has no effect with recipe=push, which keeps no run folder; leave it out."
    if twice := sorted({one for one in p.artifacts if p.artifacts.count(one) > 1}):
        yield f"push.artifacts names {twice[0]} twice; name it once."


def is_repo_id(name: str) -> bool:
    """Whether the Hub can have a repository of this name, with its owner before it."""
    parts = name.split("/")
    bad = "--" in name or ".." in name or name.endswith(".git")
    return len(parts) == 2 and not bad and all(_REPO_PART.fullmatch(part) for part in parts)


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
    methods = {name: named_method(read_yaml(file)) for name, file in shipped_recipes().items()}
    return [name for name, method in methods.items() if method and method.trains and not method.stages]
