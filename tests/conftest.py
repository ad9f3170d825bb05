"""What every test shares."""

from __future__ import annotations

import fcntl
import gc
import os
import pickle
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from image_tower_3n import complete_torchvision

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # libraries read it when they are imported

from gemma_tune.run.paths import ASSETS

complete_torchvision()

if TYPE_CHECKING:
    from gemma_tune import RunResult

Once = Callable[[str, Callable[[Path], Any]], tuple[Path, Any]]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None]:
    """No search for garbage among what is imported and collected: 1.5 million objects, of which nearly none is any."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The embedded model's folder."""
    return ASSETS / "tiny"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """A folder that is made once for all worker processes: the first that asks makes it, the others wait at its lock.

    Called with a name of its own and the function that makes the folder; tests only read what is in it.
    """
    base = tmp_path_factory.getbasetemp()
    place = (base if worker_id == "master" else base.parent) / "once"

    def get(name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
        folder = place / name
        place.mkdir(parents=True, exist_ok=True)
        result_file = folder.with_suffix(".result")
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not result_file.is_file():
                result_file.write_bytes(pickle.dumps(make(folder)))
        return folder, pickle.loads(result_file.read_bytes())

    return get


@pytest.fixture(scope="session")
def finished(once: Once) -> Callable[[str], tuple[Path, RunResult]]:
    """The finished run of a name of `every_recipe.SHORT_RUNS`: its folder, which tests only read, and its result."""

    def get(name: str) -> tuple[Path, RunResult]:
        from every_recipe import make_short_run

        return once(name.replace(", ", "-"), lambda folder: make_short_run(name, folder))

    return get


@pytest.fixture(scope="session")
def vllm() -> Path:
    """The `vllm` command: of `make setup-vllm`, or what GEMMA_TUNE_VLLM names."""
    from gemma_tune.config import EngineConfig
    from gemma_tune.engines.vllm_server import find_vllm

    found = find_vllm(EngineConfig(vllm=os.environ.get("GEMMA_TUNE_VLLM")), look=True)
    if found is None:
        pytest.skip("there is no vLLM: make setup-vllm, or GEMMA_TUNE_VLLM=path/to/vllm")
    return found
