"""`make soak`: kills runs, damages their checkpoints and fills their disk, and compares what they end with.

Each piece adds to docs/benchmarks/soak.json, so the whole can be stopped and continued: `SOAK="kills sft 20"` kills
twenty more, `SOAK=report` writes docs/benchmarks/soak.md. A run is a child of a process that has imported everything,
so that a kill costs a second and not ten.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from every_recipe import SHORT_RUNS, STEPS, write_rows
from figures import DOCS, conditions, conditions_line
from fuzz import fuzz
from short_runs import SHORT

import gemma_tune
from gemma_tune.errors import UserError
from gemma_tune.run.checkpoints import DIGESTS, checkpoints
from gemma_tune.run.resume import find_checkpoint

FILE = DOCS / "soak.json"
RUNS = {"sft": "lora_sft", "full": "full_sft", "qat": "qat, lora", "grpo": "grpo, lora", "dpo": "dpo, lora",
        "kto": "kto, lora", "tune_to_int4": "tune_to_int4"}  # fmt: skip
_TIMED = ("time", "second", "flos", "mfu")


def words_of(name: str, folder: Path) -> tuple[str, list[str]]:
    """Recipe and words of a short run with a checkpoint at each step where it can be resumed."""
    run = SHORT_RUNS[RUNS[name]]
    rows = write_rows(run.rows, folder.parent / "rows") if run.rows else []
    words = [*SHORT, f"train.max_steps={STEPS}", *run.words, *rows, "train.save_steps=1", "train.save_total_limit=3"]
    last = {w.split("=", 1)[0]: w for w in [*words, f"output_dir={folder}"]}
    return run.recipe, list(last.values())


def in_child(recipe: str, words: list[str], log: Path) -> int:
    """Starts a run in a child of this process; its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler)
        gemma_tune.run(recipe, words)
        code = 0
    except UserError as error:
        print(error, flush=True)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Waits for a child; its exit status, or minus the signal that ended it."""
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status)


def outcome(folder: Path) -> dict[str, Any]:
    """What a finished run ends with: the bytes of its weights, its metrics but for times, and its result."""
    weights = {
        str(p.relative_to(folder)): p.read_bytes()
        for pattern in ("**/adapter/*.safetensors", "**/export/**/*.safetensors", "**/export/**/*.gguf")
        for p in sorted(folder.glob(pattern))
        if "checkpoints" not in p.parts
    }
    metrics = {}
    for file in sorted(folder.glob("**/metrics.jsonl")):
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        metrics[str(file.relative_to(folder))] = [
            {k: v for k, v in line.items() if not any(t in k for t in _TIMED)}
            for line in lines
            if "train_runtime" not in line
        ]
    result = json.loads((folder / "result.json").read_text("utf-8"))
    return {"weights": weights, "metrics": metrics, "status": result["status"], "headline": result["headline"]}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Which parts of two outcomes differ."""
    found = [part for part in ("weights", "status", "headline") if one[part] != other[part]]
    for name, lines in one["metrics"].items():
        mine = other["metrics"].get(name, [])
        # What is measured before training is measured anew by each start, and logged by the first one alone
        if [line for line in lines if "loss" in line] != [line for line in mine if "loss" in line]:
            found.append(f"metrics of {name}")
        steps = [line["step"] for line in mine if "loss" in line]
        if steps != sorted(set(steps)):
            found.append(f"a step of {name} is there twice")
    return found


def undisturbed(name: str, folder: Path) -> tuple[dict[str, Any], float]:
    """The outcome of the run that nobody disturbs, and its seconds."""
    recipe, words = words_of(name, folder)
    begun = time.monotonic()
    if ended(in_child(recipe, words, folder.parent / "whole.log")):
        raise RuntimeError((folder.parent / "whole.log").read_text("utf-8")[-3000:])
    seconds = time.monotonic() - begun
    return outcome(folder), seconds


