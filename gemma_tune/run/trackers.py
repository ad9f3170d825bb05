"""The trackers of `tracker.report_to`: W&B, TensorBoard, MLflow and Trackio, each behind the same few methods.

The only file that imports them. They are called directly, not through Transformers' callbacks: those need a trainer,
which `recipe=evaluate`, `export` and `compare` don't have, and would send only what the trainer logs: neither our
configuration nor what is measured before and after training, and under names of their own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from gemma_tune.config import Config
from gemma_tune.errors import UserError
from gemma_tune.nested import leaves
from gemma_tune.run.only_printed import as_yaml
from gemma_tune.run.paths import TRACKER_FOLDER

_MLFLOW_BATCH = 100  # parameters of one request, as its server allows
_MLFLOW_LONGEST = 6000  # characters of a parameter


class RunOfTracker(Protocol):
    """One run of one tracker.

    Attributes:
        id: What a resumed run is found by; None where nothing is needed.
        repeats: Whether a step may be sent twice; the tracker itself keeps one of them.
    """

    id: str | None
    repeats: bool

    def log(self, figures: Mapping[str, Any], step: int) -> None:
        """Sends the numbers of one step."""

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Sends a table."""

    def summary(self, figures: Mapping[str, Any], step: int) -> None:
        """Sends the final figures."""

    def finish(self, failed: bool) -> str:
        """Ends the run; returns the line for the user about where it can be seen."""


def open_tracker(name: str, cfg: Config, folder: Path, resumed: str | None) -> RunOfTracker:
    """Begins a run of a tracker, or goes on with it.

    Args:
        name: One of `TRACKERS` (config/tracker.py).
        cfg: The configuration; the tracker stores it.
        folder: The run folder.
        resumed: `id` of the run to go on with; None: a new one.

    Raises:
        UserError: The tracker can't be used.
    """
    kinds: dict[str, Callable[[Config, Path, str, str | None], RunOfTracker]]
    kinds = {"wandb": _Wandb, "tensorboard": _TensorBoard, "mlflow": _MLflow, "trackio": _Trackio}
    return kinds[name](cfg, folder, cfg.tracker.name or folder.name, resumed)


