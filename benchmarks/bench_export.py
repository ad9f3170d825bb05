"""`make bench-export`: what `recipe=export` of the shape of Gemma 3 270M costs after loading: seconds and memory.

Written to docs/benchmarks/. With `--against FOLDER`, another checkout with a virtual environment of its own is measured
at the same moment, so that both meet the same machine. Each run has one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import shape_270m
from figures import DOCS, conditions, conditions_line

_LOOK = 0.02  # seconds between two looks at a run
_FORMATS = "gguf,w4a16,merged"


class ExportRun:
    """One run of the recipe, watched from outside.

    Args:
        name: What it is called in the report.
        checkout: The checkout whose code runs, with its virtual environment in `.venv`.
        model: The model folder.
        folder: The run folder.
    """

    def __init__(self, name: str, checkout: Path, model: Path, folder: Path) -> None:
        self.name, self._folder = name, folder
        words = [f"model.model_name_or_path={model}", f"export.formats=[{_FORMATS}]", f"output_dir={folder}"]
        words += ["data=sample", "eval=none"]
        command = [str(checkout / ".venv" / "bin" / "python"), "-m", "gemma_tune", "recipe=export", *words]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (read when it ends)
        self._process = subprocess.Popen(
            command, cwd=checkout, stdout=self._log, stderr=self._log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        self._loaded: tuple[float, float, float] | None = None  # wall clock, CPU seconds, MiB
        self._peak = 0.0
        self.figures: dict[str, float] = {}

    def look(self) -> bool:
        """Notes where it stands; whether it has ended.

        Raises:
            RuntimeError: It failed.
        """
        pid, status, used = os.wait4(self._process.pid, os.WNOHANG)
        if pid:
            self._end(status, used.ru_utime + used.ru_stime)
            return True
        memory = anonymous_mib(self._process.pid)
        if self._loaded is None:
            if (self._folder / "result.json").is_file():  # written when the model is loaded
                self._loaded = time.perf_counter(), cpu_seconds(self._process.pid), memory
        else:
            self._peak = max(self._peak, memory)
        return False

    def _end(self, status: int, cpu: float) -> None:
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode or self._loaded is None:
            self._log.seek(0)
            raise RuntimeError(f"{self.name}: {self._log.read()[-2000:]}")
        start, cpu_before, memory = self._loaded
        seconds = json.loads((self._folder / "result.json").read_text("utf-8"))["seconds"]
        self.figures = {
            "wall_seconds": time.perf_counter() - start,
            "cpu_seconds": cpu - cpu_before,
            "export_wall_seconds": seconds["export"],
            "verify_wall_seconds": seconds["verify"],
            "loaded_mib": memory,
            "peak_above_loaded_mib": self._peak - memory,
        }

    def kill(self) -> None:
        """Ends it where it still runs."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()


def anonymous_mib(pid: int) -> float:
    """Memory of a process that isn't a mapped file, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return max((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon")), default=0.0)


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process and the children it has waited for have taken."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def measure(checkouts: dict[str, Path], pairs: int) -> dict[str, list[dict[str, float]]]:
    """The figures of each checkout, a run a pair."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "270m"
        shape_270m.make(model)
        for pair in range(pairs):
            runs = [ExportRun(n, c, model, Path(scratch) / f"{n}-{pair}") for n, c in checkouts.items()]
            try:
                left = list(runs)
                while left:
                    time.sleep(_LOOK)
                    left = [run for run in left if not run.look()]
            finally:
                for run in runs:
                    run.kill()
            for run in runs:
                found[run.name].append(run.figures)
    return found


def page(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    names = list(report["runs"])
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in report["runs"].items()
    }
    rows = {
        "CPU seconds after loading, llama.cpp included": "cpu_seconds",
        "seconds after loading, by the clock": "wall_seconds",
        "of these, writing": "export_wall_seconds",
        "of these, verification": "verify_wall_seconds",
        "memory when loaded, MiB": "loaded_mib",
        "peak above that, MiB": "peak_above_loaded_mib",
    }
    count = len(report["runs"][names[0]])
    lines = [
        "# What an int4 export costs", "",
        f"Made by `benchmarks/bench_export.py --pairs {count}` (`make bench-export`) on {conditions_line(report)} "
        "`recipe=export` of the shape of Gemma 3 270M with "
        f"random weights to {_FORMATS.replace(',', ', ')}; one thread. Medians of {count} run(s) of each, those of a "
        "pair at the same moment. Memory is that of the exporting process without what is mapped from files. Where "
        "other programs share the cores, CPU seconds compare and seconds by the clock don't.", "",
        "|  | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names),
    ]  # fmt: skip
    lines += [
        f"| {what} | " + " | ".join(f"{medians[n][key]:,.0f}" for n in names) + " |" for what, key in rows.items()
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout, with its virtual environment in .venv")
    parser.add_argument("--name", default="before", help="what the other checkout is called in the report")
    options = parser.parse_args()
    checkouts = {"now": DOCS.parents[1]}
    if options.against:
        if not (options.against / ".venv" / "bin" / "python").exists():
            sys.exit(f"--against={options.against}: there is no .venv/bin/python in it; run `make setup` there.")
        checkouts = {options.name: options.against.absolute(), **checkouts}
    report = {**conditions(), "runs": measure(checkouts, options.pairs)}
    (DOCS / "export.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (DOCS / "export.md").write_text(page(report), encoding="utf-8")


if __name__ == "__main__":
    main()
