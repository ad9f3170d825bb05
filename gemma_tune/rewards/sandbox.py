"""Runs a model's code where it can do no harm: in bubblewrap (`bwrap`), without network, your files, or privileges.

Each run has namespaces of its own (user, mount, process, network, IPC, UTS, cgroup), no capabilities, an empty
environment, a system call filter (sandbox_filter.py) and limits. It sees, read-only, the interpreter and its library
folder, all of /usr/lib and /usr/lib64, the time zones, the linker's cache, /proc and /dev; and an empty /tmp in memory,
the only place it can write to. Installed Python packages (site-packages, dist-packages) are hidden.

bwrap runs as an unprivileged user: process limits don't apply to root, so root drops its privileges first, by `setpriv`
and not by subprocess's `user=`, which forks this process: with 4 GiB in use that took 258 ms, without it 7 ms.

Memory: the filter allows threads but no other process, so RLIMIT_AS limits the code's memory, except files in /tmp and
the buffers of pipes and socket pairs. Those buffers are limited by the number of descriptors: a pipe holds at most
1 MiB, a socket pair 0.4 MiB, since the filter forbids larger ones; the most that could be held was 34 MiB. A batch can
use `workers × (memory_mb + file_mb + 34 MiB)`; if memory runs out, the kernel kills these processes first (`choom`).
Only limited by time: empty files in /tmp, about 1 KB each.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from gemma_tune.rewards.sandbox_driver import BROKEN, COMPILED, DRIVER, STARTED

# "nobody": no useful process runs as it, and it owns no files.
NOBODY = 65534
# Seconds to wait for bwrap and the interpreter to start; it takes 0.06 s, more on a busy machine.
START = 30.0
_FILES = 64
_BYTES_AT_ONCE = 1 << 16
MIB = 1 << 20


class SandboxError(RuntimeError):
    """The sandbox itself didn't start; this says nothing about the code."""


@dataclass(frozen=True)
class Limits:
    """The limits of one run.

    Attributes:
        seconds: Time after the interpreter has started.
        memory_mb: MiB of address space.
        threads: Threads, including the first.
        file_mb: MiB of files in total.
        output: Bytes of output; more end the run.
    """

    seconds: float
    memory_mb: int
    threads: int
    file_mb: int
    output: int

    def as_rlimits(self) -> dict[str, int]:
        """The limits for setrlimit(2), by their names in the module resource."""
        return {
            "RLIMIT_AS": self.memory_mb * MIB,
            # Counted in the sandbox's own user namespace (before Linux 5.14: for the whole user), including bwrap's
            # first process.
            "RLIMIT_NPROC": self.threads + 1,
            "RLIMIT_FSIZE": self.file_mb * MIB,
            "RLIMIT_CPU": int(self.seconds * self.threads) + 2,  # of all threads in total
            "RLIMIT_CORE": 0,
            "RLIMIT_NOFILE": _FILES,
            "RLIMIT_MSGQUEUE": 0,
        }


@dataclass(frozen=True)
class SandboxResult:
    """The result of one run.

    Attributes:
        output: The output, unchecked: the code may have written anything.
        status: The exit status; None if it was killed.
        compiled: Whether the code compiled.
        timed_out: Whether it exceeded its time.
        seconds: Running time, without the start.
    """

    output: bytes
    status: int | None
    compiled: bool
    timed_out: bool
    seconds: float


