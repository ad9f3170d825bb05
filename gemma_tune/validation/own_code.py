"""Checks of the user's own Python files as texts: nothing of them is run, and torch is not imported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gemma_tune.config import Config
from gemma_tune.config.methods import METHODS, Reads
from gemma_tune.config.own_functions import EVALUATOR, LOSS, READER, REWARD, FunctionCall
from gemma_tune.errors import UserError
from gemma_tune.neighbours import import_problem, name_clash
from gemma_tune.run.paths import CONFIGS, RECIPES, resolve, shipped_recipes
from gemma_tune.user_code import Signed, definition_problem, function_problem, in_message, split
from gemma_tune.user_source import read_source
from gemma_tune.validation.suggest import did_you_mean, missing_path

_RUN = "Keep the functions of recipes/{file}.py, or make the file anew with recipe=copy"


def function_problems(cfg: Config) -> Iterator[str]:
    """Functions of the user's own that are not there, or can't be called with what they will be given."""
    for key, reference, call in _own_functions(cfg):
        file, _ = split(reference)
        if file.is_file() and (problem := function_problem(reference, call)):  # that it isn't there is said elsewhere
            yield in_message(f"{key}={reference}", problem, file)


def _own_functions(cfg: Config) -> list[tuple[str, str, Signed]]:
    """Each function of the user's own that the run calls: its key, its reference, and how it is called."""
    if cfg.traits.reads in (Reads.NOTHING, Reads.QUESTIONS):
        return []
    named: list[tuple[str, str, Signed]] = []
    if ":" in cfg.data.format:
        named.append(("data.format", cfg.data.format, READER))
    named += [("eval.evaluators", name, EVALUATOR) for name in cfg.evaluator_names if ":" in name]
    if cfg.traits.rewarded or "rewards" in cfg.evaluator_names:
        functions = cfg.reward.functions
        used = [name for name in cfg.reward.weighted() if split(functions.get(name, ""))[1]]
        named += [(f"reward.functions.{name}", functions[name], REWARD) for name in used]
    if cfg.train.loss is not None:
        named.append(("train.loss", cfg.train.loss, LOSS))
    return named


def problems_of_jobs(cfgs: Sequence[Config]) -> list[str]:
    """What is wrong with the user's own files of all jobs that one process runs: modules of one name beside them."""
    own = [resolve(cfg.recipe_file) for cfg in cfgs if cfg.recipe_file is not None]
    own += [split(reference)[0] for cfg in cfgs for _, reference, _ in _own_functions(cfg)]
    problem = name_clash(file for file in dict.fromkeys(own) if file.is_file())
    return [problem] if problem else []


def neighbour_problems(cfg: Config) -> Iterator[str]:
    """The same of one run."""
    yield from problems_of_jobs([cfg])


def recipe_problems(cfg: Config) -> Iterator[str]:
    """What is wrong with the file of the user's own recipe, as far as its text tells."""
    if cfg.recipe_file is None:
        return
    file = resolve(cfg.recipe_file)
    if not file.is_file():
        yield missing_path("recipe", cfg.recipe_file, "file")
        return
    said = f"recipe={file.name}"
    try:
        source = read_source(file)
    except UserError as error:
        yield f"{said}: {error}"
        return
    if problem := import_problem(file):
        yield f"{said}: {problem}"
    traits = cfg.traits
    needed = traits.functions(cfg.dry_run)
    for name, takes in needed.items():
        if name not in source.names and not source.opaque:
            why = ", which dry_run=true calls" if name == "read" else ""
            has = ", ".join(source.functions) or "none"
            yield (
                f"{said}: {file} has no function {name}({', '.join(takes)}){why}; it has {has}. "
                f"{_RUN.format(file=traits.file)}."
            )
    for name, takes in (needed | {"read": traits.read_takes, "look": ("cfg",)}).items():
        if takes and (problem := definition_problem(file, source.names.get(name, []), FunctionCall(takes), name)):
            yield f"{said}: {problem}"


def loss_problems(cfg: Config) -> Iterator[str]:
    """`train.loss` where the recipe has a loss that is none of outputs and labels, or with options that it replaces."""
    t, m = cfg.train, cfg.traits
    if t.loss is None or not m.trains:  # which refuses every key of `train`
        return
    if not split(t.loss)[0].is_file():
        yield missing_path("train.loss", str(split(t.loss)[0]), "file")
    if not m.own_loss:
        if m.rewarded:
            why = "its loss is made of rewards and advantages; write a reward (reward.functions)"
        elif m.compares_answers:
            why = "its loss compares answers; TRL's losses for it are named by train.loss_type"
        else:
            why = "it trains towards the probabilities of the model before rounding (quant.cross_entropy)"
        yield f"train.loss has no effect with recipe={cfg.recipe}: {why}. It is for full_sft, lora_sft and qlora_sft."
        return
    if t.loss_type is not None:
        yield f"train.loss_type={t.loss_type} has no effect with train.loss, which takes its place; leave one out."
    for key in ("label_smoothing_factor", "use_liger_kernel", "router_aux_loss_coef"):
        if t.extra.get(key):
            yield f"train.extra.{key} has no effect with train.loss, which takes the place of TRL's; leave it out."


# Of every run
CHECKS = (recipe_problems, function_problems, loss_problems, neighbour_problems)


def copy_problems(cfg: Config) -> Iterator[str]:
    """What `recipe=copy` can't do."""
    c = cfg.copy
    shipped = list(shipped_recipes())
    if not c.recipe:
        yield "copy.recipe is not set: name the recipe to copy, for example copy.recipe=qlora_sft."
        return
    if c.recipe not in shipped:
        hint = did_you_mean(c.recipe, shipped)
        yield (
            f"copy.recipe={c.recipe}: not one of {', '.join(shipped)}.{hint} Only these have steps to copy: one of "
            "--config-dir has values alone; copy the recipe that its defaults begin with."
        )
        return
    if not re.fullmatch(r"\w[\w.-]*", c.named) or c.named.endswith((".py", ".yaml")):
        yield f"copy.name={c.name}: a name has letters, digits, _, - and . only, and no suffix; the folder is copy.to."
    folder = resolve(c.to)
    if folder.exists() and not folder.is_dir():
        yield f"copy.to={c.to}: this is a file; name a folder."
    if any(place == folder.absolute() or place in folder.absolute().parents for place in (RECIPES, CONFIGS)):
        yield f"copy.to={c.to}: this is a folder of gemma_tune's own; name one of yours."
    for file in (folder / f"{c.named}{suffix}" for suffix in (".py", ".yaml")):
        if file.exists() or file.is_symlink():
            yield f"{file} is there already, and is not replaced; choose another copy.name or copy.to."


def method_problem(cfg: Config) -> str | None:
    """What is wrong with the name of the method; None where it is one of the table."""
    values = f"{resolve(cfg.recipe_file).with_suffix('.yaml')}: " if cfg.recipe_file else ""
    if not cfg.method:
        return values + _unset_method(cfg)
    if cfg.unknown_method is None:
        return None
    name, why = cfg.unknown_method
    return f"{values}method={name}: {why}{did_you_mean(name, METHODS)}"


def _unset_method(cfg: Config) -> str:
    if cfg.recipe_file is None:
        return "method is not set: begin the defaults of your recipe with a shipped one, as in [qlora_sft, _self_]."
    return (
        f"method is not set: name the row of the table of methods that the recipe varies, for example "
        f"`method: sft` (there are {', '.join(METHODS)}), or begin its defaults with one of ours: [qlora_sft, _self_]."
    )
