"""Where the folders that stand beside the package in a checkout are, and inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _shipped(inside_wheel: str, in_checkout: str) -> Path:
    inside = _PACKAGE / inside_wheel
    return inside if inside.is_dir() else _PACKAGE.parent / in_checkout


CONFIGS = _shipped("configs", "configs")
ASSETS = _shipped("assets", "data")


def resolve(path: str) -> Path:
    """Turns a path of the configuration into a real one.

    `assets://…` stands for the shipped `data/` folder, wherever the package is installed, so that the
    configurations work from every folder; any other path is relative to the current folder.
    """
    if path.startswith("assets://"):
        return ASSETS / path.removeprefix("assets://")
    return Path(path).expanduser()


def absolute(path: str) -> str:
    """The same path from every folder; `assets://…` already is."""
    return path if path.startswith("assets://") else str(resolve(path).absolute())
