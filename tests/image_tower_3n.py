"""timm and torchvision, which build Gemma 3n's image tower and are no dependencies: `make test-3n`."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def complete_torchvision() -> None:
    """Makes a torchvision of another build of torch importable: it lacks two operators, which no test calls.

    Called before Transformers is imported, which imports Gemma 3n's classes with it where timm is installed.
    """
    if find_spec("torchvision") is None:
        return
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def import_timm() -> None:
    """Skips the test that calls it where timm or torchvision is missing."""
    pytest.importorskip("torchvision", reason="torchvision isn't installed")
    pytest.importorskip("timm", reason="timm isn't installed")
