"""Sweeps on the command line: which jobs there are, what is found before the first one, and what stops what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from asking import ask, refused

from gemma_tune.cli import sweep
from gemma_tune.cli.main import main
from gemma_tune.cli.sweep import jobs_of
from gemma_tune.config import Config
from gemma_tune.errors import RunError, UserError
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.result import RunResult
from gemma_tune.run.stopping import Stopped

WORDS = ["-m", "recipe=lora_sft", "train.learning_rate=1e-4,2e-4", "seed=1,2", "tracker=none"]


def test_jobs_and_their_names() -> None:
    jobs = jobs_of(["recipe=lora_sft", "train.learning_rate=1e-4,2e-4", "seed=range(1,3)", "chat.prompt=a, b"])
    assert [job.name for job in jobs] == [f"learning_rate={x}, seed={n}" for x in ("1e-4", "2e-4") for n in (1, 2)]
    assert [job.setting for job in jobs] == ["learning_rate=1e-4"] * 2 + ["learning_rate=2e-4"] * 2
    assert jobs[1].words == ["recipe=lora_sft", "train.learning_rate=0.0001", "seed=2", "chat.prompt=a, b"]
    assert [job.name for job in jobs_of(["recipe=lora_sft,full_sft"])] == ["recipe=lora_sft", "recipe=full_sft"]
    assert [job.name for job in jobs_of(["recipe=lora_sft", "seed=1"])] == ["lora_sft"]
    column = f"data.prompt_column={'question_' * 7}a,{'question_' * 7}b"
    said = [job.name for job in jobs_of(["recipe=lora_sft", column, "seed=1,2"])]
    assert len(set(said)) == 4 and said[0].startswith("prompt_column=question_") and said[3].endswith("… (2), seed=2")
    rates = [job.name for job in jobs_of(["recipe=lora_sft", "train.learning_rate=0.12345678,0.12345679"])]
    assert rates == ["learning_rate=0.12345678", "learning_rate=0.12345679"]
    with pytest.raises(UserError, match=r"1,000 jobs; a sweep has 500 at most"):
        jobs_of(["recipe=lora_sft", *(f"{key}=range(0,10)" for key in ("seed", "eval.num_samples", "adapter.r"))])


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["train.learning_rate=1e-4,-1"], ["train.learning_rate must be more than 0"]),
        (["train.max_steps=3,0"], ["max_steps=0: train.max_steps=0 would train nothing"]),
        (["seed=1,1"], ["seed=1: this is the same run as seed=1 (runs/lora_sft-", "name each value once"]),
        (["train.learning_rate=1e-4,0.0001", "seed=1,2"], ["this is the same run as learning_rate=1e-4, seed=1"]),
        (["hydra/launcher=joblib", "seed=1,2"], ["`hydra/launcher=joblib`", "no sweeper or launcher of Hydra"]),
        (["output_dir=x", "seed=1,2"], ["every job needs a folder of its own"]),
    ],
)  # fmt: skip
def test_mistakes_of_every_job_are_found_before_the_first_starts(
    folder: Path, words: list[str], parts: list[str]
) -> None:
    answer = refused("-m", "recipe=lora_sft", *words)
    assert all(part in answer for part in parts), answer


def test_bad_rows_of_the_last_job(folder: Path) -> None:
    row = '{"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2."}]}\n'
    Path("good.jsonl").write_text(row * 20, encoding="utf-8")
    Path("bad.jsonl").write_text('{"question": 1}\n', encoding="utf-8")
    answer = refused("-m", "recipe=lora_sft", "data=messages", "data.train_file=good.jsonl,bad.jsonl")
    assert "train_file=bad.jsonl: " in answer and "bad.jsonl:1: there is no field 'messages'" in answer


class Runs:
    """In place of real runs: each leaves a run folder as a recipe does, or fails as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[float | None, int]] = []
        self.groups: set[str | None] = set()
        self.errors: dict[int, BaseException] = {}
        monkeypatch.setattr(sweep, "run_recipe", self)

    def __call__(self, cfg: Config, words: Sequence[str]) -> RunResult:
        folder = RunFolder.open(cfg)
        if folder.finished:
            return folder.stored_result()
        self.seen.append((cfg.train.learning_rate, cfg.seed))
        self.groups.add(cfg.tracker.group)
        if error := self.errors.pop(len(self.seen), None):
            raise error
        loss = 3 - 1000 * (cfg.train.learning_rate or 0) + cfg.seed / 10
        with folder.recording():
            folder.result.headline = {"name": "train_loss", "after": loss}
        return folder.result


