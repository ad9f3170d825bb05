"""What the doctor says of what the trials found, and that it survives what crashes and hangs."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from rich.console import Console

import gemma_tune
from gemma_tune.doctor import child, machine, packages, trials
from gemma_tune.doctor.findings import Finding, State, broken, limits, show, works
from gemma_tune.doctor.trials import Trial
from gemma_tune.errors import UserError

ROOT = Path(__file__).parent.parent.parent
GPU = {"name": "NVIDIA X", "capability": "9.0", "free": 79 * 2**30, "total": 80 * 2**30, "bf16": True, "fp8": True}


def answers(**changed: Any) -> dict[str, dict[str, Any]]:
    """What the child says of torch where all is well, with a GPU."""
    found: dict[str, Any] = {
        "torch": {"version": "2.13.0", "cuda": "13.0"},
        "gpus": {"devices": [GPU], "mps": False, "cpu": []},
        "products": {"device": "cuda", "types": {"float32": True, "bfloat16": True}},
        "four_bit": {"device": "cuda", "error": 0.09},
    }
    return {name: value for name, value in (found | changed).items() if value is not None}


def states(found: list[Finding]) -> dict[str, str]:
    return {one.name: one.state.value for one in found}


@pytest.mark.parametrize(
    ("changed", "driver", "expected"),
    [
        ({}, "580.1", {"PyTorch": "✓", "GPU 0": "✓", "dtypes": "✓", "4-bit": "✓"}),
        ({"gpus": {"devices": [GPU | {"free": 2**30}], "mps": False, "cpu": []}}, "580.1", {"GPU 0": "!"}),
        ({"gpus": {"devices": [GPU | {"bf16": False}], "mps": False, "cpu": []}}, "580.1", {"dtypes": "!"}),
        ({"gpus": {"devices": [], "mps": False, "cpu": []}}, None, {"GPU": "!", "dtypes": "✓"}),
        ({"gpus": {"devices": [], "mps": False, "cpu": []}}, "450.1", {"GPU": "!"}),
        ({"products": {"device": "cuda", "types": {"float32": True, "bfloat16": False}}}, "580.1", {"dtypes": "✗"}),
        ({"four_bit": {"device": "cuda", "error": 0.9}}, "580.1", {"4-bit": "!", "dtypes": "✓"}),
        ({"four_bit": {"device": "cuda", "error": float("nan")}}, "580.1", {"4-bit": "!"}),
        ({"four_bit": None}, "580.1", {"4-bit": "!", "PyTorch": "✓"}),
        ({"torch": None, "gpus": None, "products": None, "four_bit": None}, None, {"PyTorch": "✗"}),
        ({"gpus": None, "products": None, "four_bit": None}, "580.1", {"PyTorch": "✓", "GPU": "✗"}),
    ],
)
def test_what_torch_says(changed: dict[str, Any], driver: str | None, expected: dict[str, str]) -> None:
    found = list(trials.of_torch(Trial(answers(**changed), "RuntimeError: no"), driver))
    assert expected.items() <= states(found).items(), states(found)
    assert all(one.fix for one in found if one.state is not State.WORKS)


def test_a_driver_that_torch_cannot_use_is_told_from_no_gpu() -> None:
    nothing = {"gpus": {"devices": [], "mps": False, "cpu": []}}
    for cuda, driver, said in (
        ("13.0", "450.1", "PyTorch can't use it"),
        (None, "580.1", "this PyTorch is for CPUs"),
        (None, None, "none"),
    ):
        trial = Trial(answers(torch={"version": "2.13.0", "cuda": cuda}, **nothing))
        assert said in next(one.said for one in trials.of_torch(trial, driver) if one.name == "GPU")


@pytest.mark.parametrize(
    ("found", "why", "mark", "said"),
    [
        (None, "HF_HUB_OFFLINE=1 says so", "!", "no network"),
        (None, None, "!", "not asked"),
        ({"token": False, "user": None, "gated": None}, None, "!", "no token"),
        ({"token": True, "user": None, "problem": "401", "gated": None}, None, "!", "refused"),
        ({"token": True, "user": "anna", "gated": False}, None, "!", "not open"),
        ({"token": True, "user": "anna", "gated": True}, None, "✓", "accepted"),
    ],
)
def test_what_the_hub_says(found: dict[str, Any] | None, why: str | None, mark: str, said: str) -> None:
    finding = trials.of_hub(Trial({"hub": found}) if found else None, why)
    assert (finding.state.value, said in finding.said) == (mark, True), finding


def test_a_child_that_crashes_or_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it said before stays; a crash and a hang are told apart."""
    real, told = subprocess.Popen, 'print(\'{"name": "torch", "version": "1", "cuda": null}\', flush=True)'
    for code, problem, slow in (
        (f"{told}; import os; os.abort()", "killed by signal 6", False),
        (f"{told}; import time; time.sleep(60)", "no answer within 2 seconds", True),
        (f"{told}; import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'", False),
        (told, None, False),
    ):
        monkeypatch.setattr(
            subprocess, "Popen", lambda command, code=code, **kw: real([sys.executable, "-c", code], **kw)
        )
        trial = trials.run_trials(["torch"], 2)["torch"]
        assert (trial.problem, trial.slow) == (problem, slow)
        assert trial.answers["torch"]["version"] == "1"
    slow_one = trials.of_trainers(Trial({}, "no answer within 2 seconds", slow=True))
    assert slow_one.state is State.LIMITS  # a busy machine is no broken one
    assert trials.of_trainers(Trial({}, "ImportError: no")).state is State.BROKEN


