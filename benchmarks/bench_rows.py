"""`make bench-rows`: ten thousand, a hundred thousand and a million rows, streamed and not: time and memory.

Written to docs/benchmarks/. Each run is a process of its own that trains one step of the embedded model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from figures import DOCS, conditions, conditions_line
from tqdm import tqdm

SIZES = (10_000, 100_000, 1_000_000)
LIMIT_SECONDS = 30  # to the first step of a million streamed rows


def write_rows(source: Path, target: Path, count: int) -> None:
    """GSM8K again and again, each question with a number of its own, so that none stands twice."""
    rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    with target.open("w", encoding="utf-8") as file:
        for number, row in enumerate(islice(cycle(rows), count)):
            row = {"prompt": f"{number}. {row['question']}", "completion": row["answer"]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def anonymous_mib(pid: int) -> float:
    """Memory of a process that isn't a mapped file, in MiB: 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        return 0.0
    return max((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon")), default=0.0)


def first_step(rows: Path, folder: Path, streaming: bool) -> dict[str, float]:
    """Seconds to the first step, with starting Python, and the process's peak memory up to there.

    Raises:
        RuntimeError: The run failed.
    """
    words = ["train.max_steps=1", "tracker=none", "eval=none", "export=none", f"data.streaming={streaming}".lower()]
    command = [sys.executable, "-m", "gemma_tune", "recipe=lora_sft", "data=auto", f"data.train_file={rows}", *words]
    metrics, start, seconds, memory = folder / "metrics.jsonl", time.perf_counter(), 0.0, 0.0
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([*command, f"output_dir={folder}"], stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            memory = max(memory, anonymous_mib(process.pid))
            if not seconds and metrics.is_file() and '"step": 1,' in metrics.read_text("utf-8"):
                seconds = time.perf_counter() - start
            time.sleep(0.02)
        if process.returncode or not seconds:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)}: {errors.read()[-2000:]}")
    data = json.loads((folder / "result.json").read_text("utf-8"))["seconds"]["data"]
    return {"first_step_seconds": seconds, "data_seconds": data, "memory_mib": memory}


def as_markdown(report: dict[str, Any]) -> str:
    lines = [
        "# A million rows", "",
        f"Made by `make bench-rows` on {conditions_line(report)} `lora_sft` of the embedded model, one step; numbered "
        f"rows of GSM8K, {report['bytes_a_row']:.0f} bytes each, from one JSONL file.", "",
        "Time runs from the start of the command to the end of the first step. Memory is the peak of the process "
        "without memory-mapped files (without streaming, tokenized rows are in an Arrow file in the cache of "
        "`datasets`, of which the operating system keeps in memory what is in use). Without streaming, every row is "
        "parsed once, stored on disk and tokenized before the first step, to find duplicates, split off validation "
        "rows and count for the report.", "",
        "| rows | streamed | first step, s | data, s | rows/s | memory, MiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for run in report["runs"]:
        rate = "" if run["streaming"] else f"{run['rows'] / run['data_seconds']:,.0f}"
        lines.append(
            f"| {run['rows']:,} | {'yes' if run['streaming'] else 'no'} | {run['first_step_seconds']:.1f} "
            f"| {run['data_seconds']:.1f} | {rate} | {run['memory_mib']:,.0f} |"
        )
    return "\n".join([*lines, "", f"Required: the first step of a million streamed rows within {LIMIT_SECONDS} s.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    data = os.environ.get("GEMMA_TUNE_TEST_DATA")
    if not data:
        sys.exit("bench-rows: GEMMA_TUNE_TEST_DATA names no folder with gsm8k/train.jsonl; nothing is measured.")
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.jsonl"
        for rows, streaming in tqdm([(n, s) for n in options.sizes for s in (True, False)], desc="runs"):
            if streaming:
                write_rows(Path(data) / "gsm8k" / "train.jsonl", file, rows)
            run = first_step(file, Path(scratch) / f"{rows}-{streaming}", streaming)
            runs.append({"rows": rows, "streaming": streaming, **run})
        report = {**conditions(), "bytes_a_row": file.stat().st_size / options.sizes[-1], "runs": runs}
    (DOCS / "million-rows.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (DOCS / "million-rows.md").write_text(as_markdown(report), encoding="utf-8")


if __name__ == "__main__":
    main()
