"""The exceptions that end a command with a message in place of a traceback."""

from __future__ import annotations


class RunError(Exception):
    """A run that can't continue or failed a check: the command ends with status 1 and this message."""


class UserError(Exception):
    """A user's mistake: each problem says what, where and how to fix it.

    The command line prints the problems without a traceback and ends with exit status 2.

    Args:
        *problems: One message each.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(problems))

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return f"{len(self.problems)} problems:\n" + "\n".join(f"  - {p}" for p in self.problems)
