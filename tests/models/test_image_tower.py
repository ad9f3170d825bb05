"""What is said where Gemma 3n's image tower can't be built: timm is missing, or the torchvision that it imports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from media_models import processor_folder
from transformers import AutoConfig

from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models.load import load_config
from gemma_tune.models.source import Source
from gemma_tune.models.towers.tower_files import load_towers


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in whose packages `timm` and `torchvision` are looked up first."""
    there = {name: sys.modules.pop(name) for name in ("timm", "torchvision") if name in sys.modules}
    monkeypatch.syspath_prepend(tmp_path / "packages")
    yield tmp_path / "packages"
    for name in ("timm", "torchvision"):
        sys.modules.pop(name, None)
    sys.modules.update(there)


def write(folder: Path, name: str, source: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(source, encoding="utf-8")


def test_missing_and_broken_packages(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = processor_folder("gemma3n", tmp_path / "model")
    source = Source(str(folder), None, None, str(folder))
    config = load_config(source)

    def refused() -> str:
        with pytest.raises(UserError, match="its image tower needs timm, and ") as caught:
            load_towers(ModelConfig(dtype="float32"), source, config, None)
        return str(caught.value)

    write(packages, "timm", "import torchvision")
    write(packages, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    assert "(operator torchvision::nms does not exist): install the torchvision for torch" in refused()

    def fails(*args: Any, **more: Any) -> None:
        raise ModuleNotFoundError("Could not import module 'Gemma3nConfig'.")

    monkeypatch.setattr(AutoConfig, "for_model", fails)
    with pytest.raises(
        UserError, match=r"can't import its classes; timm can't be imported .operator .* uninstall timm"
    ):
        load_config(source)
    (packages / "torchvision" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torchvision'\", name='torchvision')", encoding="utf-8"
    )
    missing = "torchvision isn't installed: pip install timm torchvision, with the torchvision for torch"
    assert f"{missing} {torch.__version__}" in refused()
    (packages / "timm" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'timm'\", name='timm')", encoding="utf-8"
    )
    assert "timm isn't installed" in refused()
