"""The inputs of a run: the digest of each file, and whether they are what the run began with. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from gemma_tune.errors import UserError
from gemma_tune.run.manifest import file_digest
from gemma_tune.run.media_used import MEDIA, changed_media
from gemma_tune.run.place import stages
from gemma_tune.untrusted import read_object

REPEAT = "repeat the run with overwrite=true."
_OUTDATED = (
    "{}: this file has changed since the run in {} was done, so its result is that of the earlier content. Repeat the "
    "run with overwrite=true, or name another output_dir."
)
_DIGEST = re.compile("[0-9a-f]{64}")  # SHA-256; a streamed file has size and date


def digests_of(paths: Iterable[Path | None], hashed: bool) -> dict[str, str]:
    """The digest of each file, and of every file directly in a folder.

    Args:
        paths: Files and folders.
        hashed: Whether to give a digest; otherwise size and date, for files that are streamed.
    """
    found: dict[str, str] = {}
    for path in paths:
        if path is not None:
            for file in sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]:
                stat = file.stat()
                seen = f"{stat.st_size} bytes, changed {stat.st_mtime_ns} ns after 1970; not read whole"
                found[str(file)] = file_digest(file) if hashed else seen
    return found


def stored_inputs(manifest: Path) -> dict[str, str]:
    """Path → digest of every input file that a manifest.json lists; none of a run killed between its first two files.

    Raises:
        UserError: The file is damaged.
    """
    try:
        return {str(path): str(digest) for path, digest in read_object(manifest)["inputs"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{manifest} can't be read ({error}); {REPEAT}") from error


def is_digest(said: str) -> bool:
    """Whether a manifest has the digest of an input's content, and not size and date, a commit or a revision."""
    return _DIGEST.fullmatch(said) is not None


def refuse_outdated(folder: Path) -> None:
    """Raises UserError where an input of a finished run has another content since, a medium of its rows included.

    Only files that are newer than the manifest are read again, and media whose size or time of change is another one;
    those that are gone are not asked for.
    """
    manifest = folder / "manifest.json"
    for name, digest in stored_inputs(manifest).items():
        file = Path(name)
        newer = file.is_file() and file.stat().st_mtime_ns > manifest.stat().st_mtime_ns
        if newer and digests_of([file], hashed=is_digest(digest))[name] != digest:
            raise UserError(_OUTDATED.format(file, folder))
    for place in (folder, *stages(folder)):
        if changed := changed_media(place):
            raise UserError(_OUTDATED.format(changed, place))


def refuse_changed(before: Mapping[str, str], now: Mapping[str, str], folder: Path) -> None:
    """Raises UserError where an input of a run that goes on has changed, is new, or is gone."""
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if not before or not changed:
        return
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    first = changed[0]
    how = "has changed" if first in before and first in now else "is new" if first in now else "is no longer read"
    which = "one of them" if first == MEDIA else "this file"
    raise UserError(
        f"{first}{more}: {which} {how} since the run in {folder} began, and the rest would be trained with another "
        "content. Put it back as it was; or set train.resume_data_changed=true, or overwrite=true to begin anew."
    )
