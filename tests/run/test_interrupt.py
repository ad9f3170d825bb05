"""Ctrl-C in the middle of a run: a folder that says so, and no half file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from short_runs import metrics, short_run

from gemma_tune.cli.compose import compose_config
from gemma_tune.cli.main import main
from gemma_tune.run.paths import ASSETS, atomic_folder, folder_status
from gemma_tune.run.result import RunResult
from gemma_tune.run.resume import way_on
from gemma_tune.run.stopping import Stopped, Stops, listening

WORDS = ["tracker=none", "data=messages", f"data.train_file={ASSETS / 'sample' / 'train.jsonl'}", "eval=none"]
FEW = ["data.max_train_samples=64", "data.max_eval_samples=4", "eval.num_samples=1", "eval.max_new_tokens=8"]


def hear() -> None:
    """Where tests run in the background Ctrl-C is ignored, and children would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted(
    folder: Path, when: Callable[[], bool], *words: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Starts a run in a process of its own and presses Ctrl-C as soon as `when` holds."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    command = [sys.executable, "-m", "gemma_tune", "recipe=lora_sft", *WORDS, f"output_dir={folder}", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=hear
    )
    deadline = time.monotonic() + 120
    while not when():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, out, error)


@pytest.mark.slow
def test_while_training(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    checkpoints = folder / "checkpoints"
    done = interrupted(
        folder, lambda: any(checkpoints.glob("step-*")), "train.save_steps=1", "train.max_steps=200", *FEW
    )
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    assert "gemma_tune: interrupted." in done.stderr and "has checkpoints: the same command goes on" in done.stderr
    assert "Ctrl-C: the run ends after this step, and saves a checkpoint" in done.stderr
    assert json.loads((folder / "result.json").read_text("utf-8"))["status"] == "interrupted"
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml", "result.json", "manifest.json", "metrics.jsonl", "checkpoints", "eval",
    }  # fmt: skip
    for step in checkpoints.iterdir():  # each is whole
        assert step.name.startswith("step-")
        assert {"adapter_model.safetensors", "optimizer.pt", "trainer_state.json"} <= {p.name for p in step.iterdir()}
    for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines():
        json.loads(line)


@pytest.mark.slow
def test_several_processes_while_training(tmp_path: Path) -> None:
    """Each has the signal once; they end after the same step, with one message that says how to go on."""
    folder = tmp_path / "run"
    words = ["launch.num_processes=2", "train.max_steps=200", *FEW]
    log = folder / "metrics.jsonl"
    done = interrupted(folder, lambda: log.is_file() and log.stat().st_size > 0, *words)
    assert done.returncode == 130 and "Warning" not in done.stderr, done.stderr
    assert done.stderr.count("Ctrl-C: the run ends after this step") == 1
    assert done.stderr.count("interrupted.") == 1 and "has checkpoints: the same command goes on" in done.stderr
    assert json.loads((folder / "result.json").read_text("utf-8"))["status"] == "interrupted"
    (step,) = (folder / "checkpoints").iterdir()
    assert len(list(step.glob("rng_state_*.pth"))) == 2


@pytest.mark.slow
def test_while_rows_are_rendered(tmp_path: Path) -> None:
    """There is no folder yet, and nothing is left of the rows."""
    file, folder, cache = tmp_path / "rows.jsonl", tmp_path / "run", tmp_path / "cache"
    file.write_text((ASSETS / "sample" / "train.jsonl").read_text("utf-8") * 20, encoding="utf-8")
    done = interrupted(
        folder,
        lambda: any(cache.glob("gemma_tune-*/rows.arrow")),
        f"data.train_file={file}",
        HF_DATASETS_CACHE=str(cache),
    )
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    assert not folder.exists() and not any(cache.glob("gemma_tune-*"))


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "merged") as target:
        target.mkdir()
        (target / "half").touch()
        raise KeyboardInterrupt
    assert not any(tmp_path.iterdir())
    for name in ("first", "second"):
        with atomic_folder(tmp_path / "merged") as target:
            target.mkdir()
            (target / name).touch()
        assert [p.name for p in (tmp_path / "merged").iterdir()] == [name]


SENDS = """
import os, signal

def {name}(engine, inputs):
    if not os.path.exists({mark!r}):
        open({mark!r}, "w").close()
        os.kill(os.getpid(), signal.{signal})
        raise RuntimeError("it was interrupted")
    return {{"peak": 1.0}}
"""


def sends(folder: Path, signal_name: str) -> str:
    """An evaluator of the user's, at whose first call the process is sent a signal."""
    file = folder / f"{signal_name.lower()}.py"
    text = SENDS.format(name="sends", mark=str(folder / f"sent {signal_name}"), signal=signal_name)
    file.write_text(text, encoding="utf-8")
    return f"{file}:sends"


QUIET = [*FEW, "eval.before=false", "eval.evaluators=[]", "export=none", "train.eval_steps=2", "eval.num_samples=0"]


_OTHERS = (("SIGINT", 130), ("SIGUSR1", 143), ("SIGHUP", 143))


