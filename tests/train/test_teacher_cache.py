"""The teacher's log-probabilities on disk: written once, whole or not at all, read without opening files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gemma_tune import UserError
from gemma_tune.chat import Rendered
from gemma_tune.models.head import TopK
from gemma_tune.train import teacher_cache
from gemma_tune.train.teacher_cache import TeacherCache

ROWS = [Rendered(list(range(n)), [-100, *range(1, n)]) for n in (4, 7, 5)]
_opened: list[str] | None = None


def see_open(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


sys.addaudithook(see_open)  # it can't be taken away, so it works only while `_opened` is a list


def made(rows: Sequence[Rendered]) -> list[TopK]:
    return [one(row) for row in rows]


def one(row: Rendered) -> TopK:
    rng = torch.Generator().manual_seed(len(row.input_ids))
    return TopK(*reversed(torch.randn(row.trained_tokens, 50, generator=rng).log_softmax(-1).topk(8)))


def cache_in(folder: Path, k: int = 8, model: str = "m", tokenizer: str = "v") -> TeacherCache:
    return TeacherCache(folder, k, model, tokenizer)


def check(cache: TeacherCache, rows: Sequence[Rendered]) -> None:
    """The ids to the last one, and log-probabilities as float16 holds them."""
    for row in rows:
        wanted, found = one(row), cache.get(row)
        assert torch.equal(found.ids, wanted.ids) and found.ids.dtype == torch.int64
        assert torch.equal(found.log_probs, wanted.log_probs.half().float())


def test_written_once(tmp_path: Path) -> None:
    cache = cache_in(tmp_path / "t")
    assert cache.fill(ROWS[:2], made) == 2 and cache.fill([*ROWS, ROWS[2]], made) == 1 and cache.fill(ROWS, made) == 0
    check(cache, ROWS)
    again = cache_in(tmp_path / "t")
    assert all(row in again for row in ROWS)
    check(again, ROWS)
    with pytest.raises(KeyError):
        again.get(Rendered([9, 9, 9], []))


def test_a_row_without_a_trained_token(tmp_path: Path) -> None:
    rows = [Rendered([1, 2, 3], [-100] * 3), *ROWS]
    cache = cache_in(tmp_path / "t")
    cache.fill(rows, made)
    assert cache.get(rows[0]).ids.shape == cache.get(rows[0]).log_probs.shape == (0, 8)
    check(cache, ROWS)


def opens(folder: Path, rows: list[Rendered]) -> tuple[int, int, int]:
    """Files opened in a folder to fill a cache, to find it again, and to read every row of it twice."""
    global _opened
    found = []
    for step in range(3):
        _opened = []
        try:
            if step < 2:
                cache = cache_in(folder)
            if step == 0:
                cache.fill(rows, made)
            if step == 2:
                for row in [*rows, *rows]:
                    cache.get(row)
            found.append(sum(str(folder) in name for name in _opened))
        finally:
            _opened = None
    return found[0], found[1], found[2]


def test_opens_are_independent_of_the_number_of_rows(tmp_path: Path) -> None:
    """Written and mapped; mapped; and no file opened to read rows."""
    rows = [Rendered([i, *range(5)], [-100, *range(5)]) for i in range(3000)]
    assert opens(tmp_path / "few", rows[:3]) == opens(tmp_path / "many", rows) == (2, 1, 0)
    assert len(list((tmp_path / "many").iterdir())) == 1


def test_files_of_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is closed once it is large enough or took long enough; the next run adds files to it."""
    monkeypatch.setattr(teacher_cache, "_BATCH_TOKENS", 1)
    monkeypatch.setattr(teacher_cache, "_FILE_BYTES", 1)
    cache_in(tmp_path / "t").fill(ROWS[:2], made)
    monkeypatch.setattr(teacher_cache, "_FILE_BYTES", 1 << 20)
    monkeypatch.setattr(teacher_cache, "_FILE_SECONDS", 0)
    rows = [*ROWS, Rendered([1, 2], [-100, 2])]
    cache = cache_in(tmp_path / "t")
    assert cache.fill(rows, made) == 2
    assert sorted(f.name for f in (tmp_path / "t").iterdir()) == [f"targets-{i:05}.arrow" for i in range(4)]
    check(cache, rows)
    check(cache_in(tmp_path / "t"), rows)


