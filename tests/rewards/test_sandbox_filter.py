"""The filter of system calls: its numbers are the kernel's, and it refuses."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest
from sandboxed import LIMITS

from gemma_tune.errors import UserError
from gemma_tune.rewards import sandbox_filter
from gemma_tune.rewards.sandbox import Sandbox
from gemma_tune.rewards.sandbox_filter import syscall_filter
from gemma_tune.rewards.sandbox_setup import find_sandbox


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap (bwrap) isn't installed: apt install bubblewrap")
    return find_sandbox()


@pytest.mark.parametrize(
    "call",
    [
        "unshare(0x10000000)", "setns(0, 0)", "mount(0, 0, 0, 0, 0)", "ptrace(16, 1, 0, 0)", "syscall(425, 8, 0)",
        "syncfs(0)", "setsockopt(0, 1, 7, 0, 0)",
    ],
)  # fmt: skip
def test_calls_that_lead_to_the_kernel_are_refused(sandbox: Sandbox, call: str) -> None:
    code = f"import ctypes\nc = ctypes.CDLL(None, use_errno=True)\nprint(c.{call}, ctypes.get_errno())"
    assert sandbox.run(code, LIMITS).output == b"-1 1\n"


def test_sync_does_nothing(sandbox: Sandbox) -> None:
    """`sync` returns nothing: only the call itself says that it was refused."""
    number = sandbox_filter._REFUSED["sync"][platform.machine() == "aarch64"]
    code = f"import ctypes\nc = ctypes.CDLL(None, use_errno=True)\nprint(c.syscall({number}), ctypes.get_errno())"
    assert sandbox.run(code, LIMITS).output == b"-1 1\n"


def test_asyncio_works_all_the_same(sandbox: Sandbox) -> None:
    """Its loop needs a pair of sockets."""
    code = "import asyncio\nasync def f(): await asyncio.sleep(0); return 5\nprint(asyncio.run(f()))"
    assert sandbox.run(code, LIMITS).output == b"5\n"


def test_the_filter_knows_two_machines() -> None:
    assert all(len(syscall_filter(machine)) % 8 == 0 for machine in ("x86_64", "aarch64"))
    with pytest.raises(UserError, match="x86_64 and aarch64, and this is riscv64"):
        syscall_filter("riscv64")


@pytest.mark.parametrize(
    ("machine", "header"), [("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")]
)
def test_numbers_of_calls_are_those_of_the_kernel(machine: str, header: str) -> None:
    file = Path("/usr/include", header)
    if not file.is_file():
        pytest.skip(f"{file} isn't installed (linux-libc-dev)")
    which = ("x86_64", "aarch64").index(machine)
    lines = [line.split() for line in file.read_text().splitlines() if line.startswith("#define __NR")]
    numbers = {words[1].removeprefix("__NR3264_").removeprefix("__NR_"): words[2] for words in lines if len(words) > 2}
    ours = {name: pair[which] for name, pair in sandbox_filter._REFUSED.items() if pair[which] is not None}
    ours |= {"clone": sandbox_filter._CLONE[machine], "clone3": sandbox_filter._CLONE3}
    assert {name: str(number) for name, number in ours.items()} == {name: numbers.get(name) for name in ours}
