"""What a finished run was made from, when its command is given again."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from gemma_tune.errors import UserError
from gemma_tune.run.inputs import digests_of, refuse_changed, refuse_outdated
from gemma_tune.run.media_used import LISTED, MEDIA, media_digest, media_used, write_list


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
    refuse_outdated(manifest.parent)
    _written_later(rows, manifest, "two")
    with pytest.raises(UserError, match=r"rows\.jsonl: this file has changed since .*overwrite=true"):
        refuse_outdated(manifest.parent)


def test_a_file_that_is_gone_does_not(done: tuple[Path, Path]) -> None:
    rows, manifest = done
    rows.unlink()
    refuse_outdated(manifest.parent)


def test_the_same_content_written_again_does_not(tmp_path: Path) -> None:
    rows, manifest = tmp_path / "rows.jsonl", tmp_path / "manifest.json"
    rows.write_text("one", encoding="utf-8")
    manifest.write_text(json.dumps({"inputs": digests_of([rows], hashed=True)}), encoding="utf-8")
    _written_later(rows, manifest, "one")
    refuse_outdated(manifest.parent)


def stored(folder: Path, names: list[str]) -> dict[str, str]:
    """Notes media as a run does."""
    used = media_used(names, folder)
    write_list(used, folder)
    return media_digest(used)


def test_media_are_told_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is written again, or lies elsewhere, is the same; with the same size and date it isn't opened."""
    files = [tmp_path / name for name in ("a.png", "b.png")]
    for file in files:
        file.write_bytes(file.name.encode())
    names = [str(file) for file in (*files, files[0])]
    before = stored(tmp_path, names)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[media_used.__module__], "content_key", lambda file: pytest.fail(f"{file} was opened"))
        assert stored(tmp_path, names) == before
    os.utime(files[0], ns=(1, 1))
    moved = files[1].rename(tmp_path / "c.png")
    assert stored(tmp_path, [names[0], str(moved)]) == before
    files[0].write_bytes(b"b.png")
    with pytest.raises(UserError, match=f"{MEDIA}: one of them has changed since .*resume_data_changed"):
        refuse_changed(before, stored(tmp_path, [names[0], str(moved)]), tmp_path)
    assert stored(tmp_path, []) == {} and not (tmp_path / LISTED).exists()


@pytest.mark.parametrize("stage", ["", "tuned"], ids=["run", "stage"])
def test_a_changed_medium_outdates_the_result(stage: str, tmp_path: Path) -> None:
    """By its name, also where its date is older; written again with the same content, or gone, it does not."""
    (tmp_path / stage).mkdir(exist_ok=True)
    for folder in {tmp_path, tmp_path / stage}:
        (folder / "manifest.json").write_text('{"inputs": {}}', encoding="utf-8")
    file, other = tmp_path / "ä b.png", tmp_path / "gone.png"
    file.write_bytes(b"one")
    other.write_bytes(b"one")
    stored(tmp_path / stage, [str(file), str(other)])
    refuse_outdated(tmp_path)
    other.unlink()
    os.utime(file, ns=(1, 1))
    refuse_outdated(tmp_path)
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    with pytest.raises(UserError, match=r"ä b\.png: this file has changed since .*overwrite=true"):
        refuse_outdated(tmp_path)
    (tmp_path / stage / LISTED).write_text("[]\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"{LISTED}:1: this line can't be read"):
        refuse_outdated(tmp_path)