def kills(name: str, count: int, seed: int) -> dict[str, Any]:
    """Kills a run at random moments, again and again where it has just begun anew, until so many are dead."""
    chance, found = random.Random(seed), {"kills": 0, "runs": 0, "differing": 0, "failed": 0, "what": []}
    with tempfile.TemporaryDirectory() as scratch:
        expected, seconds = undisturbed(name, Path(scratch) / "whole" / "run")
        while found["kills"] < count:
            folder = Path(scratch) / f"{found['runs']}" / "run"
            recipe, words = words_of(name, folder)
            while True:
                pid = in_child(recipe, words, folder.parent / "log")
                # Anywhere in the run, and often in the first moments of a resumed one
                wait = chance.uniform(0, seconds * 1.1) if chance.random() < 0.7 else chance.uniform(0, seconds / 5)
                deadline = time.monotonic() + wait
                gone = (0, 0)
                while gone[0] == 0 and time.monotonic() < deadline and found["kills"] < count:
                    gone = os.waitpid(pid, os.WNOHANG)
                    time.sleep(0.005)
                if gone[0] == 0 and found["kills"] < count:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    found["kills"] += 1
                    continue
                code = os.waitstatus_to_exitcode(gone[1]) if gone[0] else ended(pid)
                break
            found["runs"] += 1
            differ = differences(expected, outcome(folder)) if code == 0 else []
            if code or differ:
                found["failed" if code else "differing"] += 1
                log = (folder.parent / "log").read_text("utf-8")[-1500:] if code else ""
                found["what"].append(f"{name}, run {found['runs']}: {differ or log}")
            shutil.rmtree(folder.parent)
            print(f"{name}: {found['kills']} of {count} kills, {found['runs']} runs, "
                  f"{found['differing']} differing, {found['failed']} failed", flush=True)  # fmt: skip
    return found


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(1, max(2, len(content)))]


def _one_bit(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "cut": _cut,
    "emptied": lambda content, chance: b"",
    "one bit": _one_bit,
    "removed": lambda content, chance: None,
}


def damaged(seed: int) -> dict[str, Any]:
    """Damages each file of a checkpoint in each way: it is passed over by name, and the older one taken."""
    from gemma_tune.config import TrainConfig

    chance, found = random.Random(seed), {"files": 0, "wrong": 0, "what": []}
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("sft", "full", "dpo", "qat"):
            folder = Path(scratch) / name / "run"
            recipe, words = words_of(name, folder)
            ended(in_child(recipe, words, folder.parent / "log"))
            newest = checkpoints(folder / "checkpoints")[-1]
            for file in sorted(p for p in newest.rglob("*") if p.is_file()):
                content = file.read_bytes()
                for how, change in DAMAGE.items():
                    made = change(content, chance)
                    if made == content:
                        continue
                    file.unlink() if made is None else file.write_bytes(made)
                    point = find_checkpoint(TrainConfig(), folder / "checkpoints")
                    said = " ".join(point.passed_over) if point else ""
                    right = point is not None and point.path != newest and (file.name in said or DIGESTS in said)
                    found["files"] += 1
                    if not right:
                        found["wrong"] += 1
                        found["what"].append(f"{name}: {file.name} {how}")
                    file.write_bytes(content)
    return found


