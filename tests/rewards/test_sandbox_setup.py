"""What stands in the sandbox's way is said at the start; who may use it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandboxed import needs_bwrap

from gemma_tune.errors import UserError
from gemma_tune.rewards import sandbox_setup
from gemma_tune.rewards.sandbox_setup import find_sandbox


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everyone may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@needs_bwrap
@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")
def test_it_works_for_an_ordinary_user() -> None:
    code = (
        "import concurrent.futures.thread, os\n"
        "from gemma_tune.config.reward import CodeReward\n"
        "from gemma_tune.rewards import base, code\n"
        "os.setgroups([]); os.setgid(1000); os.setuid(1000)\n"
        "task = base.Task('f:1', row={'tests': [{'input': '', 'output': '65534 0'}]})\n"
        "said = base.Completion('import os\\nprint(os.getuid(), len(os.getgroups()))')\n"
        "print(code.prepare(CodeReward())([said], [task]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.returncode) == ("[1.0]\n", 0), done.stderr


@needs_bwrap
@pytest.mark.parametrize("other", [True, False])
def test_another_version_of_python_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], other: bool
) -> None:
    """The system's own stands in where this one's can't be run by others."""
    python = Path("/usr/bin/python3").resolve()
    if not python.is_file():
        pytest.skip("there is no /usr/bin/python3")
    code = "import sys; print(*sys.version_info[:2], sep='.')"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setattr(sandbox_setup, "_interpreters", lambda: iter([(python, None)]))
    monkeypatch.setattr(sys, "version_info", (2, 7) if other else tuple(map(int, found.split("."))))
    sandbox_setup._say_version.cache_clear()
    for _ in range(2):
        find_sandbox()
    said = capsys.readouterr().err
    assert said.count(f"solutions run in Python {found}, not in this Python 2.7") == other
    assert bool(said) == other


def test_without_bubblewrap_it_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt install bubblewrap util-linux"):
        find_sandbox()


def test_where_namespaces_are_forbidden_it_refuses(monkeypatch: pytest.MonkeyPatch, public: Path) -> None:
    fake = public / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{public}:{os.environ['PATH']}")
    with pytest.raises(UserError, match=r"setting up uid map: Permission denied.*unprivileged_userns"):
        find_sandbox()
