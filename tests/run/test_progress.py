"""What a long step says of itself: off a terminal, too."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gemma_tune.chat import Rendered
from gemma_tune.models.head import TopK
from gemma_tune.process_failures import quiet
from gemma_tune.progress import progress
from gemma_tune.train.teacher_cache import TeacherCache


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress(range(4), desc="teacher", unit=" rows", seconds=0.05):
        time.sleep(0.06)
    first, *more = capsys.readouterr().err.splitlines()
    assert first.startswith("teacher: 1 of 4 rows, 00:0") and more
    assert not any("\r" in line or "\x1b" in line for line in more)

    # A short loop says nothing, and nor do other processes
    list(progress(range(4), desc="teacher", unit=" rows"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "1")
        with quiet():
            _short_loop()
    assert capsys.readouterr().err == ""


def _short_loop() -> None:
    for _ in progress(range(3), desc="teacher", unit=" rows", seconds=0.01):
        time.sleep(0.02)


def test_no_loop_is_silent_off_a_terminal() -> None:
    """tqdm's own `disable=None` says nothing into a file; only bars with lines of their own may use it."""
    package = Path(progress.__code__.co_filename).parent
    silent = [f.name for f in package.rglob("*.py") if "disable=None" in f.read_text(encoding="utf-8")]
    assert sorted(silent) == ["batches.py", "callbacks.py"]  # answers are printed as they come; training has its lines


def test_the_teacher_says_that_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Rendered([1, 2, 3], [-100, 2, 3]), Rendered([1, 4], [-100, 4])]
    cache = TeacherCache(tmp_path, 2, "m", "t")

    def targets(batch: object) -> list[TopK]:
        assert isinstance(batch, list)
        return [
            TopK(torch.zeros(r.trained_tokens, 2, dtype=torch.long), torch.zeros(r.trained_tokens, 2)) for r in batch
        ]

    assert cache.fill(rows, targets) == 2
    assert "teacher: its probabilities for 2 rows" in capsys.readouterr().err
    assert cache.fill(rows, targets) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_each_export_says_what_it_is_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gemma_tune.export.transformers_check import transformers_lines

    forward = SimpleNamespace(rows=[[2, 3]], device="cpu")
    with pytest.raises(Exception, match="can't run what was exported"):
        transformers_lines({"merged": tmp_path / "none"}, tmp_path / "logits", forward)  # type: ignore[arg-type]
    assert "checking merged: in Transformers" in capsys.readouterr().err