def test_batches_of_rows_of_similar_length(tmp_path: Path) -> None:
    """The longest ones first, as many as a batch holds, each once; a row longer than a batch goes alone."""
    lengths = [5, 5000, 1000, 30, 1100, 1200, 5, 1300]
    rows = [Rendered([i] * n, [-100] * (n - 1) + [i]) for i, n in enumerate(lengths)]
    seen: list[list[int]] = []

    def targets(batch: Sequence[Rendered]) -> list[TopK]:
        seen.append([len(row.input_ids) for row in batch])
        return made(batch)

    cache = cache_in(tmp_path / "t")
    assert cache.fill(rows, targets) == len(rows)
    assert seen == [[5000], [1300, 1200, 1100], [1000, 30, 5, 5]]
    check(cache, rows)


def test_64_log_probabilities_take_at_most_400_bytes(tmp_path: Path) -> None:
    """All bytes of the folder, of rows with as few trained tokens as a sum has, and of long ones."""
    for n in (8, 200):
        rows = [Rendered([i, *range(n)], [-100, *range(n)]) for i in range(100)]
        ids = torch.arange(64).expand(n, 64)
        cache = cache_in(tmp_path / str(n), k=64)
        cache.fill(rows, lambda batch, ids=ids: [TopK(ids, torch.full(ids.shape, -4.2)) for _ in batch])
        size = sum(f.stat().st_size for f in (tmp_path / str(n)).iterdir())
        assert 384 < size / sum(row.trained_tokens for row in rows) <= 400


def test_a_kill_while_writing(tmp_path: Path) -> None:
    """What wasn't whole is computed again, whatever of it is on disk; what was whole is kept."""
    cache_in(tmp_path / "t").fill(ROWS[:2], made)
    whole = (tmp_path / "t" / "targets-00000.arrow").read_bytes()
    (tmp_path / "t" / "targets-00001.4194305.part").write_bytes(whole[: len(whole) // 2])
    cache = cache_in(tmp_path / "t")
    assert cache.fill(ROWS, made) == 1
    check(cache, ROWS)
    assert len(list((tmp_path / "t").iterdir())) == 2


def test_an_error_while_writing(tmp_path: Path) -> None:
    """Nothing is left of the file, and the next run computes its rows."""
    seen = 0

    def stopped(batch: Sequence[Rendered]) -> list[TopK]:
        nonlocal seen
        seen += 1
        if seen == 2:
            raise KeyboardInterrupt
        return made(batch)

    rows = [Rendered([i] * 3000, [-100] * 2999 + [i]) for i in range(3)]
    cache = cache_in(tmp_path / "t")
    with pytest.raises(KeyboardInterrupt):
        cache.fill(rows, stopped)
    assert not list((tmp_path / "t").iterdir())
    assert cache.fill(rows, made) == 3
    check(cache, rows)


@pytest.mark.parametrize(
    ("k", "model", "tokenizer", "message"),
    [
        (9, "m", "v", "of another quant.teacher_top_k; name another folder"),
        (8, "x", "v", "of another model"),
        (8, "m", "x", "of another tokenizer"),
        (9, "x", "v", "of another quant.teacher_top_k and another model"),
    ],
)
def test_a_cache_of_something_else(tmp_path: Path, k: int, model: str, tokenizer: str, message: str) -> None:
    cache_in(tmp_path / "t").fill(ROWS, made)
    with pytest.raises(UserError, match=message):
        cache_in(tmp_path / "t", k, model, tokenizer)


@pytest.mark.parametrize("size", [0, 10, 500])
def test_a_file_that_was_cut(tmp_path: Path, size: int) -> None:
    """It is named; without it its rows are computed again, and the other files are kept."""
    cache = cache_in(tmp_path / "t")
    cache.fill(ROWS[:2], made)
    cache.fill(ROWS, made)
    file = tmp_path / "t" / "targets-00000.arrow"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=r"targets-00000\.arrow is damaged .*delete this file"):
        cache_in(tmp_path / "t")
    file.unlink()
    again = cache_in(tmp_path / "t")
    assert again.fill(ROWS, made) == 2
    check(again, ROWS)


def test_a_cache_of_an_earlier_version(tmp_path: Path) -> None:
    """Its files are named and left alone."""
    for name in ("meta.json", "index.jsonl", "ids.bin", "log_probs.bin"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="written by an earlier version, in another format; name another folder"):
        cache_in(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
