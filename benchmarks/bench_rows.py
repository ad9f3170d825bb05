"""`make bench-rows`: ten thousand, a hundred thousand and a million rows, streamed and not, and TRL's rows a second.

Written to docs/benchmarks/. Each run is a process of its own; those of the first part train one step of the embedded
model.
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
from prepare_rows import write_messages
from tqdm import tqdm

SIZES = (10_000, 100_000, 1_000_000)
LIMIT_SECONDS = {True: 10, False: 170}  # to the first step of a million rows, streamed and not
LIMIT_MIB = 1331  # of the latter, by all processes together: 1.3 GiB
COMPARED, LIMIT_RATIO = 60_000, 3  # rows that TRL prepares, too, and how many times its rows a second are required


def write_rows(source: Path, target: Path, count: int) -> None:
    """GSM8K again and again, each question with a number of its own, so that none stands twice."""
    rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    with target.open("w", encoding="utf-8") as file:
        for number, row in enumerate(islice(cycle(rows), count)):
            row = {"prompt": f"{number}. {row['question']}", "completion": row["answer"]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def anonymous_mib(pid: int) -> float:
    """Memory of a process and those below it that isn't a mapped file, in MiB: 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
        below = [file.read_text("utf-8").split() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return 0.0
    own = sum(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon"))
    return own + sum(anonymous_mib(int(child)) for children in below for child in children)


def first_step(rows: Path, folder: Path, streaming: bool) -> dict[str, float]:
    """Seconds to the first step, with starting Python, and the peak memory of all its processes.

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


def prepared(rows: Path) -> list[dict[str, Any]]:
    """Rows prepared by TRL and by us, in one and in two processes.

    Raises:
        RuntimeError: The token ids differ.
    """
    runs = []
    for processes in (1, 2):
        for by in ("trl", "ours"):
            asked = {"by": by, "rows": str(rows), "processes": processes}
            command = [sys.executable, str(Path(__file__).with_name("prepare_rows.py")), json.dumps(asked)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            runs.append({"by": by, "processes": processes, **json.loads(done.stdout.splitlines()[-1])})
    if len({(run["rows"], run["token_ids"]) for run in runs}) > 1:
        raise RuntimeError(f"TRL and we have prepared other token ids: {runs}")
    return runs


def comparison(runs: list[dict[str, Any]]) -> list[str]:
    """The lines about TRL."""
    lines = [
        "", "## Rows a second, beside TRL", "",
        f"{runs[0]['rows']:,} of these rows as lists of messages, from the file to tokenized rows in an Arrow file: "
        "`load_dataset` and what TRL's `SFTTrainer` takes to prepare them (`dataset_num_proc`, no cache; what it "
        "takes for one row is left out), and `load_rows`, which looks for duplicates and counts, too. Both render the "
        "chat template of the embedded model, only answers are trained, and the token ids are equal, which the command "
        "checks; TRL trains the line break behind the last turn, too.", "",
        "| processes | TRL, rows/s | ours, rows/s | times | TRL, ms of processor time a row | ours | times |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for theirs, own in zip(runs[::2], runs[1::2], strict=True):
        rates = [run["rows"] / run["seconds"] for run in (theirs, own)]
        costs = [run["processor_seconds"] / run["rows"] * 1000 for run in (theirs, own)]
        lines.append(
            f"| {own['processes']} | {rates[0]:,.0f} | {rates[1]:,.0f} | {rates[1] / rates[0]:.1f} "
            f"| {costs[0]:.2f} | {costs[1]:.2f} | {costs[0] / costs[1]:.1f} |"
        )
    return [*lines, "", f"Required: {LIMIT_RATIO} times TRL's rows a second."]


def as_markdown(report: dict[str, Any]) -> str:
    lines = [
        "# A million rows", "",
        f"Made by `make bench-rows` on {conditions_line(report)} `lora_sft` of the embedded model, one step; numbered "
        f"rows of GSM8K, {report['bytes_a_row']:.0f} bytes each, from one JSONL file.", "",
        "Time runs from the start of the command to the end of the first step. Memory is the peak of all its "
        "processes together, those that render rows included, but for mapped files: without streaming, tokenized "
        "rows are in an Arrow file in the cache of `datasets`, of which the system keeps in memory what is in use. "
        "Without streaming, every row is parsed once, stored on disk and tokenized before the first step, to find "
        "duplicates, split off validation rows and count for the report.", "",
        "| rows | streamed | first step, s | data, s | rows/s | memory, MiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for run in report["runs"]:
        rate = "" if run["streaming"] else f"{run['rows'] / run['data_seconds']:,.0f}"
        lines.append(
            f"| {run['rows']:,} | {'yes' if run['streaming'] else 'no'} | {run['first_step_seconds']:.1f} "
            f"| {run['data_seconds']:.1f} | {rate} | {run['memory_mib']:,.0f} |"
        )
    lines += ["", f"Required: the first step of a million rows within {LIMIT_SECONDS[True]} s streamed, and within "
              f"{LIMIT_SECONDS[False]} s and {LIMIT_MIB:,} MiB (1.3 GiB) not streamed, on 2 cores."]  # fmt: skip
    return "\n".join([*lines, *comparison(report["prepared"]), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="none: the report's figures stay")
    parser.add_argument("--compared", type=int, default=COMPARED)
    options = parser.parse_args()
    data = os.environ.get("GEMMA_TUNE_TEST_DATA")
    if not data:
        sys.exit("bench-rows: GEMMA_TUNE_TEST_DATA names no folder with gsm8k/train.jsonl; nothing is measured.")
    report_file = DOCS / "million-rows.json"
    before = {} if options.sizes else json.loads(report_file.read_text("utf-8"))
    runs, size = before.get("runs", []), before.get("bytes_a_row", 0.0)
    with tempfile.TemporaryDirectory() as scratch:
        file, source = Path(scratch) / "rows.jsonl", Path(data) / "gsm8k" / "train.jsonl"
        for rows, streaming in tqdm([(n, s) for n in options.sizes for s in (True, False)], desc="runs"):
            if streaming:
                write_rows(source, file, rows)
            run = first_step(file, Path(scratch) / f"{rows}-{streaming}", streaming)
            runs.append({"rows": rows, "streaming": streaming, **run})
            size = file.stat().st_size / rows
        write_rows(source, file, options.compared)
        messages = Path(scratch) / "messages.jsonl"
        write_messages(file, messages)
        report = {**conditions(), "bytes_a_row": size, "runs": runs, "prepared": prepared(messages)}
    report_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (DOCS / "million-rows.md").write_text(as_markdown(report), encoding="utf-8")


if __name__ == "__main__":
    main()
