"""Keys, options and methods that had another name once: the only place that knows the earlier names.

There are no aliases: an earlier name on the command line or in a file is answered with the new one. What an earlier
version has stored, the `config.yaml` of a run, is translated.
"""

from __future__ import annotations

import copy
from typing import Any

from gemma_tune.config.methods import METHODS

# A key, or a mapping with all keys below it.
KEYS = {
    "eval.while_training": "eval.during_training",
    "eval.max_samples_while_training": "eval.max_samples_during_training",
    "quant.train": "quant.stage2",
    "model.shared_layers_at_labels": "model.layers_at_labels",
}
# Keys that are gone, and what says the same now.
GONE = {"train.algorithm": "the recipe says it: recipe=grpo or recipe=rloo; in your own recipe `method: rloo`"}
# By group and option.
OPTIONS = {("data", "preferences"): "sample_preferences"}
# The one method of all training with rewards, which `train.algorithm` told apart.
_REWARDED = "rl"
RENAMED_METHODS = {_REWARDED: "grpo, dapo, dr_grpo, gspo or rloo"}

_MISSING = object()


# Keys that earlier versions didn't have, with their defaults: a run with the default is the same run.
ADDED: dict[str, Any] = {
    "data.conversation_column": "conversation",
    "data.sender_column": "sender",
    "data.message_column": "text",
    "data.time_column": None,
    "data.assistant_senders": [],
    "data.ignore_fields": [],
    "data.media_folder": None,
    "data.answers": "all",
    "data.field": None,
    "data.encoding": "utf-8",
    "data.sample_by": None,
    "train.desirable_weight": 1.0,
    "train.resume_data_changed": False,
    "train.max_time": None,
    "train.undesirable_weight": 1.0,
    "adapter.target_parameters": [],
    "adapter.layers_to_transform": None,
    "adapter.rank_pattern": {},
    "adapter.alpha_pattern": {},
    "adapter.trainable_token_indices": [],
    "adapter.modules_to_save": [],
    "model.added_tokens": [],
    "model.images_kwargs": {},
    "model.image_attention": None,
    "model.train_towers": "none",
    "model.layers_at_labels": True,
    "model.per_layer_table_on_host": None,
    "model.fused_layers": None,
    "model.keep_decoded": None,
    "model.cache_image_features": None,
    "train.towers_learning_rate": None,
    "train.tiled_head": None,
    "train.compact_batches": True,
    "train.prefix_caching": True,
    "train.skip_zero_advantages": True,
    "train.keep_freed_memory": None,
    "train.profile": False,
    "train.torch_compile": False,
    "compare.baseline": "first",
    "tracker.group": None,
    "recipe_file": None,
    "train.loss": None,
    "eval.vqa_accuracy.normalizer": "textvqa",
    "eval.wer.normalizer": "basic",
    "export.quality_samples": 200,
    "export.mmproj": True,
    "quant.checkpoint_file": None,
    "quant.int2_modules": [],
    "quant.int8_modules": [],
    "quant.calibration_samples": 32,
    "quant.per_layer_embedding": "none",
    "engine.vllm": None,
    "engine.vllm_args": [],
    "engine.max_length": None,
    "data.dataset_num_proc": None,
    "data.encode_by_word": True,
    "launch.by": "local",
    "launch.num_processes": None,
    "launch.num_nodes": None,
    "launch.timeout_minutes": 30.0,
    "launch.slurm.partition": None,
    "launch.slurm.account": None,
    "launch.slurm.time": None,
    "launch.slurm.gpus_per_node": None,
    "launch.slurm.setup": [],
    "launch.slurm.options": [],
    "launch.sky.accelerators": None,
    "launch.sky.infra": None,
    "launch.sky.use_spot": False,
    "launch.sky.setup": [],
    "parallel.strategy": "ddp",
    "parallel.shard_within_node": None,
    "parallel.reshard_after_forward": True,
    "parallel.activation_checkpointing": False,
    "parallel.cpu_ram_efficient_loading": True,
    "model.base_url": None,
    "model.served_name": None,
}
# Whole groups among them, and sections of one
_ADDED_GROUPS = ("engine", "launch", "parallel")
_ADDED_SECTIONS = ("eval.vqa_accuracy", "eval.wer")


