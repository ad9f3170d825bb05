"""A few of the damaged inputs of `make soak`: none ends in a traceback."""

from __future__ import annotations

import os
from pathlib import Path

from fuzz import fuzz


def test_damaged_inputs(tmp_path: Path) -> None:
    at_hand = os.environ.get("GEMMA_TUNE_TEST_DATA")
    wrong = list(fuzz(60, 0, tmp_path, Path(at_hand) / "wild" if at_hand else None))
    assert not wrong, "\n".join(wrong)
