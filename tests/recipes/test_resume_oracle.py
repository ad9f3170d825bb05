"""Resumed runs against undisturbed ones: every recipe, at every kind of save point, with what else can be set.

Sixty combinations and more, in which each pair of settings occurs: a run that is resumed at one step, stopped and
resumed at another, leaves the same weights and metrics as the run that nobody stopped, and as its own continuation.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from every_recipe import SHORT_RUNS, write_rows
from resumed import lines, stopped_at, weights
from short_runs import short_run

from gemma_tune.run.checkpoints import DIGESTS

STEPS = 6
_RECIPES = (
    "full_sft", "lora_sft", "qlora_sft", "dpo, full", "dpo, lora", "kto, lora", "reward_model, lora", "qat, full",
    "qat, lora", "grpo, lora", "rloo",
)  # fmt: skip
# What is combined. Rows: 16 short ones, or the sample's; an epoch is 2, 4 or 8 steps.
SETTINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "recipe": dict.fromkeys(_RECIPES, ()),
    "rows": {
        "some": (), "packed": ("train.packing=true", "train.max_length=256"),
        "streamed": ("data.streaming=true", "data.shuffle_buffer_size=8", "data.max_train_samples=null"),
        "grouped": ("train.train_sampling_strategy=group_by_length",),
        "by beginning": ("train.train_sampling_strategy=group_by_beginning",),
    },
    "accumulation": {"1": (), "2": ("train.gradient_accumulation_steps=2",)},
    "evaluation": {
        "none": (), "during": ("train.eval_steps=2",),
        "best": ("train.eval_steps=2", "train.metric_for_best_model=held_out_loss"),
    },
    "logging": {"each": (), "every third": ("train.logging_steps=3",)},
    "resumed at": {"1": (), "2": (), "4": (), "6": ()},
    "and at": {"3": (), "5": (), "6": ()},
}  # fmt: skip
SFT = ("full_sft", "lora_sft", "qlora_sft")
REWARDED = ("grpo, lora", "rloo")


def possible(chosen: Mapping[str, str]) -> bool:
    """Whether the settings go together."""
    recipe, rows, evaluation = (chosen.get(name, "") for name in ("recipe", "rows", "evaluation"))
    if rows in ("packed", "streamed", "grouped", "by beginning") and recipe and recipe not in SFT:
        return False
    if evaluation != "none" and evaluation and recipe and recipe not in (*SFT, "qat, full", "qat, lora"):
        return False
    return int(chosen.get("resumed at", 0)) < int(chosen.get("and at", 9)) or chosen.get("resumed at") == "6"


def pairwise(settings: Mapping[str, Sequence[str]], seed: int = 0) -> Iterator[dict[str, str]]:
    """Combinations in which each possible pair of values occurs, at least sixty."""
    chance, names = random.Random(seed), list(settings)
    left = {
        ((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in settings[a] for y in settings[b]
        if any(possible(dict(zip(names, all_of, strict=True))) for all_of in itertools.product(
            *([x] if n == a else [y] if n == b else settings[n] for n in names)))
    }  # fmt: skip
    made = 0
    while left or made < 60:
        best: tuple[int, dict[str, str]] = (-1, {})
        for _ in range(200):
            start = dict(chance.choice(sorted(left))) if left else {}
            one = {n: start.get(n, chance.choice(settings[n])) for n in names}
            if possible(one):
                covers = sum(one[a] == x and one[b] == y for (a, x), (b, y) in left)
                best = max(best, (covers, one), key=lambda found: found[0])
        left -= {pair for pair in left if all(best[1][name] == value for name, value in pair)}
        made += 1
        yield best[1]


COMBINATIONS = list(pairwise({name: list(values) for name, values in SETTINGS.items()}))


def test_the_cover() -> None:
    assert len(COMBINATIONS) >= 60
    for name, values in SETTINGS.items():
        assert {one[name] for one in COMBINATIONS} == set(values)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(COMBINATIONS)), ids=lambda i: ", ".join(COMBINATIONS[i].values()))
def test_resumed_twice(number: int, tmp_path: Path) -> None:
    chosen = COMBINATIONS[number]
    run = SHORT_RUNS[chosen["recipe"]]
    rows = write_rows(run.rows, tmp_path / "rows") if run.rows else ["data.max_train_samples=16"]
    words = [*run.words, *rows, "eval.num_samples=0", "train.save_steps=1"]
    words += ["export.dtype=float32"] if number % 8 == 0 else ["export=none"]  # else by the last checkpoint
    if run.recipe != "qat":  # it measures the cost of rounding then
        words += ["eval.before=false"]
    for name, values in SETTINGS.items():
        words += values[chosen[name]]
    words += ["train.save_total_limit=null"]
    if chosen["recipe"] in REWARDED:
        words += ["data.max_train_samples=32"]
    whole = tmp_path / "whole"
    short_run(run.recipe, whole, *words, steps=STEPS)
    first, second = int(chosen["resumed at"]), int(chosen["and at"])
    # Resumed at the first step, and killed again behind the second
    stopped_at(whole, tmp_path / "once", first)
    short_run(run.recipe, tmp_path / "once", *words, steps=STEPS)
    stopped_at(tmp_path / "once", tmp_path / "twice", max(first, second))
    short_run(run.recipe, tmp_path / "twice", *words, steps=STEPS)
    for resumed in ("once", "twice"):
        assert lines(tmp_path / resumed) == lines(whole), resumed
        assert weights(tmp_path / resumed) == weights(whole), resumed
    # Its own continuation: every checkpoint behind the first step is the same
    for step in range(first + 1, STEPS + 1):
        made = [tmp_path / name / "checkpoints" / f"step-{step}" / DIGESTS for name in ("whole", "once")]
        if made[0].is_file() and made[1].is_file():
            one, other = ({k: v["xxh3_128"] for k, v in json.loads(p.read_text())["files"].items()} for p in made)
            parts = [k for k in one if k.endswith(".safetensors") or k == "optimizer.pt"]
            assert parts and all(one[k] == other[k] for k in parts), step
