"""The table of a sweep, from results as runs leave them: best run, seeds, failures, and its shape at 80 columns."""

from __future__ import annotations

import json
import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from page_of import Page
from rich.console import Console

from gemma_tune.evals.statistics import interval
from gemma_tune.run.result import RunResult
from gemma_tune.sweep.files import write_table
from gemma_tune.sweep.outcomes import INTERRUPTED, JobOutcome
from gemma_tune.sweep.ranking import ranking
from gemma_tune.sweep.table import SweepTable

RATES = {"1e-4": 0.4, "2e-3": 0.9, "8e-3": 0.88}
ROWS = 50


def finished(folder: Path, rate: str, seed: int, share: float, rows: int = ROWS) -> JobOutcome:
    """A job whose run has left its result and its rows."""
    rng = random.Random(f"{rate} {seed}")
    scores = [float(rng.random() < share) for _ in range(rows)]
    losses = [2 - share + rng.random() for _ in range(rows)]
    figures = {
        "test_exact_match": statistics.fmean(scores),
        "held_out_loss": statistics.fmean(losses),
        "perplexity": 4.5,
    }
    place = folder / f"run-{rate}-{seed}"
    (place / "eval").mkdir(parents=True)
    tree = {
        "figures": figures,
        "rows": {
            name: [{"id": n, "score": value} for n, value in enumerate(values)]
            for name, values in (("test_exact_match", scores), ("held_out_loss", losses))
        },
        "lower_is_better": ["held_out_loss", "perplexity"],
    }
    (place / "eval" / "after.json").write_text(json.dumps(tree), encoding="utf-8")
    head = {"name": "test_exact_match", "before": 0.0, "after": figures["test_exact_match"]}
    result = RunResult("lora_sft", "finished", head, {"after": figures}, folder=place)
    differs = {"train.learning_rate": float(rate), "seed": seed}
    job = JobOutcome(f"learning_rate={rate}, seed={seed}", f"learning_rate={rate}", differs, place)
    return job.ended(result)


@pytest.fixture
def jobs(tmp_path: Path) -> list[JobOutcome]:
    return [finished(tmp_path, rate, seed, share) for rate, share in RATES.items() for seed in (1, 2)]


def shown(table: SweepTable, folder: Path, width: int = 80) -> str:
    console = Console(width=width, highlight=False, record=True, quiet=False, file=(folder / "out.txt").open("w"))
    table.show(console, Path("runs/sweep-00000000"))
    return console.export_text()


def test_the_best_run_is_the_best_by_the_metric(jobs: list[JobOutcome]) -> None:
    found = ranking(jobs)
    assert found is not None and found.figure == "test_exact_match" and not found.lower_is_better
    assert SweepTable.of("sweep-0", "x", jobs).figures == ["test_exact_match", "held_out_loss", "perplexity"]
    top = max(job.figures["test_exact_match"] for job in jobs)
    assert next(job for job in jobs if job.name == found.best).figures["test_exact_match"] == top
    assert {*found.equal, *found.not_distinct, *found.worse, found.best} == {job.name for job in jobs}
    assert set(found.worse) >= {"learning_rate=1e-4, seed=1", "learning_rate=1e-4, seed=2"}
    assert any("8e-3" in name for name in found.not_distinct)


def test_of_a_loss_the_lowest_is_best(jobs: list[JobOutcome]) -> None:
    found = ranking([replace(job, headline="held_out_loss") for job in jobs])
    assert found is not None and found.lower_is_better
    lowest = min(jobs, key=lambda job: job.figures["held_out_loss"])
    assert found.best == lowest.name


def test_seeds_are_grouped(jobs: list[JobOutcome], tmp_path: Path) -> None:
    found = ranking(jobs)
    assert found is not None and found.has_seeds
    for group, rate in zip(found.groups, RATES, strict=True):
        values = [job.figures["test_exact_match"] for job in jobs if rate in job.name]
        spread = group.figures["test_exact_match"]
        assert (group.setting, spread.count) == (f"learning_rate={rate}", 2)
        assert spread.mean == pytest.approx(statistics.fmean(values))
        assert spread.deviation == pytest.approx(statistics.stdev(values))
    means = {g.setting: g.figures["test_exact_match"].mean for g in found.groups}
    assert found.best_setting is not None and found.best_setting.setting == max(means, key=lambda n: means[n])
    text = " ".join(shown(SweepTable.of("sweep-0", "x", jobs), tmp_path).split())
    assert "sample standard deviation (n − 1) over the seeds" in text and "of 2 seeds" in text


