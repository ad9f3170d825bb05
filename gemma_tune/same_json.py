"""Equality of JSON data, and objects that have one value under each name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any


def same_json(found: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Whether two values are equal as JSON data: 20 is 20.0 and isn't true, and the order of keys doesn't count.

    Args:
        found: One value.
        expected: The other.
        tolerance: By how much of their size floats may differ.
    """
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    if isinstance(found, int | float) and isinstance(expected, int | float):
        return _same_number(found, expected, tolerance)
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(partial(same_json, tolerance=tolerance), found, expected))
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same_json(found[k], expected[k], tolerance) for k in expected)
    return type(found) is type(expected) and bool(found == expected)


def _same_number(found: float, expected: float, tolerance: float) -> bool:
    if found == expected or (found != found and expected != expected):
        return True
    if isinstance(found, int) and isinstance(expected, int):
        return False
    try:
        return math.isclose(found, expected, rel_tol=tolerance)
    except OverflowError:  # an int that no float can hold
        return False


def one_value_a_name(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` of `json.loads`, which would keep the last of several values in silence.

    Raises:
        ValueError: An object has two different values under one name.
    """
    if (name := name_of_two_values(pairs)) is not None:
        raise ValueError(f"an object has two values under the name {name!r}")
    return dict(pairs)


def name_of_two_values(pairs: Sequence[tuple[str, Any]]) -> str | None:
    """The first name that has two different values; None where each has one."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return None
    return next((name for name, value in pairs if value != found[name]), None)
