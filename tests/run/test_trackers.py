"""TensorBoard, MLflow and Trackio: what W&B gets of a run reaches them, too, each step once, and no secret."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from short_runs import metrics, short_run

from gemma_tune.cli.compose import compose_config
from gemma_tune.config.tracker import TRACKERS
from gemma_tune.errors import UserError
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import CONFIGS
from gemma_tune.run.tracking import Tracker, summary_names

SECRET = "5ec4e7" + "0123456789abcdef" * 2 + "77"
OTHERS = [name for name in TRACKERS if name != "wandb"]


@pytest.fixture(params=OTHERS)
def tracker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracker that is installed; its own database is in the test's folder, or in that of the first test."""
    name = str(request.param)
    pytest.importorskip(
        TRACKERS[name], reason=f"{TRACKERS[name]} is not installed (pip install 'gemma_tune[trackers]')"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.chdir(tmp_path)
    return name


@dataclasses.dataclass
class Stored:
    """What a tracker holds: of each metric its steps and values, the configuration, names of texts and tables."""

    metrics: dict[str, list[tuple[int, float]]]
    config: str
    tables: list[str]


def of_tensorboard(folder: Path) -> Stored:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    tags = found.Tags()
    scalars = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags["scalars"]}
    texts = [tag.removesuffix("/text_summary") for tag in tags["tensors"] if tag.endswith("/text_summary")]
    config = found.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    return Stored(scalars, config, [text for text in texts if text != "config"])


def of_mlflow(folder: Path) -> Stored:
    import mlflow

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name(folder.parent.name).experiment_id])
    scalars = {
        key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics
    }
    files = [file.path for file in client.list_artifacts(run.info.run_id, "eval")]
    assert run.info.run_name == folder.name and run.info.status == "FINISHED"
    assert not {"mlflow.user", "mlflow.source.name"} & set(run.data.tags)
    config = Path(client.download_artifacts(run.info.run_id, "config.yaml")).read_text("utf-8")
    return Stored(scalars, config, [Path(file).with_suffix("").as_posix() for file in files])


def of_trackio(folder: Path) -> Stored:
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_runs(folder.parent.name)
    assert run == folder.name
    scalars: dict[str, list[tuple[int, float]]] = {}
    tables = []
    for line in SQLiteStorage.get_logs(folder.parent.name, run):
        for key, value in line.items():
            if isinstance(value, dict):
                tables.append(key)
            elif key not in ("step", "timestamp"):
                scalars.setdefault(key, []).append((line["step"], value))
    return Stored(scalars, json.dumps(SQLiteStorage.get_run_config(folder.parent.name, run)), tables)


READ = {"tensorboard": of_tensorboard, "mlflow": of_mlflow, "trackio": of_trackio}


def series(lines: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in lines if key in line]


def hold_to_the_run(found: Stored, folder: Path) -> None:
    """Losses and evaluations as in metrics.jsonl, the result's figures, and the configuration."""
    lines, result = metrics(folder), json.loads((folder / "result.json").read_text("utf-8"))
    assert sorted(found.metrics["train/loss"]) == series(lines, "loss") != []
    assert sorted(found.metrics["eval/held_out_loss"]) == series(lines, "held_out_loss") != []
    summary = {k: v for k, v in summary_names(result["metrics"]).items() if isinstance(v, int | float)}
    assert {k: [v for _, v in found.metrics[f"summary/{k}"]] for k in summary} == {
        k: [pytest.approx(v, rel=1e-6)] for k, v in summary.items()
    }
    assert "eval/before/held_out_loss" in summary and "train/loss_last" in summary
    assert "learning_rate" in found.config and folder.name in found.config


