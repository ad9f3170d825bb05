"""The exceptions that end a command with a message in place of a traceback, and how messages quote what was read.

What a user or a file gives can be of any length and hold any character: a message quotes a bounded part of it, as text
that a terminal shows and doesn't obey.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

# Characters of a quoted value, of a whole message; messages of one error, names in a list.
_QUOTED, _MESSAGE, _MESSAGES, _NAMES = 200, 2000, 200, 20
# What a terminal would obey: all control characters but the line break and the tab.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shortened(text: str, most: int = _QUOTED) -> str:
    """The text, or its beginning and its end where it has more than `most` characters, with the number left out."""
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end]} … ({len(text) - most:,} characters left out) … {text[-end:]}"


def quoted(value: Any, most: int = _QUOTED) -> str:
    """A value as Python writes it, `shortened`."""
    if isinstance(value, str):  # without a copy of all of it
        return shortened(repr(value if len(value) <= 2 * most else value[:most] + value[-most:]), most) + _of(
            value, most
        )
    try:
        return shortened(repr(value), most)
    except (ValueError, RecursionError):  # an int of thousands of digits; lists in lists in lists
        return f"a value ({type(value).__name__}) that is too large to be shown"


def _of(value: str, most: int) -> str:
    return f" (in all {len(value):,} characters)" if len(value) > 2 * most else ""


def listed(names: Iterable[Any], most: int = _NAMES) -> str:
    """Names with commas; of many the first ones and how many there are more."""
    found = [shortened(str(name)) for name in names]
    rest = f" and {len(found) - most:,} more" if len(found) > most else ""
    return ", ".join(found[:most]) + rest


def bounded(message: str) -> str:
    """A message of at most about 2,000 characters, none of which a terminal obeys."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", shortened(message, _MESSAGE))


class RunError(Exception):
    """A run that can't continue or failed a check: the command ends with status 1 and this message."""

    def __str__(self) -> str:
        return bounded(super().__str__())


class EndedByOthers(RunError):
    """Another process of the run has ended, so this one does: nothing goes on after it."""


class FailedTogether(RunError):
    """What all processes do at once has failed on one of them: it has on all."""


class UserError(Exception):
    """A user's mistake: each problem says what, where and how to fix it.

    The command line prints the problems without a traceback and ends with exit status 2.

    Args:
        *problems: One message each; they are `bounded`, and of very many the first ones stay.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = [bounded(problem) for problem in problems[:_MESSAGES]]
        if len(problems) > _MESSAGES:
            self.problems.append(f"and {len(problems) - _MESSAGES:,} more of them.")
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, ...]]:
        """For another process: as it was made."""
        return type(self), tuple(self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return f"{len(self.problems)} problems:\n" + "\n".join(f"  - {p}" for p in self.problems)


def first_line(error: BaseException) -> str:
    """The first line of what an exception of others says, at most 300 characters; of one without words its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def near(word: str, words: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """The words closest to `word`, best first; letter case and `-` for `_` do not count."""
    plain = {w.lower().replace("-", "_"): w for w in words}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), plain, n=n, cutoff=cutoff)
    return [plain[f] for f in found]


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`" Did you mean X?"`, or nothing where no word is near."""
    found = near(word, words)
    return f" Did you mean {found[0]}?" if found else ""
