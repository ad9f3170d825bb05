"""Equality of JSON data, in both directions."""

from __future__ import annotations

from typing import Any

import pytest

from gemma_tune.same_json import same_json


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (20, 20.0, True), (True, 1, False), (0, False, False), ("5", 5, False), (None, None, True), (None, 0, False),
        ({"a": 1, "b": [1, {"c": 2}]}, {"b": [1.0, {"c": 2}], "a": 1}, True), ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ({"a": 1}, {"a": 1, "b": None}, False), ("Kitchen", "kitchen", False), ([True], [1], False),
    ],
)  # fmt: skip
def test_same_data(a: Any, b: Any, same: bool) -> None:
    assert same_json(a, b) is same
    assert same_json(b, a) is same


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        (20, 20.0, True), (True, 1, False), (0, False, False), (1, "1", False), (None, 0, False), ([1], [1, 2], False),
        (1.0, 1.0 + 1e-10, True), (1.0, 1.0 + 1e-8, False), (10**20, 10**20 + 1, False),
        (float("nan"), float("nan"), True),
        ({"a": 1, "b": [True]}, {"b": [True], "a": 1}, True), ({"a": 1}, {"a": 1, "b": 2}, False), ([True], [1], False),
        (float("inf"), 10**400, False), ([], {}, False), ("é", "e\u0301", False),
    ],
)  # fmt: skip
def test_with_a_tolerance(found: Any, expected: Any, same: bool) -> None:
    assert same_json(found, expected, 1e-9) is same and same_json(expected, found, 1e-9) is same
