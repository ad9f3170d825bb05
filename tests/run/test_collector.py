"""Python's garbage collector: seldom at work while a command starts, as usual once weights are loaded."""

from __future__ import annotations

import gc
import io
import subprocess
import sys

import pytest

from gemma_tune.chat import foreign
from gemma_tune.collector import look_as_usual, look_seldom

_CODE = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 0))  # the first one that is registered runs last
from gemma_tune.collector import look_as_usual, look_seldom
usual = gc.get_threshold()
look_as_usual()
same = gc.get_threshold() == usual
look_seldom()
look_seldom()
seldom = gc.get_threshold()[0] > 10 * usual[0]
look_as_usual()
print(same, seldom, gc.get_threshold() == usual)
"""


def test_collector_is_put_back_and_spares_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True)
    assert done.stdout.split() == ["True"] * 4, done.stderr


def test_templates_are_rendered_with_a_collector_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of their own with little memory, which garbage that holds conversations would fill."""
    monkeypatch.setattr(foreign.resource, "setrlimit", lambda *_: None)
    usual = gc.get_threshold()
    look_seldom()
    try:
        foreign.main(io.BytesIO(b'""\n'), io.BytesIO())
        assert gc.get_threshold() == usual
    finally:
        look_as_usual()
