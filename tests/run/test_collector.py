"""Python's garbage collector: seldom at work while a command starts, as usual once weights are loaded."""

from __future__ import annotations

import subprocess
import sys

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
