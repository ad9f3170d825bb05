"""The options of the groups (`recipe=`, `model=`, `data=`, …), and what to say to a name that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemma_tune.errors import shortened
from gemma_tune.run.paths import CONFIGS, FILE_TYPES, resolve
from gemma_tune.validation.suggest import other_option

WHERE = "command line"
# Characters of a key or an option; so many options are listed even where one is near
LONGEST_KEY, _LISTED = 255, 30
# How several options of a group are had at once
_SEVERAL = {
    "reward": "; mix by weights: reward.math.weight=1 reward.format.weight=0.2",
    "tracker": "; several at once: tracker.report_to=[wandb,tensorboard]",
}


def options_of(group: str, config_dirs: list[Path]) -> dict[str, Path]:
    """The options of a group with their files; shipped ones take precedence, as in Hydra."""
    found: dict[str, Path] = {}
    for root in [*config_dirs[::-1], CONFIGS]:
        found.update({f.stem: f for f in sorted((root / group).glob("*.yaml"))})
    return found


def group_problem(group: str, value: Any, config_dirs: list[Path]) -> str | None:
    """What is wrong with the option of a group, or None."""
    options, said = options_of(group, config_dirs), shortened(str(value))
    if not isinstance(value, str) or value in options:
        if isinstance(value, str):
            return None
        if isinstance(value, dict) and value:
            first, inner = next(iter(value.items()))
            return f"{WHERE}: {group}={said}: keys are set one by one: {group}.{first}={inner}"
        several = _SEVERAL.get(group, "")
        return f"{WHERE}: {group}={said}: name one option, of {', '.join(sorted(options))}{several}."
    for root in config_dirs:
        stray = root / f"{value}.yaml"
        if group == "recipe" and stray.is_file() and root.name == "recipe":
            return f"{WHERE}: recipe={said}: name the folder above: --config-dir {root.parent}"
        if group == "recipe" and stray.is_file():
            return (
                f"{WHERE}: recipe={said}: {stray} is not found there, only below a group's folder: "
                f"move it to {root / 'recipe' / stray.name}."
            )
    if len(value) > LONGEST_KEY:
        return f"{WHERE}: there is no {group} `{said}`."
    if not value:
        return f"{WHERE}: {group}= is empty: name one of {', '.join(sorted(options))}."
    hint = _named_by_key(group, value) or other_option(group, value, options)
    if group == "recipe" and resolve(own := f"{value.removesuffix('.yaml')}.py").is_file():  # a file of the user's own
        hint = f" Did you mean recipe={own}?"
    if hint and len(options) > _LISTED:
        return f"{WHERE}: there is no {group} `{value}`.{hint} (configs/{group}/ has all)"
    return (
        f"{WHERE}: there is no {group} `{value}`.{hint} "
        f"({group}: {', '.join(sorted(options))}; add yours as FOLDER/{group}/NAME.yaml with --config-dir FOLDER)"
    )


def _named_by_key(group: str, value: str) -> str:
    """What to write in place of a name that is no option: a checkpoint, a file of rows, or a function."""
    if group == "model" and "/" in value:
        return f" A checkpoint is named by model.model_name_or_path={value}."
    if group == "data" and (value.lower().endswith(FILE_TYPES) or "/" in value):
        return f" A file is named by data=auto data.train_file={value}."
    if group == "reward" and ".py" in value:
        return f" A reward of your own is named by reward.functions.NAME={value}."
    if group == "eval" and ".py" in value:
        return f" An evaluator of your own is named by 'eval.evaluators=[{value}]'."
    return ""