def renamed_key(key: str) -> str | None:
    """What to say to an earlier key, as the end of a sentence; None for any other key."""
    for old, new in KEYS.items():
        if key == old or key.startswith(f"{old}."):
            return f"it is `{new}{key.removeprefix(old)}` now"
    return GONE.get(key)


def unknown_method(name: str) -> tuple[str, str] | None:
    """The name, and why it is no method, as the end of a sentence; None for one of the table."""
    if name in RENAMED_METHODS:
        return name, f"there is no such method: it is {RENAMED_METHODS[name]} now."
    return None if name in METHODS else (name, f"not one of {', '.join(METHODS)}.")


def names_a_method(tree: dict[str, Any]) -> bool:
    """Whether a mapping read from a config.yaml has the name of a method, known or not."""
    return isinstance(tree.get("method"), str)


def is_a_run(tree: dict[str, Any]) -> bool:
    """Whether a mapping read from a config.yaml names a method of ours, by today's name or an earlier one."""
    return tree.get("method") in {*METHODS, *RENAMED_METHODS}


def translated(tree: dict[str, Any], like: Any = None) -> dict[str, Any]:
    """A stored configuration under today's names; one of today as it is.

    Args:
        tree: What `config.yaml` holds; it is not changed.
        like: The configuration that is expected: where a stored `method: rl` can mean its method, it does.
    """
    tree = copy.deepcopy(tree)
    for old, new in KEYS.items():
        if (value := _pop(tree, old)) is not _MISSING:
            _set(tree, new, value)
    for group in _ADDED_GROUPS if "train" in tree else ():  # a whole configuration
        tree.setdefault(group, {})
    for key, default in ADDED.items():
        group, below, _ = key.partition(".")
        if not below or isinstance(tree.get(group), dict):
            value = _pop(tree, key)
            _set(tree, key, default if value is _MISSING else value)
    if isinstance(tree.get("train"), dict) and tree["train"].get("resume_from_checkpoint", "") is None:
        tree["train"]["resume_from_checkpoint"] = "auto"  # null was its default
    algorithm = _pop(tree, "train.algorithm")
    if tree.get("method") == _REWARDED:
        algorithm = "grpo" if algorithm is _MISSING else algorithm
        names = [
            n
            for n in (getattr(like, "method", None), tree.get("recipe"))
            if n in METHODS and _algorithm(n) == algorithm
        ]
        tree["method"] = next((n for n in names if METHODS[n].rewarded), algorithm)
    return tree


def as_before(tree: dict[str, Any]) -> dict[str, Any]:
    """A configuration as earlier versions stored it: their run folders are named by its digest."""
    tree = copy.deepcopy(tree)
    for key, default in ADDED.items():
        value = _pop(tree, key)
        if value is not _MISSING and value != default:
            _set(tree, key, value)
    for old, new in KEYS.items():
        if (value := _pop(tree, new)) is not _MISSING:
            _set(tree, old, value)
    for name in (*_ADDED_SECTIONS, *_ADDED_GROUPS):
        if (rest := _pop(tree, name)) is not _MISSING and rest:
            _set(tree, name, rest)
    _set(tree, "train.algorithm", _algorithm(tree["method"]))
    if tree["method"] in METHODS and METHODS[tree["method"]].rewarded:
        tree["method"] = _REWARDED
    return tree


def _algorithm(method: str) -> str:
    """What `train.algorithm` was; its default where it had no effect."""
    return "rloo" if method == "rloo" else "grpo"


def _pop(tree: dict[str, Any], key: str) -> Any:
    """Takes the value of a dotted key out of a nested mapping."""
    *above, last = key.split(".")
    for name in above:
        tree = tree.get(name) or {}
        if not isinstance(tree, dict):
            return _MISSING
    return tree.pop(last, _MISSING)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *above, last = key.split(".")
    for name in above:
        tree = tree.setdefault(name, {})
    tree[last] = value