def test_versions_of_the_lock() -> None:
    """The package holds what stands at the top of the checkout."""
    held = Path(packages.__file__).with_name("constraints.txt")
    assert held.read_bytes() == (ROOT / "constraints.txt").read_bytes()
    assert packages.tested_versions()["torch"].startswith("2.")
    assert {"torch", "trl", "rich"} <= {one.name for one in packages.needed()[""]}
    assert set(packages._EXTRAS) == set(packages.needed()) - {"", "dev"}


def test_requirements_for_other_machines_are_not_missed() -> None:
    lines = ["a>=1", "b; sys_platform == 'nowhere'", "c; extra == 'x'", "d; extra == 'x' and sys_platform == 'nowhere'"]
    found = packages.applying([Requirement(line) for line in lines], ["x"])
    assert {extra: [one.name for one in of] for extra, of in found.items()} == {"": ["a"], "x": ["c"]}


def test_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    (found,) = packages.packages()
    assert found.state is State.LIMITS and found.fix.startswith("pip install -e ") and "isn't installed" in found.said


def test_a_trial_runs_in_this_package_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a folder that holds another package of that name."""
    (tmp_path / "gemma_tune").mkdir()
    (tmp_path / "gemma_tune" / "__init__.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    trial = trials.run_trials(["sandbox"], 60)["sandbox"]
    assert trial.problem is None and "sandbox" in trial.answers


def test_packages_that_are_missing_old_or_untested(monkeypatch: pytest.MonkeyPatch) -> None:
    have = {"torch": "2.13.0+cpu", "trl": "1.17.0", "peft": "0.1"}
    monkeypatch.setattr(packages, "_version", have.get)
    monkeypatch.setattr(packages, "tested_versions", lambda: {"torch": "2.13.0", "trl": "1.16.0", "peft": "0.21.2"})
    for wanted, mark, said in (
        (["torch>=2.9"], "✓", "torch 2.13.0+cpu"),
        (["torch>=2.9", "trl>=1.16"], "!", "trl 1.17.0 (1.16.0)"),
        (["peft>=0.21"], "✗", "peft 0.1 is not >=0.21"),
        (["rich>=13"], "✗", "rich is not installed"),
    ):
        needs = {"": [Requirement(one) for one in wanted]}
        monkeypatch.setattr(packages, "needed", lambda needs=needs: needs)
        first = next(iter(packages.packages()))
        assert (first.state.value, said in first.said) == (mark, True), first


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_disk", lambda path: 2**28)
    assert states(list(machine.disks(tmp_path))) == {"runs": "✗", "Hub cache": "✗", "scratch": "✗"}


def test_lines_fit_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    show([works("[gguf]", "it " * 50), limits("b", "c", "d " * 60), broken("e", "f", "g")], Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("✓ [gguf] it") and any(line.startswith("✗ e      f") for line in lines)


def test_trials_that_need_no_torch() -> None:
    (sandbox,) = child.TRIALS["sandbox"]()
    assert sandbox["problem"] is None or sandbox["problem"].startswith("reward.code: ")


def test_keys_without_effect() -> None:
    with pytest.raises(UserError, match="output_dir has no effect with recipe=doctor"):
        gemma_tune.run("doctor", ["output_dir=x"])
    with pytest.raises(UserError, match=r"doctor\.hub has no effect with recipe=lora_sft"):
        gemma_tune.run("lora_sft", ["doctor.hub=false", "dry_run=true"])


@pytest.mark.slow
def test_of_this_machine(folder: Path) -> None:
    """Everything for real: whoever can run the tests can train."""
    result = gemma_tune.run("doctor", ["doctor.timeout=300"])
    found = {one["name"]: one for one in result.metrics["findings"]}
    assert result.status == "finished" and result.failures == {}
    assert {"PyTorch", "dtypes", "4-bit", "trainers", "packages"} <= {
        n for n, o in found.items() if o["state"] == "works"
    }
    assert list(folder.iterdir()) == []