@pytest.mark.parametrize(
    ("name", "code"),
    [("SIGTERM", 143), *_OTHERS],
)
@pytest.mark.slow
def test_a_signal_ends_the_step(name: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint at the next step, though none was asked for; the same command goes on to the same weights."""
    words = [*QUIET, f"eval.during_training=['{sends(tmp_path, name)}']"]
    with pytest.raises(Stopped, match="has checkpoints: the same command goes on") as stopped:
        short_run("lora_sft", tmp_path / "run", *words, steps=5)
    assert stopped.value.code == code
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-3"]
    assert folder_status(tmp_path / "run") == "interrupted"
    assert "the run ends after this step" in capsys.readouterr().err
    short_run("lora_sft", tmp_path / "run", *words, steps=5)
    assert "goes on with the interrupted run, from step 3" in capsys.readouterr().out
    if name == "SIGTERM":  # once is enough
        short_run("lora_sft", tmp_path / "whole", *words, steps=5)
        one, other = (tmp_path / run / "adapter" / "adapter_model.safetensors" for run in ("run", "whole"))
        assert one.read_bytes() == other.read_bytes()
        ours, whole = ([line for line in metrics(tmp_path / run) if "loss" in line] for run in ("run", "whole"))
        assert [line["batch"] for line in ours] == [line["batch"] for line in whole] and len(ours) == 5
        assert [line["loss"] for line in ours] == [line["loss"] for line in whole]
        assert [line["num_tokens"] for line in ours] == [line["num_tokens"] for line in whole]
        assert [line["train_loss"] for line in metrics(tmp_path / "run") if "train_loss" in line] == [
            line["train_loss"] for line in metrics(tmp_path / "whole") if "train_loss" in line
        ]
    # What could not be measured before is not forgotten
    failures = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))["failures"]
    assert [(where[:8], reason) for where, reason in failures.items()] == [
        ("step 2: ", f"{name.lower()}.py:8: RuntimeError: it was interrupted.")
    ]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_second_signal_ends_at_once() -> None:
    stops = Stops()
    with listening(stops), stops.waiting():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stops.asked == 143
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), signal.SIGINT)
    assert stopped.value.code == 130


def test_one_time_for_all_stages() -> None:
    stops = Stops()
    stops.end_in_time(None)
    stops.end_in_time(60)
    with pytest.raises(Stopped) as stopped:
        stops.end_in_time(1e-9)
    assert stopped.value.code == 0 and stops.asked == 0


def test_where_nothing_is_trained_it_ends_at_once(tmp_path: Path) -> None:
    words = [*FEW, "eval.before=true", f"eval.evaluators=['{sends(tmp_path, 'SIGTERM')}']", "export=none"]
    with pytest.raises(Stopped, match="has no checkpoint") as stopped:
        short_run("lora_sft", tmp_path / "run", *words, steps=2)
    assert stopped.value.code == 143 and folder_status(tmp_path / "run") == "interrupted"


def test_what_an_interrupted_run_has_left(tmp_path: Path) -> None:
    """Files that are whole and checked can be used; checkpoints are spoken of only where something is trained."""
    cfg, result = compose_config("export", ["export=int4"]), RunResult("export")
    begun = way_on(cfg, tmp_path, result, False)
    assert begun == "The same command begins anew."
    result.artifacts = {"gguf": "export/gguf", "w4a16": "export/w4a16"}
    assert way_on(cfg, tmp_path, result, False) == begun  # written, and not yet checked
    result.metrics = {"verify": []}
    said = way_on(cfg, tmp_path, result, False)
    assert (
        f"complete and checked, and can be used: {tmp_path / 'export' / 'gguf'}, {tmp_path / 'export' / 'w4a16'}"
        in said
    )
    assert "export.quality_samples=0" in said and "save_steps" not in said
    sft = way_on(compose_config("lora_sft"), tmp_path, RunResult("lora_sft"), False)
    assert "has no checkpoint (train.save_steps writes them)" in sft
    assert "save_steps" not in way_on(compose_config("evaluate"), tmp_path, RunResult("evaluate"), False)


@pytest.mark.slow
def test_the_time_is_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 0, and the same command goes on; a limit is no part of what the run is."""
    words = ["recipe=lora_sft", "model=tiny", *WORDS, "train.max_steps=3", f"output_dir={tmp_path / 'run'}"]
    words += ["export=none", "train.per_device_train_batch_size=2", "data.max_train_samples=16"]
    assert main([*words, "train.max_time=1s"]) == 0
    assert "the time is up (train.max_time)" in capsys.readouterr().err
    assert folder_status(tmp_path / "run") == "interrupted"
    assert main([*words, "train.max_time=1h30m"]) == 0
    assert folder_status(tmp_path / "run") == "finished"
    for text in ("2", "1x", "0s", "-1h", "h"):
        assert main([*words, f"train.max_time={text}"]) == 2
        assert "write a time as 2h, 90m, 1h30m or 45s" in capsys.readouterr().err
