"""`make bench-gpu`: what only a GPU can show, in at most 8 minutes and without a network, written to docs/benchmarks/.

    python3 benchmarks/bench_gpu.py                      on a machine with everything installed
    python3 benchmarks/bench_gpu.py --wheels FOLDER      installs what it carries from there first, for itself alone
    python3 benchmarks/bench_gpu.py --tiny --out FOLDER  small shapes, on a CPU, too: tries every line

Parts run in the order of `PARTS`, each with a limit of its own and in what is left of `--minutes`. One that fails or
takes too long is recorded by name with its error, and the others go on. The results are written after each part.
This process imports nothing but the standard library; `gpu_worker.py` holds the device.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import queue
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_page import as_markdown

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "benchmarks"
# What an image with torch, transformers, accelerate and pytest lacks, or has in another version; `--wheels` has a
# wheel of each (`gpu_wheels.py` fetches them).
CARRIED = (
    "trl", "peft", "datasets", "dill", "multiprocess", "bitsandbytes", "hydra-core", "omegaconf",
    "antlr4-python3-runtime", "gguf", "compressed-tensors", "loguru", "pydantic", "pydantic-core", "annotated-types",
    "typing-inspection",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One step of the script.

    Attributes:
        name: As `gpu_worker.PARTS` has it; `tests` are run here.
        seconds: It may take so long, with the imports of the first one.
        told: What it shows.
    """

    name: str
    seconds: float
    told: str


# In the order of their worth.
PARTS = (
    Part("device", 60, "the device and the versions"),
    Part("padding", 45, "NaN and losses of Gemma 4 and 3 in bfloat16 with padded batches, by kernel"),
    Part("kernels", 40, "which kernel takes which heads, 512 among them"),
    Part("tests", 150, "the tests that need a GPU (`make test-gpu`)"),
    Part("lora-e2b-2k", 60, "LoRA of Gemma 4 E2B, 2 × 2,048 tokens, against TRL"),
    Part("lora-1b-2k", 45, "LoRA of Gemma 3 1B, 2 × 2,048 tokens, against TRL"),
    Part("lora-4b-2k", 60, "LoRA of Gemma 3 4B, 2 × 2,048 tokens, against TRL"),
    Part("qlora-memory", 60, "memory of QLoRA against the estimate"),
    Part("lora-e2b-16k", 75, "LoRA of Gemma 4 E2B, 16,384 tokens, against TRL"),
    Part("lora-1b-16k", 60, "LoRA of Gemma 3 1B, 16,384 tokens, against TRL"),
    Part("lora-4b-16k", 90, "LoRA of Gemma 3 4B, 16,384 tokens, against TRL"),
    Part("padded-e2b", 45, "padded batches of Gemma 4 E2B, compact or not"),
    Part("qat", 40, "a step of quantization-aware training against a plain one"),
    Part("storage", 30, "storage types of 4-bit weights (`bnb_4bit_quant_storage`)"),
    Part("padded-1b", 45, "padded batches of Gemma 3 1B, compact or not"),
    Part("flex", 60, "FlexAttention by head size"),
)
_LEAST = 5.0  # seconds that a part is begun with


def gpu_tests() -> list[str]:
    """The files with tests that need a GPU: `make test-gpu` runs the same, and imports all others to find them."""
    marked = "mark." + "gpu"
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if marked in file.read_text("utf-8")]


def environment(wheels: Path | None, scratch: Path) -> dict[str, str]:
    """That of the other processes: the checkout, and the wheels, which are unpacked into `scratch`.

    Raises:
        subprocess.CalledProcessError: pip can't install them.
    """
    folders = [ROOT, ROOT / "tests", ROOT / "tests" / "chat", ROOT / "benchmarks"]
    if wheels is not None:
        folders.append(scratch / "site")
        files = sorted(str(file) for file in wheels.glob("*.whl"))
        offline = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(scratch / "site")]
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *offline, *files], check=True, stdout=sys.stderr)
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([*map(str, folders), *([before] if before else [])])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Worker:
    """The process that holds the device; it begins with the first part, and anew after one that failed.

    Args:
        env: Its environment.
    """

    def __init__(self, env: dict[str, str], command: list[str] | None = None) -> None:
        self._env, self._process = env, None
        self._command = command or [sys.executable, str(ROOT / "benchmarks" / "gpu_worker.py")]
        self._answers: queue.Queue[str] = queue.Queue()

    def _begin(self) -> Any:
        process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._env, text=True
        )
        answers = self._answers = queue.Queue()

        def read() -> None:
            for line in process.stdout:
                answers.put(line)
            answers.put("")

        threading.Thread(target=read, daemon=True).start()
        return process

    def run(self, name: str, seconds: float, tiny: bool) -> dict[str, Any]:
        """What a part answers; `error` where it failed or took longer.

        The part itself ends its rounds some seconds before, so that what it has measured so far is kept.
        """
        self._process = self._process or self._begin()
        # A tenth is kept for the step under way
        asked = {"part": name, "seconds": seconds - min(8.0, seconds / 10), "tiny": tiny}
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            self.end()
            return {"error": f"it took longer than {seconds:.0f} s"}
        except OSError as error:
            self.end()
            return {"error": f"its process has ended ({error})"}
        if not line:
            status = self._process.wait()
            self.end()
            return {"error": f"its process ended with status {status}"}
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer or not answer.pop("works", True):
            self.end()
        return answer

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None


