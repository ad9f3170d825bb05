"""Finds the programs for the sandbox, an interpreter that works in it, and the files that the interpreter needs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from gemma_tune.errors import UserError
from gemma_tune.rewards.sandbox import MIB, NOBODY, START, Limits, Sandbox, SandboxError
from gemma_tune.rewards.sandbox_filter import syscall_filter

_TRIAL = "import sys\ndef version(): return sys.version"


def find_sandbox() -> Sandbox:
    """The sandbox of this machine, after a test run.

    Its interpreter is the running one without its packages, or the system's python3 if the former is in a folder that
    only its owner may enter; a different Python version is reported once on stderr.

    Raises:
        UserError: It is missing or doesn't work; the message says how to fix it.
    """
    filter_ = syscall_filter()
    start = _start_of_command()
    problem = "no interpreter that other users may run"
    call = {"entry_point": "version", "args": [], "kwargs": {}}
    for python, version in _interpreters():
        sandbox = Sandbox(start, _places(python), str(python), filter_)
        try:
            found = sandbox.run(_TRIAL, Limits(START, 512, 4, 1, MIB), call=call)
            # Otherwise it has found another libpython, that of a different interpreter.
            if found.status == 0 and version in (None, found.output.decode()):
                _say_version(json.loads(found.output))
                return sandbox
            problem = f"{python} doesn't work in it"
        except SandboxError as error:
            problem = str(error)
    raise UserError(
        f"reward.code: the sandbox doesn't start ({problem}), and a model's code never runs outside of it. If "
        "namespaces are refused, allow them (sysctl -w kernel.unprivileged_userns_clone=1, or "
        "kernel.apparmor_restrict_unprivileged_userns=0; a container: --security-opt seccomp=unconfined --security-opt "
        "systempaths=unconfined), or leave reward.code.weight at 0. If this interpreter is in root's home, "
        "/usr/bin/python3 is needed, too."
    )


@cache
def _say_version(version: str) -> None:
    """Reports once on stderr if the sandbox's Python has another major or minor version."""
    found, own = version.split(".")[:2], [str(part) for part in sys.version_info[:2]]
    if found != own:
        print(
            f"reward.code: solutions run in Python {'.'.join(found)}, not in this Python {'.'.join(own)}, since "
            f"the sandbox can't use its folder ({sys.base_prefix}).",
            file=sys.stderr,
        )


def _start_of_command() -> list[str]:
    """bwrap, wrapped by setpriv (drops root's privileges) and choom (the first to be killed if memory runs out)."""
    wanted = ["bwrap", "choom"] + ["setpriv"] * (os.getuid() == 0)
    missing = [name for name in wanted if shutil.which(name) is None]
    if missing:
        packages = ["bubblewrap" if name == "bwrap" else "util-linux" for name in missing]
        raise UserError(
            f"reward.code: a model's code only runs in a sandbox, which needs {' and '.join(missing)}; install "
            f"it (apt install {' '.join(dict.fromkeys(packages))}), or leave reward.code.weight at 0."
        )
    paths = {name: str(shutil.which(name)) for name in wanted}
    start = [paths["choom"], "-n", "1000", "--"]
    if "setpriv" in paths:
        start += [paths["setpriv"], f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return [*start, paths["bwrap"]]


def _interpreters() -> Iterator[tuple[Path, str | None]]:
    """Interpreters, the best first, with their version as JSON if known."""
    own = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    for python, version in ((own, json.dumps(sys.version)), (Path("/usr/bin/python3"), None)):
        if os.access(python, os.X_OK):  # False for non-root users if it is in root's home
            yield python.resolve(), version


def _places(python: Path) -> list[str]:
    """The files that the interpreter needs: program, libraries and system libraries, without installed packages."""
    system = [Path("/usr", name) for name in ("lib", "lib64") if Path("/usr", name).is_dir()]
    folders = [*system, *(f for f in [python.parent.parent / "lib"] if f not in system)]
    places = [str(part) for folder in folders for part in ("--ro-bind", folder, folder)]
    for link in (Path("/lib"), Path("/lib64")):
        if link.is_symlink():
            places += ["--symlink", os.readlink(link), str(link)]
        elif link.is_dir():
            places += ["--ro-bind", str(link), str(link)]
    places += ["--ro-bind", str(python), str(python)]
    for file in ("/etc/ld.so.cache", "/usr/share/zoneinfo"):
        places += ["--ro-bind-try", file, file]
    for folder in folders:
        for packages in sorted({*folder.glob("python3*/site-packages"), *folder.glob("python3*/dist-packages")}):
            places += ["--size", "4096", "--tmpfs", str(packages), "--remount-ro", str(packages)]
    return places
