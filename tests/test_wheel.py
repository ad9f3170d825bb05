"""The wheel holds everything that a run needs and runs in an environment of its own.

The wheel is built from a copy, so nothing is left in the checkout, and installed without the network: torch and the
other dependencies are those of the running environment, reached by its path.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from code_blocks import blocks_of, write_files

from gemma_tune.run import paths

PACKAGE = Path(paths.__file__).resolve().parent.parent
CHECKOUT = PACKAGE.parent
# Without PYTHONPATH, which may lead to the checkout
ENV = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "outputs", "wandb")


def run(*words: str | Path, cwd: Path) -> str:
    """Runs a command that must succeed; returns what it printed."""
    done = subprocess.run([str(w) for w in words], cwd=cwd, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout with the setuptools that is installed."""
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(CHECKOUT, place / "source", ignore=NOT_SOURCE)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place / "dist", cwd=place / "source")
    (built,) = (place / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel and the running environment's dependencies.

    A folder that a .pth file adds has its own .pth files passed over, so the editable install of the checkout is
    not seen there.
    """
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    bin_python = place / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", bin_python, "install", "--no-deps", "--no-index", wheel, cwd=place)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return bin_python


def shipped_files() -> dict[str, Path]:
    """Every file that is no Python and that a run may need: name in the wheel → file in the checkout."""
    found = {}
    for inside, folder in (
        ("gemma_tune/configs", CHECKOUT / "configs"),
        ("gemma_tune/assets/sample", CHECKOUT / "data" / "sample"),
        ("gemma_tune/assets/tiny", CHECKOUT / "data" / "tiny"),
        ("gemma_tune", PACKAGE),
    ):
        files = [f for f in folder.rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")]
        found |= {f"{inside}/{f.relative_to(folder)}": f for f in files}
    return found


def test_wheel_holds_every_file(wheel: Path) -> None:
    """Byte for byte, and nothing of ours lands at the top of site-packages but the package."""
    with zipfile.ZipFile(wheel) as z:
        names = set(z.namelist())
        assert any(n.endswith(".jinja") and "chat/templates" in n for n in shipped_files())
        assert sorted(set(shipped_files()) - names) == []
        assert [n for n, file in shipped_files().items() if z.read(n) != file.read_bytes()] == []
    modules = {str(f.relative_to(CHECKOUT)) for f in PACKAGE.rglob("*.py")}
    modules |= {f"gemma_tune/recipes/{f.name}" for f in (CHECKOUT / "recipes").glob("*.py")}
    assert sorted(modules - names) == []
    top = {n.split("/")[0] for n in names}
    assert {t for t in top if not t.endswith(".dist-info")} == {"gemma_tune"}
    assert not [n for n in names if "tests" in n.split("/")]


def test_metadata_pins_nothing(wheel: Path) -> None:
    """Exact versions stand in constraints.txt, never in the wheel: they would fight with other packages."""
    with zipfile.ZipFile(wheel) as z:
        (name,) = [n for n in z.namelist() if n.endswith(".dist-info/METADATA")]
        lines = z.read(name).decode("utf-8").splitlines()
    needs = [line for line in lines if line.startswith("Requires-Dist: ")]
    assert any("torch" in n for n in needs)
    assert not [n for n in needs if "==" in n.split(";")[0]]


def test_installed_wheel_runs(python: Path, tmp_path: Path) -> None:
    """A dry run from an empty folder: configuration, counts and memory, with nothing of the checkout in reach."""
    place = run(python, "-c", "import gemma_tune; print(gemma_tune.__file__)", cwd=tmp_path).strip()
    assert Path(place).is_relative_to(python.parent.parent), place
    few = ["data.max_train_samples=16", "data.max_eval_samples=4"]
    out = run(python, "-m", "gemma_tune", "recipe=qlora_sft", "dry_run=true", *few, cwd=tmp_path)
    assert "\n  load_in_4bit: true\n" in out and "\n  learning_rate: 0.008\n" in out
    for words in ("rows read", "tokens", "trained tokens", "Memory, estimated: ", "dry_run=true"):
        assert words in out, words
    assert list(tmp_path.iterdir()) == []


def test_command_of_the_wheel(python: Path, tmp_path: Path) -> None:
    """The script `gemma_tune` says the same as `python -m gemma_tune`."""
    assert run(python.parent / "gemma_tune", cwd=tmp_path) == run(python, "-m", "gemma_tune", cwd=tmp_path)


@pytest.mark.slow
def test_extending_from_the_wheel(python: Path, tmp_path: Path) -> None:
    """docs/extending.md as it stands, in an empty folder, by a shell that finds the wheel's Python."""
    env = {**ENV, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    for command in write_files("extending.md", tmp_path):
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"careful", "focal", "brief", "short"}
    steps = run(python, "-c", "from gemma_tune.run.paths import RECIPES; print(RECIPES)", cwd=tmp_path).strip()
    assert Path(steps).is_relative_to(python.parent.parent)
    assert (tmp_path / "my_lora_sft.py").read_bytes() == (Path(steps) / "sft.py").read_bytes()


@pytest.mark.slow
def test_the_tutorial_from_an_installed_wheel(python: Path, tmp_path: Path) -> None:
    """Each block as it stands, in an empty folder: from the CSV to an answer of the served model."""
    env = {**ENV, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    said = []
    for block in (b for b in blocks_of("tutorial.md") if b.kind != "console"):  # those are for other programs
        words = ["python", "-"] if block.kind == "python" else ["bash", "-e"]
        done = subprocess.run(
            words, input=block.text, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=1800
        )
        assert done.returncode == 0, f"{block.text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        said.append(done.stdout)
    assert "We are open from nine to six." in said[3] and "We are open from nine to six." in said[-1]
    result = json.loads((tmp_path / "runs" / "support-measured" / "result.json").read_text("utf-8"))
    assert result["metrics"]["after"]["test_exact_match"] >= 0.9
    assert (tmp_path / "preview.html").is_file() and list((tmp_path / "runs/support-int4/export/gguf").glob("*.gguf"))