def full_disk(name: str, sizes: int) -> dict[str, Any]:
    """Runs on disks of growing size; each run that fails goes on with more room, and ends with the same weights."""
    found: dict[str, Any] = {"sizes": 0, "full": 0, "unclear": 0, "differing": 0, "what": []}
    with tempfile.TemporaryDirectory() as scratch:
        expected, _ = undisturbed(name, Path(scratch) / "whole" / "run")
        used = sum(p.stat().st_size for p in (Path(scratch) / "whole").rglob("*") if p.is_file()) >> 10
        disk = Path(scratch) / "disk"
        disk.mkdir()
        for i in range(sizes):
            kib = 256 + round(used * 1.3 * i / sizes)
            with mounted(disk, kib) as grow:
                recipe, words = words_of(name, disk / "at" / "run")
                log = Path(scratch) / "log"
                log.unlink(missing_ok=True)
                code = ended(in_child(recipe, words, log))
                text = log.read_text("utf-8")
                found["sizes"] += 1
                if code:
                    found["full"] += 1
                    if "Traceback" in text and "the disk is full" not in text.splitlines()[-1]:
                        found["unclear"] += 1
                        found["what"].append(f"{kib} KiB: {text[-600:]}")
                    grow(used * 4)
                    code = ended(in_child(recipe, words, log))
                differ = differences(expected, outcome(disk / "at" / "run")) if code == 0 else ["it failed again"]
                if differ:
                    found["differing"] += 1
                    found["what"].append(f"{kib} KiB: {differ} {log.read_text('utf-8')[-600:] if code else ''}")
            print(f"{name}: {found['sizes']} of {sizes} disks, {found['full']} full, {found['differing']} differing")
    return found


@contextlib.contextmanager
def mounted(place: Path, kib: int) -> Any:
    """A disk of a size in memory; yields what gives it another size. Needs the right to mount."""

    def mount(*options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)], check=True)

    mount(f"size={kib}k")
    try:
        yield lambda more: mount("remount", f"size={more}k")
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fuzzed(count: int, seed: int) -> dict[str, Any]:
    """Damages rows, command lines and run folders: each is used, or refused with a message."""
    data = os.environ.get("GEMMA_TUNE_TEST_DATA")
    with tempfile.TemporaryDirectory() as scratch:
        wrong = list(fuzz(count, seed, Path(scratch), Path(data) / "wild" if data else None))
    return {"inputs": count, "wrong": len(wrong), "what": wrong[:20]}


def add(kind: str, found: dict[str, Any]) -> None:
    """Adds the figures of a piece to those of earlier ones."""
    stored = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {"pieces": {}}
    before = stored["pieces"].setdefault(kind, {})
    for key, value in found.items():
        before[key] = before.get(key, type(value)()) + value
    stored["conditions"] = conditions()
    FILE.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def report() -> None:
    """Writes docs/benchmarks/soak.md."""
    stored = json.loads(FILE.read_text("utf-8"))
    lines = [
        "# Kills, damaged files and full disks",
        "",
        "Repeat with `make soak`; the figures add up over pieces.",
        "",
    ]
    lines += ["| piece | figures |", "| --- | --- |"]
    for kind, figures in sorted(stored["pieces"].items()):
        said = ", ".join(f"{value:,} {key}" for key, value in figures.items() if key != "what")
        lines.append(f"| {kind} | {said} |")
    lines += ["", conditions_line(stored["conditions"]), ""]
    (DOCS / "soak.md").write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    """One piece, or all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("piece", nargs="*", default=[])
    piece = parser.parse_args().piece
    if piece == ["report"]:
        report()
        return
    seed = time.time_ns() % 2**32
    every = [["damage"], ["fuzz", "10000"], ["disk", "sft", "40"], ["kills", "sft", "100"]]
    every += [["kills", name, "30"] for name in ("qat", "grpo", "dpo", "tune_to_int4")]
    for kind, *rest in [piece] if piece else every:
        if kind == "kills":
            add(f"kills of {rest[0]}", kills(rest[0], int(rest[1]), seed))
        elif kind == "disk":
            add(f"full disks of {rest[0]}", full_disk(rest[0], int(rest[1])))
        elif kind == "fuzz":
            add("damaged inputs", fuzzed(int(rest[0]), seed))
        else:
            add("damaged files", damaged(seed))
    report()


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    from gemma_tune.cli.runner import quiet_libraries

    quiet_libraries()
    for module in ("sft", "qat", "dpo", "kto", "rl", "tune_to_int4"):
        __import__(f"gemma_tune.recipes.{module}")
    sys.exit(main())