def test_a_run_is_tracked(tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    folder = tmp_path / "run"
    words = [f"tracker={tracker}", f"tracker.project={tmp_path.name}"]
    short_run("lora_sft", folder, *words, "tracker.log_samples=true", "export=none")
    found = READ[tracker](folder)
    hold_to_the_run(found, folder)
    assert found.tables == ["eval/samples"]
    for file in (f for f in tmp_path.rglob("*") if f.is_file()):
        assert SECRET.encode() not in file.read_bytes(), file


def opened(folder: Path, *words: str) -> Any:
    """A run folder that can be opened again and again."""
    run = RunFolder.open(compose_config("lora_sft", [f"output_dir={folder}", *words]))
    folder.mkdir(exist_ok=True)
    return run


class At:
    """A checkpoint's step, as of a `ResumePoint`."""

    at_the_end = False

    def __init__(self, step: int) -> None:
        self.step = step


def test_a_resumed_run_is_one_run(tracker: str, tmp_path: Path) -> None:
    """Killed twice: what was sent past the checkpoint isn't sent again, and the steps not yet sent are."""
    run = opened(tmp_path / "run", f"tracker={tracker}", f"tracker.project={tmp_path.name}")
    for resumed, first, last in ((None, 1, 5), (At(2), 3, 3), (At(2), 3, 7)):
        run.resumed = resumed
        with Tracker.open(run.cfg, run) as sending:
            if resumed is None:
                sending.log({"held_out_loss": 9.0}, 0, group="eval")
            for step in range(first, last + 1):
                sending.log({"loss": 1.0 / step, "batch": "a" * 8}, step)
    assert [line["step"] for line in metrics(run.path) if "loss" in line] == [1, 2, 3, 4, 5, 6, 7]
    found = READ[tracker](run.path)
    assert sorted(found.metrics["train/loss"]) == [(step, pytest.approx(1.0 / step)) for step in range(1, 8)]
    assert found.metrics["eval/held_out_loss"] == [(0, 9.0)] and "train/batch" not in found.metrics
    assert found.tables == []  # only on request


def test_a_tracker_that_fails_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Down:
        id, repeats = None, False

        def log(self, figures: Any, step: int) -> None:
            raise ConnectionError("no route to host")

    with (tmp_path / "metrics.jsonl").open("w") as file:
        tracker = Tracker(file, {"mlflow": Down()})  # type: ignore[dict-item]
        tracker.log({"loss": 1.0}, 1)
        tracker.log({"loss": 2.0}, 2)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    said = capsys.readouterr().err
    assert said.count("tracker=mlflow has failed") == 1 and "no route to host" in said


def test_several_at_once(tmp_path: Path) -> None:
    """Each in the run folder, and both in one run's trackers.json; the note names both."""
    pytest.importorskip("tensorboard")
    run = opened(tmp_path / "run", "tracker.report_to=[wandb,tensorboard]", "tracker.mode=offline")
    with Tracker.open(run.cfg, run) as tracker:
        tracker.log({"loss": 1.0}, 1)
    assert [note.split(":")[0] for note in tracker.notes] == ["W&B (offline)", "TensorBoard"]
    assert of_tensorboard(run.path).metrics["train/loss"] == [(1, 1.0)]
    stored = json.loads((run.path / "trackers.json").read_text("utf-8"))
    (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
    assert file.stem == f"run-{stored['runs']['wandb']}"


def test_wandb_goes_on_in_the_same_run(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", "tracker=wandb", "tracker.mode=offline")
    for resumed in (None, At(1)):
        run.resumed = resumed
        with Tracker.open(run.cfg, run) as tracker:
            tracker.log({"loss": 1.0}, 1)
    first, second = run.path.glob("wandb/offline-run-*")
    assert first.name.split("-")[3] == second.name.split("-")[3]  # W&B numbers folders of one second
    assert tracker.notes == [f"W&B (offline): wandb sync {' '.join(sorted((str(first), str(second))))}"]


@pytest.mark.parametrize("name", OTHERS)
def test_a_missing_package_is_named_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n, *a: None if n == TRACKERS[name] else there(n, *a))
    with pytest.raises(UserError, match=rf"{TRACKERS[name]} is not installed: pip install 'gemma_tune\[trackers\]'"):
        compose_config("lora_sft", [f"tracker={name}"])
    compose_config("chat", [f"tracker={name}"])  # nothing is tracked there


def wrong() -> Iterator[tuple[list[str], str]]:
    yield ["tracker.report_to=[wandb,tensrboard]"], "'tensrboard' is none of wandb.*Did you mean tensorboard"
    yield ["tracker.report_to=[none,wandb]"], "none stands alone"
    yield ["tracker.report_to=tensorbord"], "Did you mean tensorboard"
    yield ["tracker.report_to=[[wandb]]"], r"\['wandb'\] is none of wandb"
    for value, said in (("3", "3"), ("[]", r"\[\]"), ("null", "None"), ("false", "False"), ("''", "''")):
        yield [f"tracker.report_to={value}"], f"must be none, or one or a list of wandb, tensor.*, not {said}"
    yield ["tracker=tensorboard", "tracker.mode=offline"], "tracker.mode has no effect with tracker=tensorboard"
    yield ["tracker=[wandb,tensorboard]"], "several at once: tracker.report_to="
    yield ["tracker=tensorboard", "tracker.entity=me"], "tracker.entity has no effect"


@pytest.mark.parametrize(("words", "said"), list(wrong()), ids=lambda value: str(value)[:40])
def test_wrong_trackers_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose_config("lora_sft", words)


def test_each_tracker_has_an_option() -> None:
    options = {f.stem: yaml.safe_load(f.read_text("utf-8"))["report_to"] for f in (CONFIGS / "tracker").glob("*.yaml")}
    assert options == {name: name for name in ("none", *TRACKERS)}
