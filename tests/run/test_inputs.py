"""What a finished run was made from, when its command is given again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gemma_tune.errors import UserError
from gemma_tune.run.inputs import digests_of, refuse_outdated


@pytest.fixture(params=[True, False], ids=["digest", "streamed"])
def done(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A manifest and the file that it lists, older than it."""
    rows, manifest = tmp_path / "rows.jsonl", tmp_path / "manifest.json"
    rows.write_text("one", encoding="utf-8")
    inputs = digests_of([rows], hashed=request.param)
    manifest.write_text(json.dumps({"inputs": inputs | {"google/gemma": "commit abc"}}), encoding="utf-8")
    os.utime(manifest, ns=(rows.stat().st_mtime_ns + 10, rows.stat().st_mtime_ns + 10))
    return rows, manifest


def _written_later(rows: Path, manifest: Path, text: str) -> None:
    rows.write_text(text, encoding="utf-8")
    later = manifest.stat().st_mtime_ns + 1_000_000
    os.utime(rows, ns=(later, later))


def test_a_changed_file_outdates_the_result(done: tuple[Path, Path]) -> None:
    rows, manifest = done
    refuse_outdated(manifest)
    _written_later(rows, manifest, "two")
    with pytest.raises(UserError, match=r"rows\.jsonl: this file has changed since .*overwrite=true"):
        refuse_outdated(manifest)


def test_a_file_that_is_gone_does_not(done: tuple[Path, Path]) -> None:
    rows, manifest = done
    rows.unlink()
    refuse_outdated(manifest)


def test_the_same_content_written_again_does_not(tmp_path: Path) -> None:
    rows, manifest = tmp_path / "rows.jsonl", tmp_path / "manifest.json"
    rows.write_text("one", encoding="utf-8")
    manifest.write_text(json.dumps({"inputs": digests_of([rows], hashed=True)}), encoding="utf-8")
    _written_later(rows, manifest, "one")
    refuse_outdated(manifest)
