"""Tokens a second, on a clock that goes by what is written."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from gemma_tune.engines import speed


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[int], list[float]]]:
    """What was asked for, and how long each call takes."""
    asked: list[int] = []
    lasting: list[float] = []
    clock = SimpleNamespace(perf_counter=lambda: sum(lasting[: len(asked)]))
    monkeypatch.setattr(speed, "time", clock)
    yield asked, lasting


def test_the_first_call_and_outliers_do_not_count(written: tuple[list[int], list[float]]) -> None:
    asked, lasting = written
    lasting += [60.0, 0.5, 9.0, 0.5, 2.5, 2.5, 0.1]
    assert speed.rates(asked.append, 128) == (pytest.approx(256), pytest.approx(12))
    assert asked == [25, 1, 1, 1, 25, 25, 25]


def test_a_time_that_is_no_longer_than_that_of_the_prompt(written: tuple[list[int], list[float]]) -> None:
    """On a busy machine: no figure, and not 24 billion tokens a second."""
    asked, lasting = written
    lasting += [1.0, 2.0, 2.0, 2.0, 1.9, 2.0, 2.1]
    assert speed.rates(asked.append, 128) == (pytest.approx(64), None)
