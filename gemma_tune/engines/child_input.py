"""What a process that `child_server` starts does first and last: it reads its options, and ends when its input ends."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO


def options_and_answer() -> tuple[dict[str, Any], TextIO]:
    """The options, and where the one line of the answer goes; all other output goes to stderr from now on."""
    options = json.loads(sys.stdin.readline())
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return options, answer


def end_with_input() -> None:
    """Waits for the end of the input, and ends the process at once: there is nothing to save."""
    # sys.stdin.read() in a thread would hold a lock that the interpreter's end waits for
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)
