"""The evaluation results in a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma_tune.compare.results import ModelResults
from gemma_tune.errors import UserError
from gemma_tune.run.paths import resolve
from gemma_tune.untrusted import read_json


def results_file(run: str, when: str = "after") -> Path:
    """The file with the results of a run, at its end or at another time."""
    return resolve(run) / "eval" / f"{when}.json"


def stored_results(name: str, run: str, when: str = "after") -> ModelResults:
    """The evaluation results of a run.

    Args:
        name: Its name in the comparison.
        run: Its folder.
        when: after, at its end; or before.

    Raises:
        UserError: The file can't be read, or a part is missing.
    """
    file = results_file(run, when)
    try:
        tree = read_json(file)
        reason = next(_reasons(tree), None)
    except (OSError, ValueError) as error:
        reason = f"it can't be read ({error})"
    if reason:
        weights = any((resolve(run) / part).is_dir() for part in ("adapter", "export/merged"))
        raise UserError(
            f"compare.models: {file}: {reason}; evaluate the model again with recipe=evaluate "
            f"model.model_name_or_path={run if weights else '…'}, and compare that run."
        )
    return ModelResults(
        name, tree["figures"], tree["rows"], tree.get("lower_is_better", ()), tree.get("conditions", {})
    )


def _reasons(tree: Any) -> Iterator[str]:
    """What is wrong with a file of results."""
    kinds = {"figures": dict, "rows": dict, "lower_is_better": list, "conditions": dict}
    if not isinstance(tree, dict):
        yield "it isn't a JSON object"
        return
    for key, kind in kinds.items():
        if not isinstance(tree.get(key, kind() if key not in ("figures", "rows") else None), kind):
            yield f"it has no {key}"
            return
    for figure, value in tree["figures"].items():
        if not isinstance(value, int | float | None):
            yield f"the figure {figure} is no number"
    for figure, rows in tree["rows"].items():
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            yield f"the rows of {figure} are no list of JSON objects"
            return
        for number, row in enumerate(rows, start=1):
            if not isinstance(row.get("id"), str | int):
                yield f"row {number:,} of {figure} has no id"
            if not isinstance(row.get("score", ""), int | float | None):  # null: it was no number
                yield f"row {number:,} of {figure} has no score"
            if not isinstance(row.get("weight", 1), int | float):
                yield f"the weight of row {number:,} of {figure} is no number"
