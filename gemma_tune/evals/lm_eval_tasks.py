"""Finds the tasks of lm-evaluation-harness and checks them before a model is loaded."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemma_tune.config.eval import LmEvalConfig
from gemma_tune.errors import UserError
from gemma_tune.run.paths import resolve
from gemma_tune.validation.suggest import did_you_mean

# Loaders of `datasets` for local files: values of `dataset_path` that don't name a data set.
_READERS = ("json", "csv", "parquet", "text")


def find_tasks(cfg: LmEvalConfig) -> Any:
    """A TaskManager that knows every task of `eval.lm_eval.tasks`.

    Raises:
        UserError: lm-eval isn't installed or has no such task, or a user's YAML file can't be read or names an unknown
            metric or a missing data file.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"eval.evaluators: lm_eval needs the package lm-eval ({error}); install it with "
            "`pip install 'gemma_tune[eval]'`."
        ) from error
    folder = resolve(cfg.include_path) if cfg.include_path else None
    manager = None
    if folder:
        manager = TaskManager(include_path=str(folder), include_defaults=False)
    if manager is None or not all(name in manager.all_subtasks for name in cfg.tasks):
        # it reads 14,000 YAML files (ten seconds); skipped if all tasks are the user's
        manager = TaskManager(include_path=str(folder) if folder else None)
    unknown = [name for name in cfg.tasks if not manager.match_tasks([name])]
    own: list[Path] = []
    if folder:
        own = [*folder.rglob("*.yaml")] if unknown else _own_files(manager, cfg.tasks, folder)
    problems = [*_wrong_in(own, resolve_functions=not unknown), *(_no_such_task(n, manager.all_tasks) for n in unknown)]
    if problems:
        raise UserError(*problems)
    return manager


def task_files(folder: Path) -> list[Path]:
    """The task files in a user's folder, and the local data files that they name."""
    from lm_eval.tasks._yaml_loader import load_yaml

    files = sorted(f for f in folder.rglob("*") if f.suffix in (".yaml", ".py") and "__pycache__" not in f.parts)
    rows = []
    for file in (f for f in files if f.suffix == ".yaml"):
        try:
            rows += [found for _, names in _data_files(load_yaml(file, resolve_func=False)) for found in names]
        except Exception:  # not one of the requested tasks: those have been read
            continue
    return [*files, *dict.fromkeys(rows)]


def _own_files(manager: Any, names: Sequence[str], folder: Path) -> list[Path]:
    """The YAML files in a folder that define the tasks, groups and tags with these names."""
    found: dict[Path, None] = {}
    seen: set[str] = set()
    left = [match for name in names for match in manager.match_tasks([name])]
    while left:
        name = left.pop()
        entry = manager.task_index.get(name)
        if name in seen or entry is None:
            continue
        seen.add(name)
        if entry.yaml_path and folder in entry.yaml_path.parents:
            found[entry.yaml_path] = None
        members = (entry.cfg or {}).get("task") if "group" in (entry.cfg or {}) else None
        left += [member for member in members or () if isinstance(member, str)]
        left += [other for other, e in manager.task_index.items() if name in e.tags]
    return sorted(found)


def _no_such_task(name: str, known: Sequence[str]) -> str:
    if name.endswith((".yaml", ".yml")):
        return (
            f"eval.lm_eval.tasks: {name} is a file; set eval.lm_eval.include_path to its folder, and use the name "
            "in its line `task:`."
        )
    return (
        f"eval.lm_eval.tasks: there is no task or group {name}; `lm_eval ls tasks` lists lm-eval's, and yours are "
        f"looked for in eval.lm_eval.include_path.{did_you_mean(name, known)}"
    )


def _wrong_in(files: Sequence[Path], resolve_functions: bool) -> Iterator[str]:
    """Messages about bad YAML files: lm-eval silently skips those that it can't read.

    Args:
        files: YAML files.
        resolve_functions: Whether to check the functions, metrics and data files that they name.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    for file in files:
        try:
            task = load_yaml(file, resolve_func=resolve_functions)
        except Exception as error:  # also whatever a user's Python file raises
            reason = " ".join(str(error).split()) or type(error).__name__
            yield f"eval.lm_eval.include_path: {file} can't be read as a task ({reason}); fix it."
            continue
        if resolve_functions:
            yield from _unknown_metrics(file, task)
            for name, found in _data_files(task):
                if missing := [f for f in found or [Path(name)] if not f.exists()]:
                    yield (
                        f"eval.lm_eval.include_path: {file}: dataset_kwargs: there is no file {missing[0].absolute()}; "
                        "put it there, or fix the path (relative paths start from the current folder)."
                    )


def _unknown_metrics(file: Path, task: Mapping[str, Any]) -> Iterator[str]:
    """Messages about metrics that lm-eval lacks; it would look for them on the Hub, then go on without them."""
    import lm_eval.api.metrics  # noqa: F401 (fills the registries)
    from lm_eval.api.registry import AGGREGATION_REGISTRY, METRIC_REGISTRY

    listed = task.get("metric_list") or ()
    for entry in listed if isinstance(listed, Sequence) else ():
        metric = entry.get("metric") if isinstance(entry, Mapping) else None
        free = task.get("process_results") or (isinstance(entry, Mapping) and entry.get("hf_evaluate"))
        known = sorted(METRIC_REGISTRY.keys())
        if metric is None:
            yield f"eval.lm_eval.include_path: {file}: an entry of metric_list names no metric; write `- metric: acc`."
        elif isinstance(metric, str) and not free and metric not in known:
            yield (
                f"eval.lm_eval.include_path: {file}: lm-eval has no metric {metric}.{did_you_mean(metric, known)} (For "
                "one of Hugging Face's package evaluate, set hf_evaluate: true beside it.)"
            )
        aggregation = entry.get("aggregation") if isinstance(entry, Mapping) else None
        if isinstance(aggregation, str) and aggregation not in AGGREGATION_REGISTRY:
            near = did_you_mean(aggregation, sorted(AGGREGATION_REGISTRY.keys()))
            yield f"eval.lm_eval.include_path: {file}: lm-eval has no aggregation {aggregation}.{near}"


def _data_files(task: Mapping[str, Any]) -> Iterator[tuple[str, list[Path]]]:
    """The local data files that a task names: each pattern with its files; none if nothing matches."""
    settings = task.get("dataset_kwargs")
    if task.get("dataset_path") not in _READERS or not isinstance(settings, Mapping):
        return
    named = settings.get("data_files") or ()
    for part in named.values() if isinstance(named, Mapping) else [named]:
        for name in [part] if isinstance(part, str) else part:
            if "://" not in name:
                path = Path(settings.get("data_dir") or "", name)
                yield str(path), [Path(f) for f in sorted(glob.glob(str(path), recursive=True))]
