"""What runs are called: what differs between their configurations, in as few words as tell them apart."""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Any

import pytest
from rich.console import Console

from gemma_tune.cli.compose import compose_config
from gemma_tune.compare.names import differing, named, number, path_tails, settings, short_keys, without_namesakes
from gemma_tune.page.blocks import FigureText
from gemma_tune.page.terminal import print_figures


def trees(*runs: list[str], recipe: str = "lora_sft") -> list[dict[str, Any]]:
    return [asdict(compose_config(recipe, run)) for run in runs]


def names(found: list[dict[str, Any]]) -> list[str]:
    return named(differing(found), len(found))


def test_by_rate_and_seed() -> None:
    found = trees(*([f"train.learning_rate={rate}", f"seed={seed}"] for rate in (1e-4, 2e-4) for seed in (1, 2)))
    assert names(found) == [f"learning_rate={rate}, seed={seed}" for rate in ("1e-4", "2e-4") for seed in (1, 2)]
    assert settings(differing(found), 4) == ["learning_rate=1e-4"] * 2 + ["learning_rate=2e-4"] * 2


def test_only_seeds_differ() -> None:
    found = trees(["seed=1"], ["seed=2"])
    assert names(found) == ["seed=1", "seed=2"] and settings(differing(found), 2) == ["", ""]


def test_of_many_differences_those_that_tell_apart() -> None:
    """A recipe changes rate, type, adapter and more: its name says it."""
    found = [*trees(["seed=1"], ["seed=2"]), *trees(["seed=1"], ["seed=2"], recipe="full_sft")]
    assert len(differing(found)) > 4
    assert names(found) == [f"recipe={recipe}, seed={n}" for recipe in ("lora_sft", "full_sft") for n in (1, 2)]
    assert len(set(settings(differing(found), 4))) == 2


def test_settings_that_a_short_name_does_not_tell_apart_stay_two() -> None:
    """No two settings become one group, whatever their names leave out."""
    found = trees(*([f"adapter.r={r}", f"train.weight_decay={w}"] for r, w in ((1, 0.1), (1, 0.2), (2, 0.1))))
    assert len(set(settings(differing(found), 3))) == 3


def test_how_a_run_is_followed_is_no_difference() -> None:
    a, b = trees(["output_dir=a", "tracker.name=a", "tracker.group=x"], ["output_dir=b", "train.max_time=1h"])
    assert differing([a, b]) == {}
    assert without_namesakes(names([a, b]), ["runs/a", "runs/b"]) == ["runs/a", "runs/b"]


def test_what_changes_no_figure_is_no_difference() -> None:
    """How often a run logs and saves, and what is written of it, also beside a key that does change figures."""
    words = ["train.logging_steps=5", "train.save_steps=7", "train.save_total_limit=2", "export.formats=[]",
             "eval.num_samples=0", "tracker=none"]  # fmt: skip
    found = trees([*words, "train.learning_rate=1e-3"], ["train.learning_rate=2e-3"])
    assert list(differing(found)) == ["train.learning_rate"] and names(found) == [
        "learning_rate=1e-3",
        "learning_rate=2e-3",
    ]
    assert differing(trees(words, [])) == {}


def test_of_paths_the_parts_that_differ() -> None:
    values = ["/data/1/rows.jsonl", "/data/2/rows.jsonl", "/data/1/rows.jsonl"]
    ones, other = "train_file=1/rows.jsonl", "train_file=2/rows.jsonl"
    assert named({"data.train_file": values}, 3) == [ones, other, ones]
    assert path_tails(["runs/a/adapter", "runs/b/adapter", "google/gemma"]) == [
        "a/adapter", "b/adapter", "google/gemma",
    ]  # fmt: skip


def test_keys_that_end_alike_keep_more_of_their_names() -> None:
    found = short_keys(["train.max_samples", "eval.max_samples", "seed"])
    assert list(found.values()) == ["train.max_samples", "eval.max_samples", "seed"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "1e-4"),
        (1.5e-5, "1.5e-5"),
        (0.05, "0.05"),
        (0.01, "0.01"),
        (8e-3, "8e-3"),
        (3.0, "3"),
        (0.0, "0"),
        (-2e-4, "-2e-4"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text and float(text) == value


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_table_breaks_no_word(width: int) -> None:
    """At 80 columns keys and values have lines of their own, and no column is left out."""
    name, interval = "learning_rate=8e-3, adapter.peft_type=dora", FigureText("−15.0 points", "−21.0 to −9.0")
    head = ["model", "mean (95% interval)", "difference (95% interval)", "verdict", "p", "rows better / worse / same"]
    out = io.StringIO()
    rows = [[name, FigureText("80.0%", "73.9 to 85.0"), interval, "not significant", "< 0.001", "13 / 33 / 154"]]
    print_figures(Console(width=width, file=out), "test", head, rows)
    words = [*name.replace("=", "= ").split(), "significant", "interval)", "better", "0.001", "154", "points"]
    said = out.getvalue().replace("=", "= ").split()
    assert [word for word in words if word not in said] == []
    assert max(map(len, out.getvalue().splitlines())) <= width