@contextlib.contextmanager
def _or_refused(name: str, instead: str) -> Iterator[None]:
    """Turns whatever a tracker raises while it begins into one message."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of its server, its database or its settings: a type for each
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"tracker={name}: it can't be used ({reason}); {instead}.") from error


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if isinstance(value, int | float)}


def has_wandb_key() -> bool:
    """Whether a key of W&B is configured (environment, settings, netrc); asks neither the user nor the server.

    Raises:
        ValueError: The key is none; wandb's own errors.
    """
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


class _Wandb:
    repeats = True

    def __init__(self, cfg: Config, folder: Path, name: str, resumed: str | None) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        t = cfg.tracker
        mode: Any = os.environ.get("WANDB_MODE") if t.mode == "auto" else t.mode
        with _or_refused("wandb", "use tracker.mode=offline"):
            has_key = mode not in ("offline", "disabled") and has_wandb_key()
            if mode == "online" and not has_key:
                raise UserError(
                    "tracker=wandb, online: no W&B key is configured; run `wandb login`, or use tracker.mode=offline."
                )
            mode = mode or ("online" if has_key else "offline")
            self.id: str | None = resumed or secrets.token_hex(4)
            self._wandb, self._folder = wandb, folder
            self._run: Any = wandb.init(
                project=t.project,
                entity=t.entity,
                name=name,
                id=self.id,
                group=t.group,  # None: as WANDB_RUN_GROUP says
                resume="allow" if resumed and mode == "online" else None,
                dir=str(folder),
                mode=mode,
                config=asdict(cfg),
                reinit="finish_previous",
                # The command line, the git remote and the console could carry secrets; the configuration says it all.
                settings=wandb.Settings(
                    console="off", disable_git=True, disable_code=True, save_code=False, x_disable_meta=True,
                    silent=True,
                ),
            )  # fmt: skip

    def log(self, figures: Mapping[str, Any], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        self._run.log({name: self._wandb.Table(columns=columns, data=rows)}, step=step)

    def summary(self, figures: Mapping[str, Any], step: int) -> None:
        self._run.summary.update(figures)

    def finish(self, failed: bool) -> str:
        offline, url = self._run.offline, self._run.url
        self._run.finish(exit_code=int(failed))
        if not offline:
            return f"W&B: {url}"
        # A resumed run has a folder for each of its parts
        parts = sorted(str(part) for part in (self._folder / "wandb").glob(f"offline-run-*-{self.id}*"))
        return f"W&B (offline): wandb sync {' '.join(parts)}"


class _TensorBoard:
    """Event files in the run folder: a resumed run adds one."""

    id: str | None = None
    repeats = False

    def __init__(self, cfg: Config, folder: Path, name: str, resumed: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        with _or_refused("tensorboard", "use tracker=none"):
            self._writer: Any = SummaryWriter(log_dir=str(folder / TRACKER_FOLDER))
        self._settings = {k: v for k, v in leaves(asdict(cfg)) if isinstance(v, bool | int | float | str)}
        self._writer.add_text("config", "".join(f"    {line}\n" for line in as_yaml(cfg).splitlines()))
        self._writer.flush()

    def log(self, figures: Mapping[str, Any], step: int) -> None:
        for name, value in _numbers(figures).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        lines = [columns, ["---"] * len(columns), *rows]
        cells = [[str(c).replace("|", "\\|").replace("\n", "<br>") for c in line] for line in lines]
        self._writer.add_text(name, "\n".join("| " + " | ".join(line) + " |" for line in cells), step)

    def summary(self, figures: Mapping[str, Any], step: int) -> None:
        # The HPARAMS tab: settings against results, a line a run. "." keeps it in the same folder.
        results = {f"summary/{name}": value for name, value in _numbers(figures).items()}
        self._writer.add_hparams(self._settings, results, run_name=".", global_step=step)

    def finish(self, failed: bool) -> str:
        self._writer.close()
        return f"TensorBoard: tensorboard --logdir {self._folder}"


class _MLflow:
    """By `MLFLOW_TRACKING_URI`, else MLflow's own default; the client only, so that no tag names user or command."""

    repeats = False

    def __init__(self, cfg: Config, folder: Path, name: str, resumed: str | None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        with _or_refused("mlflow", "set MLFLOW_TRACKING_URI to what can be written, or tracker=none"):
            import mlflow
            from mlflow.entities import Metric, Param

            self._metric, self._uri = Metric, mlflow.get_tracking_uri()
            self._client: Any = mlflow.MlflowClient()
            self._project = cfg.tracker.project
            if resumed and self._is_there(resumed):
                self.id: str | None = resumed
                self._client.update_run(resumed, status="RUNNING")
            else:
                tags = {"group": cfg.tracker.group} if cfg.tracker.group else None
                self.id = self._client.create_run(self._experiment(), run_name=name, tags=tags).info.run_id
                values = [(k, "" if v is None else str(v)) for k, v in leaves(asdict(cfg))]
                params = [Param(k, v) for k, v in values if len(v) <= _MLFLOW_LONGEST]
                for begin in range(0, len(params), _MLFLOW_BATCH):
                    self._client.log_batch(self.id, params=params[begin : begin + _MLFLOW_BATCH])
            self._client.log_dict(self.id, asdict(cfg), "config.yaml")

    def _is_there(self, run: str) -> bool:
        try:
            return bool(self._client.get_run(run).info.lifecycle_stage == "active")
        except Exception:  # another store than the one that it began in
            return False

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._project)
        return str(found.experiment_id if found else self._client.create_experiment(self._project))

    def log(self, figures: Mapping[str, Any], step: int) -> None:
        now = time.time_ns() // 1_000_000
        metrics = [self._metric(name, float(value), now, step) for name, value in _numbers(figures).items()]
        self._client.log_batch(self.id, metrics=metrics)

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        self._client.log_table(self.id, dict(zip(columns, zip(*rows, strict=True), strict=True)), f"{name}.json")

    def summary(self, figures: Mapping[str, Any], step: int) -> None:
        self.log({f"summary/{name}": value for name, value in figures.items()}, step)

    def finish(self, failed: bool) -> str:
        self._client.set_terminated(self.id, status="FAILED" if failed else "FINISHED")
        if self._uri.startswith(("sqlite:", "file:", "/", ".")):
            return f"MLflow: mlflow ui --backend-store-uri {self._uri} (experiment {self._project})"
        return f"MLflow: run {self.id} of the experiment {self._project}"  # the address may hold a password


class _Trackio:
    """Trackio's own database on this machine, or what `TRACKIO_SPACE_ID` and `TRACKIO_SERVER_URL` name."""

    repeats = False

    def __init__(self, cfg: Config, folder: Path, name: str, resumed: str | None) -> None:
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        with _or_refused("trackio", "use tracker=none"), contextlib.redirect_stdout(io.StringIO()):
            import trackio

            self._trackio, self._project = trackio, cfg.tracker.project
            self.id: str | None = resumed or name
            # Our figures alone: no samples of the machine's load
            values = json.loads(json.dumps(asdict(cfg)))
            self._run: Any = trackio.init(
                project=self._project, name=self.id, group=cfg.tracker.group, config=values,
                embed=False, resume="allow" if resumed else "never", auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip

    def log(self, figures: Mapping[str, Any], step: int) -> None:
        self._run.log(_numbers(figures), step=step)

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        import pandas as pd

        self._run.log({name: self._trackio.Table(dataframe=pd.DataFrame(rows, columns=columns))}, step=step)

    def summary(self, figures: Mapping[str, Any], step: int) -> None:
        self.log({f"summary/{name}": value for name, value in figures.items()}, step)

    def finish(self, failed: bool) -> str:
        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio.finish()
        return f"Trackio: trackio show --project {self._project}"
