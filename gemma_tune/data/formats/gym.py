"""`data=reasoning_gym`: an endless supply of generated tasks; each number always gives the same task."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, overload

from gemma_tune.config import DataConfig
from gemma_tune.data.records import Record
from gemma_tune.errors import UserError
from gemma_tune.validation.suggest import did_you_mean

_ENDLESS = 2**20  # tasks; a run that uses them all starts again with the first
_HELD_OUT = 200
_APART = 500_000_009  # between the seeds of the training tasks and of the held-out tasks
_OTHERS, _TRIES = 7_000_003, 20  # between the seeds of a task and of its replacement; and replacements tried


class GymTasks(Sequence[Record]):
    """The tasks of a generator, each generated when it is asked for.

    Args:
        data: `generator`, and its difficulty in `generator_options`.
        seed: Seed of the first task; task N has the seed `seed + N`.
        count: Number of tasks.
        without: Questions to exclude; tasks of other seeds replace them.

    Raises:
        UserError: There is no such generator, or it rejects an option.
    """

    def __init__(self, data: DataConfig, seed: int, count: int, without: Collection[str] = ()) -> None:
        try:
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
        except ImportError as error:
            raise UserError("data.generator: reasoning-gym is not installed; pip install 'gemma_tune[rl]'.") from error
        self.name = str(data.generator)
        if self.name not in DATASETS:
            raise UserError(
                f"data.generator={self.name}: reasoning-gym has no such generator.{did_you_mean(self.name, DATASETS)}"
            )
        try:
            self._sets = [
                reasoning_gym.create_dataset(self.name, seed=seed + i * _OTHERS, size=count, **data.generator_options)
                for i in range(_TRIES if without else 1)
            ]
        except (TypeError, ValueError, AssertionError) as error:
            options = ", ".join(k for k in DATASETS[self.name][1].__dataclass_fields__ if k not in ("seed", "size"))
            reason = str(error).removeprefix(f"{DATASETS[self.name][1].__name__}.__init__() ")
            raise UserError(f"data.generator_options: {self.name}: {reason}; its options: {options}.") from error
        self._count, self._without, self._thinking = count, frozenset(without), data.enable_thinking

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> list[Record]: ...
    def __getitem__(self, place: int | slice) -> Record | list[Record]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(self._count))]
        if not 0 <= place < self._count:
            raise IndexError(place)
        found = (entry for entry in (made[place] for made in self._sets) if entry["question"] not in self._without)
        entry = next(found, None)
        if entry is None:
            raise UserError(
                f"data.generator={self.name}: it makes too few different tasks to hold some out; set "
                "data.generator_options for more, or a smaller data.max_eval_samples."
            )
        return self._record(place, entry)

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(self._count))

    def _record(self, place: int, entry: dict[str, Any]) -> Record:
        messages = [{"role": "user", "content": entry["question"]}]
        if entry.get("answer"):  # some generators have a verifier only
            messages.append({"role": "assistant", "content": str(entry["answer"])})
        row = {"dataset": self.name, "entry": entry}
        return Record(f"{self.name}:{place}", messages=messages, thinking=self._thinking, row=row)


def training_tasks(data: DataConfig) -> GymTasks:
    """The training tasks: `data.max_train_samples` of them, or an endless supply; none is also held out."""
    held_out = {record.prompt[0]["content"] for record in held_out_tasks(data)}
    return GymTasks(data, data.generator_seed, data.max_train_samples or _ENDLESS, held_out)


def held_out_tasks(data: DataConfig) -> list[Record]:
    """The held-out tasks: `data.max_eval_samples` (default 200), with other seeds than the training tasks."""
    return list(GymTasks(data, data.generator_seed + _APART, data.max_eval_samples or _HELD_OUT))
