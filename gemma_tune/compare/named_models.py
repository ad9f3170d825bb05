"""The models that `compare.models` names, before torch is imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gemma_tune.config import CompareConfig, ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import is_run_with_results


def check_compared(compare: CompareConfig) -> list[str | None]:
    """Looks for the files of each model that is measured now.

    Returns:
        `Source.remark` of each that was found.

    Raises:
        UserError: All models, or bases of adapters, that are not there.
    """
    problems: dict[str, None] = {}
    remarks: list[str | None] = []
    for name in compare.models:
        if is_run_with_results(name):
            continue
        try:
            remarks.append(find_source(ModelConfig(name)).remark)
        except UserError as error:
            problems |= dict.fromkeys(by_compare_models(error.problems))
    if problems:
        raise UserError(*problems)
    return remarks


def by_compare_models(problems: Iterable[str]) -> Iterator[str]:
    """Problems of one compared model, which are found under the key of a single model, under the key that named it."""
    return (problem.replace("model.model_name_or_path=", "compare.models: ") for problem in problems)
