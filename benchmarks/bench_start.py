"""`make bench-start`: how long commands take that load little or nothing, and training to its first optimizer step.

Each command is run several times, in turns with the others, as a person runs it: `python -m gemma_tune …`, from its
start to its end. Processor time is that of all its processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from figures import DOCS, conditions, conditions_line, table

ROOT = Path(__file__).parents[1]
ROWS = 1000
# Seconds by the clock on a quiet machine with two cores
LIMITS = {"dry run of 1,000 rows": 6.0, "comparison of two runs": 6.0, "first step of streamed training": 10.0}
_FIRST_STEP = "first step of streamed training"
_BARE = ("export=none", "tracker=none")
_FEW = ("tracker=none", "overwrite=true", "eval.max_samples=8", "data.max_eval_samples=8")


def commands(scratch: Path) -> dict[str, tuple[list[str], int]]:
    """The words of each command, and the exit status that is right; two runs to compare are in `scratch`."""
    runs = f"compare.models=[{scratch / 'run-1'},{scratch / 'run-2'}]"
    rows = f"data.max_train_samples={ROWS}"
    return {
        "`--help`": (["--help"], 0),
        "a mistyped key": (["recipe=lora_sft", "train.learning_rat=1e-4"], 2),
        "dry run of 1,000 rows": (["recipe=qlora_sft", "dry_run=true", rows], 0),
        "comparison of two runs": (["recipe=compare", runs, f"output_dir={scratch / 'compared'}", *_FEW[:2]], 0),
        "preview of 1,000 rows": (["recipe=preview", rows, f"preview.output_file={scratch / 'preview.html'}"], 0),
        "doctor": (["recipe=doctor", "doctor.hub=false"], 0),
        "chat, one answer": (["recipe=chat", "chat.prompt=Hello", "chat.max_new_tokens=8"], 0),
        "evaluation on 8 rows": (["recipe=evaluate", "data=sample", *_FEW, f"output_dir={scratch / 'evaluated'}"], 0),
        _FIRST_STEP: (["recipe=lora_sft", "data.streaming=true", "train.max_steps=100", "eval=none", *_BARE], 0),
    }


def start(checkout: Path, words: list[str], scratch: Path) -> subprocess.Popen[bytes]:
    """A command of a checkout, in a process group of its own."""
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "gemma_tune", *words]
    said = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=scratch, env=env, stdout=said, stderr=said, start_new_session=True)


def to_the_end(checkout: Path, words: list[str], right: int, scratch: Path) -> tuple[float, float]:
    """Seconds by the clock and of processors that a command takes."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    before, begin = used(), time.monotonic()
    status = start(checkout, words, scratch).wait()
    seconds = time.monotonic() - begin
    assert status == right, f"{' '.join(words)}: exit status {status}"
    return seconds, used() - before


def to_the_first_step(checkout: Path, words: list[str], scratch: Path) -> tuple[float, float]:
    """The same until the first line of metrics.jsonl; then the command is killed."""
    folder, begin = Path(tempfile.mkdtemp(dir=scratch)) / "run", time.monotonic()
    file, process = folder / "metrics.jsonl", start(checkout, [*words, f"output_dir={folder}"], scratch)
    try:
        while not (file.is_file() and file.stat().st_size):
            assert process.poll() is None, f"{' '.join(words)}: exit status {process.returncode}"
            time.sleep(0.01)
        seconds, used = time.monotonic() - begin, psutil.Process(process.pid).cpu_times()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return seconds, used.user + used.system + used.children_user + used.children_system


def measure(
    checkouts: dict[str, Path], rounds: int, only: list[str]
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Seconds by the clock and of processors, for each command, checkout and round."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        asked = {name: one for name, one in commands(scratch).items() if not only or any(part in name for part in only)}
        for seed in (1, 2) if "comparison of two runs" in asked else ():
            words = ["recipe=evaluate", "data=sample", f"seed={seed}", *_FEW, f"output_dir={scratch / f'run-{seed}'}"]
            to_the_end(ROOT, words, 0, scratch)
        found: dict[str, Any] = {name: {which: [] for which in checkouts} for name in asked}
        for turn in range(rounds + 1):  # the first one fills the caches of files, and doesn't count
            for name, (words, right) in asked.items():
                for which in list(checkouts)[:: 1 if turn % 2 else -1]:
                    if name == _FIRST_STEP:
                        took = to_the_first_step(checkouts[which], words, scratch)
                    else:
                        took = to_the_end(checkouts[which], words, right, scratch)
                    found[name][which] += [took] if turn else []
    return found


def page(report: dict[str, Any]) -> str:
    """The figures as a page."""
    kinds = ["this checkout", *(["before"] if report["against"] else [])]
    head = ["", *(f"{kind}, {what}" for kind in kinds for what in ("by the clock", "processors")), "required"]
    rows = []
    for name, found in report["seconds"].items():
        figures = [f"{statistics.median(part):.1f} s" for kind in kinds for part in zip(*found[kind], strict=True)]
        limit = f"≤ {LIMITS[name]:g} s" if name in LIMITS else ""
        rows.append(f"| {name} | {' | '.join(figures)} | {limit} |")
    return f"""# How soon a command answers

Made by `make bench-start` on {conditions_line(report)}

{table(head, rows)}

Medians of {report["rounds"]} rounds, in which every command was run once, in turns, with the embedded model. The first
step of training (`lora_sft`) ends with the first line of metrics.jsonl; every other command was run to its end.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], help="commands whose names hold one of these words")
    parser.add_argument("--against", type=Path, help="another checkout to compare with")
    options = parser.parse_args()
    checkouts = {"this checkout": ROOT} | ({"before": options.against.resolve()} if options.against else {})
    found = measure(checkouts, options.rounds, options.only)
    report = {**conditions(), "rounds": options.rounds, "against": bool(options.against), "seconds": found}
    text = page(report)
    if not options.only:
        (DOCS / "start.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (DOCS / "start.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
