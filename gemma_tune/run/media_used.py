"""The images, sounds and videos of a run's rows: one digest for the manifest, and a list that finds changed ones later.

The list, media.jsonl in the run folder, has a line for each file: its path, size, time of change, and what tells its
content (media/content.py). Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gemma_tune.errors import UserError
from gemma_tune.media.content import content_key
from gemma_tune.run.manifest import atomic_write
from gemma_tune.untrusted import read_lines

MEDIA = "images, sounds and videos of the rows"
LISTED = "media.jsonl"
_KEPT = ("size", "changed", "key")


@dataclass(frozen=True)
class UsedFile:
    """A file as the run saw it.

    Attributes:
        size: In bytes; -1 of a file that wasn't there.
        changed: Its time of change, in nanoseconds after 1970.
        key: What tells its content.
    """

    size: int
    changed: int
    key: str

    @property
    def version(self) -> tuple[int, int]:
        """Size and time of change: where they are the same, so is the content."""
        return self.size, self.changed

    def is_now(self, path: str) -> bool:
        """Whether the file has this content; it is read only where its version is another one."""
        return self.version == _version(path) or content_key(path) == self.key


def media_used(paths: Iterable[str], folder: Path) -> dict[str, UsedFile]:
    """The media that rows name, in their order; those that the folder's list has as they are now aren't read again.

    Args:
        paths: The files, which may stand there several times.
        folder: The run folder, perhaps with the list of an interrupted run.

    Raises:
        UserError: The list is damaged.
    """
    before, found = dict(listed_media(folder)), dict[str, UsedFile]()
    for path in dict.fromkeys(paths):
        seen, version = before.get(path), _version(path)
        found[path] = seen if seen and seen.version == version else UsedFile(*version, content_key(path))
    return found


def media_digest(used: Mapping[str, UsedFile]) -> dict[str, str]:
    """One digest of all, for the manifest; empty without any. Their places don't count, so that a folder may move."""
    if not used:
        return {}
    keys = "\n".join(file.key for file in used.values())
    return {MEDIA: f"{len(used)} files, content {hashlib.sha256(keys.encode()).hexdigest()[:32]}"}


def write_list(used: Mapping[str, UsedFile], folder: Path) -> None:
    """Writes the folder's list; without media there is none.

    Raises:
        OSError: It can't be written.
    """
    if used:
        lines = (json.dumps(dict(path=path, **vars(file)), ensure_ascii=False) for path, file in used.items())
        atomic_write(folder / LISTED, "".join(f"{line}\n" for line in lines))
    else:
        (folder / LISTED).unlink(missing_ok=True)


def changed_media(folder: Path) -> str | None:
    """The first file of the folder's list whose content is another one now; those that are gone are not asked for.

    Raises:
        UserError: The list is damaged.
    """
    return next((path for path, file in listed_media(folder) if os.path.exists(path) and not file.is_now(path)), None)


def listed_media(folder: Path) -> Iterator[tuple[str, UsedFile]]:
    """Path and state of each file of the folder's list.

    Raises:
        UserError: The list is damaged.
    """
    file = folder / LISTED
    if not file.is_file():
        return
    try:
        yield from ((str(line["path"]), UsedFile(*(line[name] for name in _KEPT))) for line in read_lines(file))
    except (OSError, LookupError) as error:
        raise UserError(f"{file}: it can't be read ({error!r}); delete it.") from error


def _version(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns
