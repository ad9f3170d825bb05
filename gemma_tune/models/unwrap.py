"""The language part inside whatever is around it."""

from __future__ import annotations

from typing import Any


def language_part(model: Any) -> Any:
    """The model itself, or that inside a PeftModel, with its adapters on."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