@dataclass(frozen=True)
class Sandbox:
    """A command that starts the driver in the sandbox.

    Attributes:
        start: Programs and options before bwrap's arguments.
        places: The visible files, as arguments of bwrap.
        python: The interpreter.
        system_calls: The system call filter.
    """

    start: Sequence[str]
    places: Sequence[str]
    python: str
    system_calls: bytes

    def run(self, code: str, limits: Limits, stdin: str = "", call: Mapping[str, Any] | None = None) -> SandboxResult:
        """Runs code as a program, or calls a function of it.

        Nothing that the code does makes it raise, or take much longer than `limits.seconds`.

        Args:
            code: Python source.
            limits: The limits of the run.
            stdin: The standard input of a program.
            call: `entry_point`, `args` and `kwargs` of a function call; None for a program.

        Returns:
            A program's standard output, or the call's result as JSON.

        Raises:
            SandboxError: The sandbox didn't start.
        """
        job = json.dumps({"code": code, "call": call, "limits": limits.as_rlimits()}).encode()
        given = f"{len(job):08x}".encode() + job + stdin.encode("utf-8", errors="surrogatepass")
        with self._started(limits.file_mb) as process:
            return _talk(process, given, limits)

    @contextlib.contextmanager
    def _started(self, file_mb: int) -> Iterator[subprocess.Popen[bytes]]:
        """The process of bwrap; on exit, everything in the sandbox is killed.

        The kernel also kills it when this thread ends (`--die-with-parent`).
        """
        with contextlib.ExitStack() as open_ends:
            filter_in, filter_out = os.pipe()
            info_in, info_out = os.pipe()
            reading = open_ends.enter_context(os.fdopen(info_in, "rb"))
            with os.fdopen(filter_in, "rb"), os.fdopen(info_out, "wb"), os.fdopen(filter_out, "wb") as writing:
                writing.write(self.system_calls)  # it fits into a pipe's buffer
                writing.close()
                command = [*self.start, *self._options(filter_in, info_out, file_mb), self.python, "-s", "-c", DRIVER]
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=(filter_in, info_out),
                    env={},  # the code can read bwrap's own environment in /proc/1/environ
                    cwd="/",
                    bufsize=0,
                    process_group=0,  # Ctrl-C reaches only this process, which then ends the sandbox
                )
            open_ends.enter_context(process)  # closes its pipes and waits
            first = None
            try:
                first = _first_process(reading)
                yield process
            finally:
                _end(process, first)

    def _options(self, filter_fd: int, info_fd: int, file_mb: int) -> list[str]:
        return [
            "--unshare-all", "--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY), "--cap-drop", "ALL",
            "--die-with-parent", "--new-session", "--hostname", "sandbox",
            # Fixed string hashes, so that the same code always gets the same score.
            "--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--setenv", "PYTHONUTF8", "1",
            "--setenv", "PYTHONDONTWRITEBYTECODE", "1", "--setenv", "HOME", "/tmp",
            *self.places, "--proc", "/proc", "--dev", "/dev",
            "--size", str(file_mb * MIB), "--tmpfs", "/tmp", "--chdir", "/tmp",
            # bwrap's first process has no filter and no limits: the code could control it through /proc/1/mem.
            "--remount-ro", "/proc", "--remount-ro", "/dev", "--remount-ro", "/",
            "--seccomp", str(filter_fd), "--info-fd", str(info_fd),
        ]  # fmt: skip


def _first_process(reading: IO[bytes]) -> int | None:
    """A pidfd of the sandbox's first process, whose death kills all others in it; None if bwrap didn't start."""
    try:
        # bwrap writes it before anything runs inside; if bwrap fails, the pipe ends instead.
        return os.pidfd_open(json.loads(reading.read())["child-pid"])
    except (ValueError, OSError):
        return None


def _end(process: subprocess.Popen[bytes], first: int | None) -> None:
    """Kills the sandbox and waits until all of its processes have ended."""
    process.kill()
    if first is None:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(first, signal.SIGKILL)
        with selectors.DefaultSelector() as selector:
            selector.register(first, selectors.EVENT_READ)
            selector.select(START)
    finally:
        os.close(first)


def _talk(process: subprocess.Popen[bytes], given: bytes, limits: Limits) -> SandboxResult:
    """Writes `given` and reads the output, until bwrap has ended or a limit is exceeded."""
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    back, most, rest = bytearray(), limits.output + len(STARTED + COMPILED), memoryview(given)
    deadline, started, timed_out = time.monotonic() + START, False, False
    ended = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(ended, selectors.EVENT_READ)
            awaited = {process.stdout.fileno(), ended}
            while awaited and len(back) <= most:
                for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                    if key.fileobj is process.stdin:
                        rest = _hand_in(process.stdin, rest)
                        if rest:
                            continue
                    elif key.fileobj is process.stdout and (part := os.read(key.fd, _BYTES_AT_ONCE)):
                        back += part
                        continue
                    selector.unregister(key.fileobj)
                    awaited.discard(key.fd)
                    if key.fileobj is process.stdin:
                        process.stdin.close()
                if back and not started:
                    started, deadline = True, time.monotonic() + limits.seconds
                if time.monotonic() >= deadline:
                    timed_out = True
                    break
    finally:
        os.close(ended)
    over = timed_out or len(back) > most
    if not started:
        process.kill()
        message = process.stderr.read(_BYTES_AT_ONCE).decode(errors="replace").strip()
        raise SandboxError(message or f"no output in {START:.0f} s")
    status = None if over else process.wait()
    seconds = time.monotonic() - (deadline - limits.seconds)
    return SandboxResult(bytes(back[2:]), status, back[1:2] != BROKEN, timed_out, seconds)


def _hand_in(stdin: IO[bytes], rest: memoryview) -> memoryview:
    """Writes a part and returns the rest; empty if the other side has stopped reading."""
    try:
        return rest[os.write(stdin.fileno(), rest[:_BYTES_AT_ONCE]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[:0]