@pytest.fixture
def runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def table() -> dict[str, Any]:
    (place,) = Path("runs").glob("sweep-*")
    found: dict[str, Any] = json.loads((place / "sweep.json").read_text("utf-8"))
    assert found["name"] == place.name and (place / "sweep.md").is_file() and (place / "sweep.html").is_file()
    return found


def test_a_sweep_ends_in_a_table(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(WORDS) == 0
    assert runs.seen == [(1e-4, 1), (1e-4, 2), (2e-4, 1), (2e-4, 2)]
    found = table()
    assert found["ranking"]["best"] == "learning_rate=2e-4, seed=1" and found["ranking"]["lower_is_better"]
    assert runs.groups == {found["name"]}
    said = capsys.readouterr().out
    assert "Job 4 of 4" in said and "Best in train_loss (lower is better): learning_rate=2e-4, seed=1, 2.9." in said
    assert found["command"] == f"python -m gemma_tune {' '.join(WORDS)}"


@pytest.mark.slow
def test_the_same_command_runs_what_is_missing(runs: Runs) -> None:
    """And one more value takes what is finished; the same values in another order are the same sweep."""
    assert main(WORDS) == 0
    assert main(WORDS) == 0 and len(runs.seen) == 4
    assert main(["-m", "seed=2,1", "recipe=lora_sft", "train.learning_rate=2e-4,1e-4", "tracker=none"]) == 0
    assert len(runs.seen) == 4 and len(list(Path("runs").glob("sweep-*"))) == 1
    assert main([w.replace("seed=1,2", "seed=1,2,3") for w in WORDS]) == 0
    assert runs.seen[4:] == [(1e-4, 3), (2e-4, 3)] and len(list(Path("runs").glob("sweep-*"))) == 2


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RunError("loss is NaN at step 3\nmore"), 1, "loss is NaN at step 3"),
        pytest.param(UserError("row 7 is bad"), 2, "row 7 is bad", marks=pytest.mark.slow),
        pytest.param(
            MemoryError("CUDA out of memory.\nTried"), 1, "MemoryError: CUDA out of memory.", marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.slow
def test_a_failed_job_stops_no_other(
    runs: Runs, capsys: pytest.CaptureFixture[str], error: Exception, status: int, reason: str
) -> None:
    runs.errors[2] = error
    assert main(WORDS) == status
    assert len(runs.seen) == 4
    jobs = table()["jobs"]
    assert [job["status"] for job in jobs] == ["finished", "failed", "finished", "finished"]
    assert jobs[1]["reason"] == reason
    said = capsys.readouterr()
    assert "1 of 4 jobs failed; the same command runs what is missing." in said.err and "1 failed" in said.out
    assert main(WORDS) == 0 and runs.seen[4:] == [(1e-4, 2)]
    assert all(job["status"] == "finished" for job in table()["jobs"])


@pytest.mark.slow
def test_ctrl_c_ends_the_sweep_with_a_table(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.errors[3] = Stopped(130, "the same command goes on")
    assert main(WORDS) == 130
    assert [job["status"] for job in table()["jobs"]] == ["finished", "finished", "interrupted", "not run yet"]
    assert "2 finished, 1 interrupted, 1 not run yet" in capsys.readouterr().out
    assert main(WORDS) == 0 and runs.seen[3:] == [(2e-4, 1), (2e-4, 2)]


@pytest.mark.slow
def test_a_group_of_the_users_stays(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*WORDS, "tracker.group=mine"]) == 0 and runs.groups == {"mine"}
    runs.groups.clear()
    monkeypatch.setenv("WANDB_RUN_GROUP", "theirs")
    assert main([w.replace("seed=1,2", "seed=5,6") for w in WORDS]) == 0 and runs.groups == {None}


def test_a_dry_run_leaves_nothing(folder: Path) -> None:
    done = ask("-m", "recipe=preview", "seed=1,-1")
    assert done.returncode == 2 and "seed must be at least 0" in done.stderr and not Path("runs").exists()
