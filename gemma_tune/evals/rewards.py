"""Greedy answers to test rows, scored by each reward apart: what training with rewards is measured by."""

from __future__ import annotations

from gemma_tune.engines.base import Engine
from gemma_tune.evals.base import Evaluator, Inputs, Outcome, ScoredRow, mean
from gemma_tune.evals.samples import asked_text, record_replies, row_ids
from gemma_tune.models.hardware import pick_device
from gemma_tune.rl.rewards import scorer_of
from gemma_tune.rl.tasks import parse_completion, task_of


def prepare(inputs: Inputs) -> Evaluator:
    """Answers every test row greedily, and scores the answers by every reward of `reward`.

    Returns:
        An evaluator that returns, for each of `data.test_files` and each reward, `<name>_<reward>` (the mean of its
        scores; rows that it doesn't apply to don't count), and for each test `<name>_stopped` and `<name>_rows`.

    Raises:
        UserError: A reward that can't be used.
    """
    cfg = inputs.cfg
    tests = {name: records[: cfg.eval.max_samples] for name, records in inputs.tests.items()}
    scorer = scorer_of(cfg, pick_device(cfg.model), [task_of(r) for records in tests.values() for r in records])

    def evaluate(engine: Engine, limit: int | None = None) -> Outcome:
        figures: dict[str, float] = {}
        rows: dict[str, list[ScoredRow]] = {}
        for test, every in tests.items():
            records = every[:limit]
            _, written = record_replies(engine, records, cfg.answer_tokens, f"{test}: rewards")
            answers = [parse_completion(engine.tokenizer, a, engine.stops) for a in written]
            scores = scorer.score(answers, [task_of(r) for r in records])
            for name in scorer.weights:
                scored = [
                    {
                        "id": place,
                        "prompt": asked_text(engine.tokenizer, record),
                        "wanted": record.answer,
                        "answer": str(answer),
                        "stopped": answer.stopped,
                        "score": value,
                    }
                    for place, record, answer, value in zip(
                        row_ids(records), records, answers, scores.values[name], strict=True
                    )
                    if value is not None
                ]
                if scored:
                    figures[f"{test}_{name}"], rows[f"{test}_{name}"] = mean(scored), scored
                if scores.failed[name]:
                    figures[f"{test}_{name}_failed"] = scores.share_failed(name)
            figures[f"{test}_stopped"] = sum(a.stopped for a in answers) / len(answers)
            figures[f"{test}_rows"] = len(answers)
        return Outcome(figures, rows)

    return evaluate
