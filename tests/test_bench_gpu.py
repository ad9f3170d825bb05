"""`make bench-gpu`: a part that fails or takes too long is recorded and ends no other; on small shapes all run."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import bench_gpu
import gpu_page
import gpu_wheels
import gpu_worker
import pytest

# Answers as gpu_worker.py does: by the part's name
FAKE = """
import json, sys, time
for line in sys.stdin:
    name = json.loads(line)["part"]
    if name == "slow": time.sleep(60)
    if name == "dies": sys.exit(3)
    answer = {"error": "ValueError: no"} if name == "fails" else {"found": {}}
    print(json.dumps({**answer, "works": name != "breaks"}), flush=True)
"""


def run(tmp_path: Path, names: list[str], minutes: float = 1.0) -> dict[str, Any]:
    options = argparse.Namespace(minutes=minutes, tiny=True, out=tmp_path)
    parts = [bench_gpu.Part(name, 0.6 if name == "slow" else 9.0, name) for name in names]
    worker = bench_gpu.Worker(dict(os.environ), [sys.executable, "-S", "-c", FAKE])
    report: dict[str, Any] = {"date": "today", "command": "", "tiny": True, "parts": {}}
    try:
        return bench_gpu.run_parts(parts, options, worker, lambda seconds: {"found": {}}, report)["parts"]
    finally:
        worker.end()


def test_a_part_that_fails_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "_LEAST", 0.1)
    done = run(tmp_path, ["a", "fails", "b", "slow", "c", "dies", "breaks", "d"])
    errors = {name: part.get("error") for name, part in done.items()}
    assert errors == {
        "a": None, "fails": "ValueError: no", "b": None, "slow": "it took longer than 1 s", "c": None,
        "dies": "its process ended with status 3", "breaks": None, "d": None,
    }  # fmt: skip
    page = (tmp_path / "gpu.md").read_text("utf-8")
    assert "`fails`: ValueError: no" in page and "`slow`: it took longer" in page


def test_what_no_time_is_left_for_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, ["a", "b"], minutes=0.0)
    assert all("not_run" in part for part in done.values()) and len(done) == 2
    assert "`b`: not run: of 0 minutes none were left" in (tmp_path / "gpu.md").read_text("utf-8")


def test_every_part_can_be_run_and_every_wheel_has_a_version() -> None:
    assert {part.name for part in bench_gpu.PARTS} == {*gpu_worker.PARTS, "tests"}
    assert "tests/recipes/test_gpu.py" in bench_gpu.gpu_tests()
    assert gpu_wheels.locked().keys() == {*bench_gpu.CARRIED}


def test_there_is_a_ratio_of_the_same_training_alone() -> None:
    base = {"seconds": [2.0, 2.2, 2.0], "losses": [3.0, 2.9], "grad_norms": [1.0], "error": None}
    arm = {**base, "seconds": [1.0, 1.1, 1.0]}
    assert gpu_page.ratio(arm, base) == "2.000 (2.000–2.000, 3 steps)"
    assert "differ" in gpu_page.ratio({**arm, "losses": [3.01, 2.9]}, base)
    assert "differ" in gpu_page.ratio({**arm, "grad_norms": [1.1]}, base)


@pytest.mark.slow
def test_all_parts_run_on_small_shapes(tmp_path: Path) -> None:
    parts = bench_gpu.main(["--tiny", "--minutes", "20", "--out", str(tmp_path)])["parts"]
    assert parts.keys() == {part.name for part in bench_gpu.PARTS}
    assert {name: part for name, part in parts.items() if "found" not in part} == {}
    for name in ("lora-e2b-2k", "lora-4b-16k", "padded-1b"):
        arms = parts[name]["found"]["arms"]
        assert [arm["error"] for arm in arms.values()] == [None] * len(arms)
        trl, *ours = arms.values()
        assert all(gpu_page.same_training(arm, trl) for arm in ours), name
    assert parts["storage"]["found"]["bfloat16"]["same_gradients"]
    tables = [name for name in parts["qlora-memory"]["found"] if "table on the GPU" in name]
    assert len(tables) == 2 and all("E2B" in name for name in tables)
    assert "no table" not in (tmp_path / "gpu.md").read_text("utf-8")