def test_ties_are_said(jobs: list[JobOutcome], tmp_path: Path) -> None:
    best = max(jobs, key=lambda job: job.figures["test_exact_match"])
    twin = replace(best, name="learning_rate=5e-3, seed=1", setting="learning_rate=5e-3")
    found = ranking([*jobs, twin])
    assert found is not None and twin.name in found.equal and twin.name not in found.not_distinct
    assert f"The same value: {'; '.join(found.equal)}." in SweepTable.of("sweep-0", "x", [*jobs, twin]).verdict()


def test_a_failed_job_stands_in_the_table(jobs: list[JobOutcome], tmp_path: Path) -> None:
    failed = replace(jobs[0], status="", figures={}, rows={}).failed("CUDA out of memory.\nTried to allocate 2 GiB")
    table = SweepTable.of(
        "sweep-0", "python -m gemma_tune -m x", [failed, *jobs[1:5], replace(jobs[5], status=INTERRUPTED)]
    )
    assert table.counts() == "6 jobs: 1 failed, 4 finished, 1 interrupted"
    write_table(table, tmp_path / "sweep")
    text, markdown = shown(table, tmp_path), (tmp_path / "sweep" / "sweep.md").read_text("utf-8")
    assert "CUDA out of memory." in " ".join(text.split()) and "Tried to allocate" not in text + markdown
    assert "| learning_rate=1e-4, seed=1: CUDA out of memory. | failed |" in markdown
    assert "The same command goes on" in text
    tree = json.loads((tmp_path / "sweep" / "sweep.json").read_text("utf-8"))
    assert [job["status"] for job in tree["jobs"]] == ["failed", *["finished"] * 4, "interrupted"]
    assert tree["jobs"][0]["reason"] == "CUDA out of memory." and tree["ranking"]["best"] != failed.name


def test_at_80_columns_no_number_is_broken(jobs: list[JobOutcome], tmp_path: Path) -> None:
    table = SweepTable.of("sweep-0", "x", jobs)
    text = shown(table, tmp_path)
    assert max(map(len, text.splitlines())) <= 80
    for job in jobs:
        assert f"{job.figures['test_exact_match']:.1%}" in text
    narrow = shown(table, tmp_path, width=50)
    assert "more figure" in narrow and f"{jobs[0].figures['test_exact_match']:.1%}" in narrow


def test_every_interval_is_on_the_page(jobs: list[JobOutcome], tmp_path: Path) -> None:
    table = SweepTable.of("sweep-0", "python -m gemma_tune -m recipe=lora_sft seed=1,2", jobs)
    write_table(table, tmp_path / "sweep")
    page = Page(str(tmp_path / "sweep" / "sweep.html"))
    markdown = (tmp_path / "sweep" / "sweep.md").read_text("utf-8")
    for job in jobs:
        at = interval([row["score"] for row in job.rows["test_exact_match"]])
        assert f"{100 * at.low:.1f}–{100 * at.high:.1f}" in page.text and f"{100 * at.low:.1f}–" in markdown
    assert "python -m gemma_tune -m recipe=lora_sft seed=1,2" in page.text
    assert "compare.baseline=best" in page.text and "tests between all pairs of runs" in page.text


def test_jobs_on_other_rows_are_not_tested(tmp_path: Path) -> None:
    """A sweep over the rows themselves: values stand side by side, and the table says that nothing was tested."""
    jobs = [finished(tmp_path, "1e-4", 1, 0.5, rows=20), finished(tmp_path, "1e-4", 2, 0.6, rows=30)]
    table = SweepTable.of("sweep-0", "x", jobs)
    (said,) = [line for line in table.verdict() if line.startswith("The differences were not tested: ")]
    assert "the rows aren't the same" in said and not said.endswith("..")
    twice = [jobs[0], replace(jobs[1], name=jobs[0].name)]
    found = ranking(twice)
    assert found is not None and "more than one is called" in found.untested


def test_nothing_is_tested_before_the_end(jobs: list[JobOutcome]) -> None:
    before, after = (ranking(jobs, tested) for tested in (False, True))
    assert before is not None and after is not None and before.best == after.best
    assert before.untested == "the sweep has not ended" and not before.worse and after.worse and not after.untested


def test_a_sweep_without_figures_has_a_table(tmp_path: Path) -> None:
    jobs = [JobOutcome(f"seed={n}", "", {"seed": n}, tmp_path).failed("no") for n in (1, 2)]
    table = SweepTable.of("sweep-0", "x", jobs)
    write_table(table, tmp_path / "sweep")
    assert table.verdict() == [] and "seed=2: no" in shown(table, tmp_path)
