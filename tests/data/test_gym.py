"""Tasks of reasoning-gym: the same by number, others held out, and made only when they are asked for."""

from __future__ import annotations

import pytest

from gemma_tune.config import DataConfig

pytest.importorskip("reasoning_gym")

from gemma_tune.data.formats.gym import GymTasks, held_out_tasks, training_tasks
from gemma_tune.errors import UserError


def config(**more: object) -> DataConfig:
    return DataConfig(generator="chain_sum", generator_options={"max_terms": 2, "max_digits": 2}, **more)  # type: ignore[arg-type]


def test_a_task_is_the_same_by_its_number() -> None:
    tasks = training_tasks(config())
    assert len(tasks) == 2**20 and tasks[7].messages == training_tasks(config())[7].messages
    assert tasks[7].where == "chain_sum:7" and tasks[7].messages != tasks[8].messages
    assert tasks[2**20 - 1].answer and tasks[3:5] == [tasks[3], tasks[4]]
    with pytest.raises(IndexError):
        tasks[2**20]


def test_its_answer_stands_in_the_record_and_its_entry_in_the_row() -> None:
    record = GymTasks(config(), 0, 3)[1]
    question, sum_of = record.prompt[0]["content"], record.row["entry"]["metadata"]["expression"]
    assert sum_of in question and int(record.answer) == eval(sum_of)
    assert record.row["dataset"] == "chain_sum" and record.row["entry"]["question"] == question


def test_held_out_tasks_are_others() -> None:
    trained = {r.prompt[0]["content"] for r in training_tasks(config(max_train_samples=50))}
    held = [r.prompt[0]["content"] for r in held_out_tasks(config(max_eval_samples=50))]
    assert len(held) == 50 and len(held_out_tasks(config())) == 200
    assert not trained & set(held)


def test_a_generator_with_too_few_tasks_says_so() -> None:
    few = DataConfig(generator="chain_sum", generator_options={"max_terms": 2, "max_digits": 1}, max_eval_samples=2000)
    with pytest.raises(UserError, match="too few different tasks"):
        list(training_tasks(few)[:200])


def test_difficulty_goes_through() -> None:
    def longest(**options: int) -> int:
        data = DataConfig(generator="chain_sum", generator_options=dict(options))
        return max(len(r.row["entry"]["metadata"]["expression"]) for r in GymTasks(data, 0, 20))

    assert longest(min_terms=6, max_terms=6) > longest(min_terms=2, max_terms=2)
