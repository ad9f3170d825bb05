"""A run folder brings its own rows, evaluators and settings to what measures, exports or quantizes its model.

Without this, a tuned model would be measured on the bundled sample, by evaluators that its run didn't have. What the
user names stands above what the run brings (cli/user_overrides.py). Imports no torch.
"""

from __future__ import annotations

import copy
import glob
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gemma_tune.cli.defaults import resolve_defaults
from gemma_tune.cli.user_overrides import UserOverrides
from gemma_tune.config import Config, ModelConfig
from gemma_tune.config.data import KINDS_OF_ROWS
from gemma_tune.config.eval import EVALUATORS, IN_TRAINING, NEED_PROBABILITIES
from gemma_tune.config.methods import Kind, Method, Reads, named_method
from gemma_tune.config.model import CHAT_FORMS, is_gguf
from gemma_tune.config.renamed import translated
from gemma_tune.engines.api_models import local_model
from gemma_tune.errors import UserError
from gemma_tune.models.source import Source, find_source
from gemma_tune.run.existing import run_of, stored_config
from gemma_tune.run.paths import is_bundled, is_run_with_results, resolve
from gemma_tune.validation.schema import FIELDS

Tree = dict[str, Any]

# Of `train`, what rows and figures of an evaluation depend on
_OF_TRAIN = ("max_length", "per_device_eval_batch_size")
# Of `model`: how weights are held in memory, which figures depend on
_IN_4BIT = ("load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype")
_DEFAULTS = asdict(Config())


def with_settings_of_run(tree: Tree, named: UserOverrides) -> Tree:
    """The configuration with what the run behind its model brings, and the sample for no model of the user's.

    Args:
        tree: The composed configuration, its values checked; it is not changed.
        named: What the user has named.

    Raises:
        UserError: Rows of the run are not where they were, or of a kind that this recipe can't train on.
    """
    method = named_method(tree)
    if method is None or not method.takes_over:
        return tree
    compares = method.kind is Kind.COMPARE
    served = tree["model"]["base_url"] is not None and method.kind is Kind.MEASURE
    if served:
        tree = _of_server(tree, named)
    models = tree["compare"]["models"] if compares else [tree["model"]["model_name_or_path"]]
    if compares and all(map(is_run_with_results, models)):  # nothing is measured
        return tree
    model, run = next(((name, folder) for name in models if (folder := run_of(name))), ("", None))
    if run is None and (method.trains or (all(map(is_bundled, models)) and not served)):
        return tree
    tree, stored = copy.deepcopy(tree), translated(stored_config(run) or {}) if run else {}
    if method.reads is Reads.NOTHING:
        if run and "model" not in named.groups:
            _take_model(tree["model"], stored.get("model", {}), named, method)
        return tree
    if "data" not in named.groups:
        tree["data"] = _rows(tree, stored, named)
    if run is None:
        if served:
            _leave_out_probabilities(tree, named)
        return tree
    made = named_method(stored) or method
    if "data" not in named.groups:
        _check_rows(tree, named, run, model, (method, made))
    _take_evaluators(tree, stored, named, made)
    if served:
        _leave_out_probabilities(tree, named)
    for key in _OF_TRAIN:
        if not named.has(f"train.{key}") and "train" not in named.groups and key in stored.get("train", {}):
            tree["train"][key] = stored["train"][key]
    if not named.has("seed") and isinstance(stored.get("seed"), int):
        tree["seed"] = stored["seed"]
    if not compares and "model" not in named.groups:
        _take_model(tree["model"], stored.get("model", {}), named, method)
    return tree


def _of_server(tree: Tree, named: UserOverrides) -> Tree:
    """The configuration with the model that a server has, where its id is a folder and the user has named no model.

    Raises:
        UserError: Nobody answers at `model.base_url`, or it isn't such a server.
    """
    if "model" in named.groups or named.has("model.model_name_or_path"):
        return tree
    model = tree["model"]
    found = local_model(model["base_url"], model["served_name"])
    return {**tree, "model": {**model, "model_name_or_path": found or model["model_name_or_path"]}}


def _leave_out_probabilities(tree: Tree, named: UserOverrides) -> None:
    """Takes evaluators that a server can't answer out of those of the run; never one that the user names."""
    if "eval" in named.groups or named.has("eval.evaluators"):
        return
    tree["eval"]["evaluators"] = [n for n in tree["eval"]["evaluators"] if n not in NEED_PROBABILITIES]
    for section in (s for s in NEED_PROBABILITIES if s in tree["eval"] and not named.within(f"eval.{s}")):
        tree["eval"][section] = copy.deepcopy(_DEFAULTS["eval"][section])


def _group(group: str, tree: Tree, stored: Tree, named: UserOverrides, left_out: Collection[str] = ()) -> Tree:
    """A group: defaults, then what the run has stored but for some of its keys, then what the user has named."""
    found: Tree = copy.deepcopy(_DEFAULTS[group])

    def take(into: Tree, values: Any, prefix: str) -> None:
        for name, value in values.items() if isinstance(values, dict) else ():
            if f"{prefix}{name}" in FIELDS:
                into[name] = value
            elif isinstance(into.get(name), dict):
                take(into[name], value, f"{prefix}{name}.")

    kept = {name: value for name, value in (stored.get(group) or {}).items() if name not in left_out}
    take(found, kept, f"{group}.")
    for key in named.within(group):
        *above, last = key.split(".")
        into, values = found, tree[group]
        for name in above:
            into, values = into.setdefault(name, {}), values.get(name) or {}
        if last in values:
            into[last] = values[last]
    return found


