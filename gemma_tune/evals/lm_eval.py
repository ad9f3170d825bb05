"""Tasks of lm-evaluation-harness, built in or from your own YAML files, with the same numbers as its command line.

They equal those of `lm_eval --model hf --model_args pretrained=FOLDER` with the same tasks, batch size and dtype,
where FOLDER holds the model as we save it, with the chat template and stop tokens that it was tuned with.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemma_tune.config import Config
from gemma_tune.engines.base import Engine
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.evals.base import Evaluator, Inputs, Outcome, ScoredRow, mean
from gemma_tune.evals.lm_eval_tasks import find_tasks
from gemma_tune.models.contexts import evaluating, same_random_state

# Characters kept of a few-shot prompt for people: its end, where the question is.
_SHOWN = 1000


def prepare(inputs: Inputs) -> Evaluator:
    """Finds the tasks; their data is read, or downloaded from the Hub, when they run.

    Returns:
        An evaluator that returns `<task>_<metric>` for each task and group, with `_<filter>` appended if the task
        filters answers, and its standard error, `…_stderr`, if lm-eval has one. A row's id depends on its data, on the
        number of few-shot examples, and on whether the chat template is applied.

    Raises:
        UserError: As `find_tasks`.
    """
    cfg = inputs.cfg.eval.lm_eval
    manager = find_tasks(cfg)
    names = itertools.chain.from_iterable(manager.match_tasks([wanted]) for wanted in cfg.tasks)
    tasks = list(dict.fromkeys(names))

    def evaluate(engine: Engine, limit: int | None = None) -> Outcome:
        from lm_eval import simple_evaluate

        with _as_lm(engine, cfg.batch_size) as lm, contextlib.redirect_stdout(sys.stderr):
            results = simple_evaluate(
                lm,
                tasks=tasks,
                num_fewshot=cfg.num_fewshot,
                limit=_limit(inputs.cfg, limit),
                apply_chat_template=cfg.apply_chat_template,
                fewshot_as_multiturn=cfg.apply_chat_template,
                task_manager=manager,
            )
        if results is None:  # with several processes, only rank 0 gets results
            return Outcome({})
        figures = _figures(results["results"])
        rows = _with_groups(_rows(results, figures, cfg.apply_chat_template), figures, results)
        for found in rows.values():
            if not all("answer" in row for row in found):  # all rows of a metric have the same fields
                for row in found:
                    row.pop("answer", None)
        return Outcome(figures, rows, _lower_is_better(results))

    return evaluate


def _limit(cfg: Config, limit: int | None) -> int | None:
    """Rows per task: the smallest of the limits; with training, `eval.max_samples` is one of them."""
    trains = cfg.traits.trains
    limits = (cfg.eval.lm_eval.limit, limit, cfg.eval.max_samples if trains else None)
    return min((n for n in limits if n is not None), default=None)


@contextlib.contextmanager
def _as_lm(engine: Engine, batch_size: int) -> Iterator[Any]:
    """The engine as a model of lm-eval; restores the model's mode and the random state afterwards."""
    if not isinstance(engine, TransformersEngine):
        from gemma_tune.evals.lm_eval_engine import EngineLM

        with same_random_state():
            yield EngineLM(engine)
        return
    from lm_eval.models.huggingface import HFLM

    log = logging.getLogger("lm_eval.models.huggingface")
    level = log.level
    with evaluating(engine.model):
        log.setLevel(logging.ERROR)  # it warns about a model that is already loaded
        try:
            lm = HFLM(pretrained=engine.model, tokenizer=engine.tokenizer, batch_size=batch_size)
        finally:
            log.setLevel(level)
        yield lm


def _name(task: str, metric: str, kind: str) -> str:
    """A figure's name from lm-eval's `metric,filter`."""
    error = "_stderr" * metric.endswith("_stderr")
    return f"{task}_{metric.removesuffix('_stderr')}{'' if kind == 'none' else '_' + kind}{error}"


def _figures(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {
        _name(task, *key.split(",", 1)): float(value)
        for task, values in results.items()
        for key, value in values.items()
        if "," in key and not isinstance(value, str)  # "N/A": no standard error
    }


def _lower_is_better(results: Mapping[str, Any]) -> frozenset[str]:
    """The metrics where lm-eval says that lower is better."""
    higher: Mapping[str, Mapping[str, Any]] = results["higher_is_better"]
    keys = ((task, *key.split(",", 1)) for task, values in results["results"].items() for key in values if "," in key)
    return frozenset(_name(*key) for key in keys if higher.get(key[0], {}).get(key[1]) is False)


def _rows(results: Mapping[str, Any], figures: Mapping[str, float], chat: bool) -> dict[str, list[ScoredRow]]:
    """The rows of the metrics that are a mean of scores."""
    rows: dict[str, list[ScoredRow]] = {}
    for task, answered in results["samples"].items():
        asked = f"{results['n-shot'].get(task)} {chat}"
        seen: Counter[tuple[str, str]] = Counter()
        for sample in answered:
            number = hashlib.blake2b(f"{sample['doc_hash']} {asked}".encode(), digest_size=8).hexdigest()
            kind = sample["filter"]
            again = seen[number, kind]  # equal rows
            seen[number, kind] += 1
            for metric in sample["metrics"]:
                row = {"id": f"{task}-{number}" + f"-{again}" * bool(again), "score": sample[metric]}
                rows.setdefault(_name(task, metric, kind), []).append(row | _shown(sample, metric))
    kept = {}
    for name, found in rows.items():
        if all(isinstance(row["score"], float | int) for row in found) and figures.get(name) == mean(found):
            kept[name] = [row | {"score": float(row["score"])} for row in found]
    return kept


def _shown(sample: Mapping[str, Any], metric: str) -> ScoredRow:
    """A row for people: the end of the prompt, the reference answer, and the model's answer."""
    requests, wanted = sample["arguments"], sample["target"]
    prompt = requests[0][0]
    shown = {"prompt": prompt[-_SHOWN:]}
    if isinstance(requests[0][-1], dict):  # how to generate
        shown["answer"] = sample["resps"][0][0]
    elif len(requests) > 1 and all(request[0] == prompt for request in requests):
        choices = [request[1].strip() for request in requests]
        if isinstance(wanted, int) and 0 <= wanted < len(choices):
            wanted = choices[wanted]
        if metric == "acc":  # other metrics choose by other scores
            shown["answer"] = choices[max(range(len(choices)), key=lambda i: sample["filtered_resps"][i][0])]
    return shown | {"wanted": str(wanted).strip()}


def _with_groups(
    rows: dict[str, list[ScoredRow]], figures: Mapping[str, float], results: Mapping[str, Any]
) -> dict[str, list[ScoredRow]]:
    """The rows of a group's tasks as rows of the group, if its metric is their mean; they are not listed twice."""
    members: Mapping[str, Sequence[str]] = results["group_subtasks"]
    inner = set(itertools.chain.from_iterable(members.values()))

    def tasks(name: str) -> list[str]:
        return [task for member in members[name] for task in tasks(member)] if name in members else [name]

    found: dict[str, list[ScoredRow]] = {}
    for group in (g for g in members if g not in inner):
        for key in (k for k in results["results"][group] if "," in k):
            name, parts = _name(group, *key.split(",", 1)), [_name(t, *key.split(",", 1)) for t in tasks(group)]
            if all(part in rows for part in parts):
                pooled = [row for part in parts for row in rows[part]]
                if math.isclose(mean(pooled), figures[name], rel_tol=1e-9):
                    found[name] = pooled
                    rows = {key: value for key, value in rows.items() if key not in parts}
    return found | rows