def run_tests(seconds: float, env: dict[str, str], scratch: Path) -> dict[str, Any]:
    """pytest on the marked files: what became of each test."""
    report = scratch / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
    try:
        ended = subprocess.run([*command, *gpu_tests()], cwd=ROOT, env=env, timeout=seconds, stdout=sys.stderr)
    except subprocess.TimeoutExpired:
        return {"error": f"it took longer than {seconds:.0f} s"}
    if not report.exists():
        return {"error": f"pytest ended with status {ended.returncode} and no report"}
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        said = "passed" if bad is None else f"{bad.tag}: {(bad.get('message') or '').splitlines()[0:1]}"
        found[f"{case.get('classname')}.{case.get('name')}"] = {"said": said, "seconds": float(case.get("time") or 0)}
    return {"found": {"files": gpu_tests(), "tests": found}}


def run_parts(
    parts: list[Part], options: argparse.Namespace, worker: Any, tests: Any, report: dict[str, Any]
) -> dict[str, Any]:
    """Runs one part after the other, and writes the report after each.

    Args:
        parts: In their order.
        options: The command line's.
        worker: Has `run(name, seconds, tiny)`.
        tests: Runs the tests in so many seconds.
        report: What is there already; it is added to.
    """
    end = time.monotonic() + options.minutes * 60
    for part in parts:
        begun = time.monotonic()
        seconds = min(part.seconds, end - begun)
        if seconds < _LEAST:
            answer = {"not_run": f"of {options.minutes:g} minutes none were left"}
        elif part.name == "tests":
            answer = tests(seconds)
        else:
            answer = worker.run(part.name, seconds, options.tiny)
        report["parts"][part.name] = {"told": part.told, "seconds": time.monotonic() - begun, **answer}
        said = next((f"{key}: {answer[key]}" for key in ("error", "not_run") if key in answer), "done")
        print(f"bench-gpu: {part.name} ({time.monotonic() - begun:.0f} s) {said}", file=sys.stderr, flush=True)
        write(report, options.out)
    return report


def write(report: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "gpu.md").write_text(as_markdown(report), encoding="utf-8")


def main(words: list[str] | None = None) -> dict[str, Any]:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description="What only a GPU can show.", epilog=f"carried: {', '.join(CARRIED)}")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together")
    parser.add_argument("--wheels", type=Path, help=f"folder with a wheel of each of {', '.join(CARRIED)}")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script on a CPU")
    parser.add_argument("--out", type=Path, help="folder of gpu.json and gpu.md (docs/benchmarks; needed with --tiny)")
    parser.add_argument("--parts", default=",".join(names), help="some of them; the report keeps the others")
    options = parser.parse_args(words)
    if options.tiny and options.out is None:
        parser.error("--tiny measures nothing: name a folder with --out")
    if unknown := set(options.parts.split(",")) - set(names):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is none of {', '.join(names)}")
    options.out = options.out or DOCS
    asked = shlex.join([Path(sys.argv[0]).name, *(sys.argv[1:] if words is None else words)])
    report: dict[str, Any] = {"date": datetime.date.today().isoformat(), "command": asked, "tiny": options.tiny}
    kept = options.out / "gpu.json"
    some = options.parts != ",".join(names) and kept.exists()
    report["parts"] = json.loads(kept.read_text("utf-8"))["parts"] if some else {}
    parts = [part for part in PARTS if part.name in options.parts.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        scratch, begun = Path(folder), time.monotonic()
        env = environment(options.wheels, scratch)
        options.minutes -= (time.monotonic() - begun) / 60
        worker = Worker(env)
        try:
            return run_parts(parts, options, worker, lambda seconds: run_tests(seconds, env, scratch), report)
        finally:
            worker.end()


if __name__ == "__main__":
    main()
