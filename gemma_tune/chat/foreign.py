"""Renders chat templates that others have written, in a child process with limits on time and memory.

A template is a program: it can loop for ever or make a text of gigabytes. The sandbox of Jinja keeps it from files and
code; the limits here keep it from the machine. Also run in a process of its own (`child.py`): the child reads one
line of JSON a conversation and answers each with one line.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import subprocess
import sys
import weakref
from collections.abc import Mapping
from datetime import datetime
from typing import IO, Any

from jinja2 import TemplateError

from gemma_tune.child import python_module
from gemma_tune.collector import look_as_usual

# Characters of a template; seconds and bytes of memory of one rendering; characters of its text
LONGEST = 1 << 20
_SECONDS, _MEMORY, _TEXT = 1.0, 512 << 20, 8 << 20
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "HOME")
_START = 20.0  # seconds until the child is ready, on a busy machine


class ForeignTemplate:
    """A template of others, rendered in a child process; the child ends with this object.

    Args:
        template: Its source.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        self._child: subprocess.Popen[bytes] | None = None

    def render(self, values: Mapping[str, Any]) -> str:
        """The text.

        Args:
            values: What the template is given, as JSON can hold it: `messages`, `tools`, `bos_token`, …

        Raises:
            jinja2.TemplateError: It isn't a valid template, rejects the conversation, or takes too long or too much.
        """
        if len(self._template) > LONGEST:
            raise TemplateError(f"the template has more than {LONGEST:,} characters")
        child = self._child if self._child and self._child.poll() is None else self._start()
        answer = _asked(child, dict(values), _SECONDS)
        if answer is None:
            _end(child)
            self._child = None
            raise TemplateError(f"the template takes more than {_SECONDS:g} seconds or {_MEMORY >> 20} MiB")
        if "error" in answer:
            raise TemplateError(answer["error"])
        return str(answer["text"])

    def _start(self) -> subprocess.Popen[bytes]:
        self._child = child = subprocess.Popen(
            python_module("gemma_tune.chat.foreign"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        weakref.finalize(self, _end, child)
        if _asked(child, self._template, _START) is None:
            _end(child)
            raise TemplateError("the child process that renders templates doesn't start")
        return child


def _asked(child: subprocess.Popen[bytes], what: Any, seconds: float) -> dict[str, Any] | None:
    """The child's answer to one line; None where it gives none in time, or too long a one."""
    assert child.stdin and child.stdout
    back = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        try:
            child.stdin.write(json.dumps(what).encode() + b"\n")
            while not back.endswith(b"\n"):
                part = os.read(child.stdout.fileno(), 1 << 16) if selector.select(seconds) else b""
                back += part
                if not part or len(back) > 12 * _TEXT:
                    return None
        except OSError:  # it has ended
            return None
    found: dict[str, Any] = json.loads(back)
    return found


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe:
            pipe.close()


def _answer(template: Any, given: dict[str, Any]) -> dict[str, str]:
    parts: list[str] = []
    size = 0
    try:
        for part in template.generate(strftime_now=lambda form: datetime.now().strftime(form), **given):
            parts.append(part)
            size += len(part)
            if size > _TEXT:
                return {"error": f"the template makes a text of more than {_TEXT:,} characters"}
    except MemoryError:
        return {"error": f"the template takes more than {_MEMORY >> 20} MiB"}
    except Exception as error:  # a foreign template may fail in any way
        return {"error": f"{type(error).__name__}: {error}"[:1000]}
    return {"text": "".join(parts)}


def main(lines: IO[bytes], out: IO[bytes]) -> None:
    """The child: the template in the first line, a conversation in each of the others."""
    from gemma_tune.chat.engine import sandboxed

    look_as_usual()  # macros that call each other leave cycles, which hold the conversation
    source = json.loads(lines.readline())
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out.write(b"{}\n")
    out.flush()
    template = error = None
    for line in lines:
        given = json.loads(line)
        try:
            template = template or sandboxed(source)
        except Exception as failed:  # no valid template
            error = {"error": f"{type(failed).__name__}: {failed}"[:1000]}
        out.write(json.dumps(error or _answer(template, given)).encode() + b"\n")
        out.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
