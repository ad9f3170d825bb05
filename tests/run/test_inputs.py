"""What a finished run was made from, when its command is given again."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from gemma_tune.errors import UserError
from gemma_tune.run.inputs import MEDIA, digests_of, media_digest, refuse_changed, refuse_outdated


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


def test_media_are_told_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is written again, or lies elsewhere, is the same; with the same sizes and dates none is opened."""
    manifest, files = tmp_path / "manifest.json", [tmp_path / name for name in ("a.png", "b.png")]
    for file in files:
        file.write_bytes(file.name.encode())
    names = [str(file) for file in (*files, files[0])]
    before = media_digest(names, manifest)
    manifest.write_text(json.dumps({"inputs": before}), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(
            sys.modules[media_digest.__module__], "content_key", lambda file: pytest.fail(f"{file} was opened")
        )
        assert media_digest(names, manifest) == before
    os.utime(files[0], ns=(1, 1))
    moved = files[1].rename(tmp_path / "c.png")
    assert media_digest([names[0], str(moved)], manifest) == before
    files[0].write_bytes(b"b.png")
    with pytest.raises(UserError, match=f"{MEDIA}: one of them has changed since .*resume_data_changed"):
        refuse_changed(before, media_digest([names[0], str(moved)], manifest), tmp_path)
    assert media_digest([], manifest) == {}
