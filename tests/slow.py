"""Parameters of a test, of which `make test` has some and `make test-slow` the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def slow_after(keep: int, values: Iterable[Any]) -> list[Any]:
    """The first ones as they are, all others marked slow."""
    return _marked(values, lambda i, _: i < keep)


def slow_every_other(values: Iterable[Any]) -> list[Any]:
    """Every second one marked slow."""
    return _marked(values, lambda i, _: i % 2 == 0)


def slow_but_these(keep: Sequence[Any], values: Iterable[Any]) -> list[Any]:
    """All marked slow but for these."""
    return _marked(values, lambda _, value: value in keep)


def _marked(values: Iterable[Any], is_fast: Any) -> list[Any]:
    found = []
    for i, value in enumerate(values):
        parts = value if isinstance(value, tuple) else (value,)
        found.append(pytest.param(*parts, marks=() if is_fast(i, value) else pytest.mark.slow))
    return found