def _rows(tree: Tree, stored: Tree, named: UserOverrides) -> Tree:
    """`data`: rows that the user names stand in place of the run's, and are read as those were."""
    given = {key.partition(".")[0] for key in named.within("data") if _value(tree["data"], key)}
    left = set[str]()
    for sources, keys in KINDS_OF_ROWS:
        if given & {*sources}:
            left |= {*sources, *keys}
    if "dataset_name" in left:
        left.add("validation_split")  # a split of that data set
    return _group("data", tree, stored, named, left)


def _value(tree: Tree, key: str) -> Any:
    """The value of a dotted key; null of a set of rows leaves it out."""
    for name in key.split("."):
        tree = tree.get(name) or {}
    return tree


def _check_rows(tree: Tree, named: UserOverrides, run: Path, model: str, methods: tuple[Method, Method]) -> None:
    """Leaves a training set out that isn't needed; refuses rows that aren't there, or that can't be trained on."""
    data, (method, made) = tree["data"], methods
    if method.trains and made.reads is not method.reads:
        raise UserError(
            f"model.model_name_or_path={model}: this run read {made.reads.value}, and recipe={tree['recipe']} reads "
            f"{method.reads.value}; name some of yours: data=auto data.train_file=FILE"
        )
    drawn = data["validation_split_percentage"] or data["validation_split"] or data["generator"]
    if not method.reads_training_set and not drawn:
        _leave_training_set_out(tree, named)
    if problems := [
        f"{key}={name}: the rows of {model or run} are no longer there; put them back, name others ({key}=FILE), leave "
        f"them out ({key}=null), or choose data=sample for the bundled sample."
        for key, name in _missing(data, ("train_file", "train_files", "validation_file", "test_files"))
        if not named.has(key)
    ]:
        raise UserError(*problems)


def _leave_training_set_out(tree: Tree, named: UserOverrides) -> None:
    """Takes the run's training set out of `data`, if it is gone or of the Hub; never one that the user names.

    Raises:
        UserError: The user names a training set alone: other rows would be measured than those meant.
    """
    data, (sources, keys) = tree["data"], KINDS_OF_ROWS[0]
    given = [key for key in sources if named.has(f"data.{key}") and data[key]]
    if given and not any(named.has(f"data.{key}") and data[key] for key in ("validation_file", "test_files")):
        raise UserError(
            f"data.{given[0]} has no effect with recipe={tree['recipe']}, which reads test rows: name yours by "
            "data.test_files.NAME=FILE, or leave it out for those of the run."
        )
    if given:
        return
    data["dataset_name"] = None
    for key in ("dataset_config_name", "split", "revision"):
        data[key] = _DEFAULTS["data"][key]
    if any(_missing(data, ("train_file", "train_files"))):
        data.update({key: copy.deepcopy(_DEFAULTS["data"][key]) for key in (*sources, *keys)})


def _missing(data: Tree, keys: Collection[str]) -> Iterator[tuple[str, str]]:
    """Key and name of each file or folder that is not there."""
    for key in keys:
        values = data[key].items() if isinstance(data[key], dict) else [("", data[key])]
        for name, file in values:
            if isinstance(file, str) and file and not resolve(file).exists() and not glob.glob(str(resolve(file))):
                yield f"data.{key}.{name}".rstrip("."), file


def _take_evaluators(tree: Tree, stored: Tree, named: UserOverrides, made: Method) -> None:
    """`eval` and, where it is used, `reward`."""
    if "eval" not in named.groups:
        found = _group("eval", tree, stored, named, IN_TRAINING)
        if not found["evaluators"] and not named.has("eval.evaluators"):  # the run measured nothing
            found["evaluators"] = tree["eval"]["evaluators"]
        unused = set(EVALUATORS) - set(found["evaluators"])
        for section in unused & found.keys():
            if not named.has(f"eval.{section}"):
                found[section] = copy.deepcopy(_DEFAULTS["eval"][section])
        tree["eval"] = found
    if "rewards" not in tree["eval"]["evaluators"]:
        return
    if "reward" not in named.groups:
        tree["reward"] = _group("reward", tree, stored, named)
    tokens = stored.get("train", {}).get("max_completion_length")
    if made.rewarded and tokens and "eval" not in named.groups and not named.has("eval.max_new_tokens"):
        tree["eval"]["max_new_tokens"] = tokens  # what the run's own answers had at most


def _take_model(model: Tree, stored: Mapping[str, Any], named: UserOverrides, method: Method) -> None:
    """How the weights are held in memory, and how a conversation is written."""
    name = model["model_name_or_path"]
    source = _source(name)
    keys = ["revision"] if source and source.adapter else []
    if stored.get("chat_template") in CHAT_FORMS:  # another one is in the tokenizer that the run has saved
        keys.append("chat_template")
    if not is_gguf(name) and not method.float32:
        keys += ["dtype", "attn_implementation", *(_IN_4BIT if source and source.adapter else ())]
    for key in keys:
        if key in stored and not named.has(f"model.{key}"):
            model[key] = stored[key]
    if source is None and is_gguf(name) and not named.has("model.tokenizer_name_or_path"):
        before = _source(str(stored.get("model_name_or_path")))  # a run without a tokenizer of its own has that one
        model["tokenizer_name_or_path"] = before.tokenizer if before else None


def as_evaluated(cfg: Config) -> Config:
    """The configuration with its model held in memory as `recipe=evaluate` holds it, with no word but its name."""
    model, run = asdict(cfg.model), run_of(cfg.model.model_name_or_path)
    if run:
        stored = translated(stored_config(run) or {}).get("model", {})
        _take_model(model, stored, UserOverrides(frozenset(), frozenset()), cfg.traits)
    found = replace(cfg, model=ModelConfig(**model))
    resolve_defaults(found)
    return found


def _source(name: str) -> Source | None:
    try:
        return find_source(ModelConfig(name))
    except UserError:  # said where the model is loaded
        return None
