"""What code in the sandbox can't reach, with the filter of system calls and, where another layer is there, without."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sandboxed import LIMITS, SHORT, needs_bwrap, printed, watched

from gemma_tune.rewards.sandbox import Sandbox
from gemma_tune.rewards.sandbox_setup import find_sandbox

pytestmark = needs_bwrap
ALLOW_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
# Forks up to 200 times, each child for good, and says how many there are.
FORKS = """
import os, time
made = 0
for _ in range(200):
    try:
        if os.fork() == 0:
            os.setsid()
            time.sleep(1000)
        made += 1
    except OSError:
        break
print(made, flush=True)
"""


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return find_sandbox()


@pytest.fixture
def unfiltered(sandbox: Sandbox) -> Sandbox:
    """All system calls are let through: namespaces, mounts and limits alone."""
    return dataclasses.replace(sandbox, system_calls=ALLOW_ALL)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder in /tmp that everyone may read and write, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_it_sees_only_what_the_interpreter_needs(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_KEY", "canary-in-the-environment")
    code = """
import os
print(*sorted(os.listdir("/")), os.listdir("/tmp"), os.path.exists("/usr/bin/sh"))
print(any(b"canary" in open(f"/proc/{p}/environ", "rb").read() for p in os.listdir("/proc") if p.isdigit()))
for name in ("gemma_tune", "numpy", "torch"):
    try:
        __import__(name)
        print(name)
    except ImportError:
        pass
print(os.getuid(), os.getgid(), os.getgroups(), len([p for p in os.listdir("/proc") if p.isdigit()]))
"""
    first, canary, who = printed(sandbox.run(code, LIMITS)).split("\n")
    assert set(first.split()[:-2]) <= {"dev", "etc", "lib", "lib64", "proc", "tmp", "usr", sandbox.python.split("/")[1]}
    assert first.split()[-2:] == ["[]", "False"]
    assert (canary, who) == ("False", "65534 65534 [] 2")


def test_only_tmp_can_be_written_to(unfiltered: Sandbox) -> None:
    code = """
import os
places = ["/", "/dev", "/dev/shm", "/etc", "/usr", "/usr/lib", "/tmp"]
places += [os.path.join(top, d) for top in ("/usr/lib", "/dev") for d in os.listdir(top) if d != "fd"]
for place in places:
    try:
        open(os.path.join(place, "canary"), "w").close()
        print(place)
    except OSError:
        pass
for file in ("/proc/1/mem", "/proc/self/oom_score_adj", "/proc/1/oom_score_adj", "/proc/sys/kernel/hostname"):
    try:
        open(file, "r+b").close()
        print(file)
    except OSError:
        pass
print(open("/proc/self/oom_score_adj").read())
"""
    assert printed(unfiltered.run(code, LIMITS)) == "/tmp\n1000"


def test_files_are_bounded_each_and_together(unfiltered: Sandbox) -> None:
    code = """
written = 0
for i in range(100):
    with open(f"/tmp/{i}", "wb", buffering=0) as file:
        try:
            for _ in range(1000):
                written += file.write(bytes(1 << 16))
        except OSError:
            pass
print(written)
"""
    written = int(printed(unfiltered.run(code, LIMITS)))
    assert 2 << 20 < written <= 4 << 20


@pytest.mark.parametrize(
    "grow",
    [
        "kept.append(bytes(1 << 20))",
        "import mmap; kept.append(mmap.mmap(-1, 1 << 20)); kept[-1].write(bytes(1 << 20))",
        "import os; kept.append(os.memfd_create('m')); os.write(kept[-1], bytes(1 << 20))",
        "import os; f = os.open('/tmp', os.O_TMPFILE | os.O_RDWR); kept.append(f); os.write(f, bytes(1 << 20))",
        "import ctypes; c = ctypes.CDLL(None); i = c.shmget(0, 1 << 20, 0o1600); assert i >= 0; kept.append(i)",
    ],
    ids=["heap", "shared mapping", "memfd", "unnamed file", "System V"],
)
def test_memory_is_bounded(sandbox: Sandbox, grow: str) -> None:
    code = f"""
kept = []
try:
    while len(kept) < 2000:
        {grow}
except BaseException:
    pass
number = len(kept)
del kept
print(number)
"""
    assert int(printed(sandbox.run(code, LIMITS))) < 256


# All that goes into a pipe or a pair of sockets, whose buffers are made as large as they may be.
FILLS = """
import fcntl, os, socket

def pipe():
    r, w = os.pipe()
    try:
        fcntl.fcntl(w, 1031, 1 << 20)  # F_SETPIPE_SZ
    except OSError:
        pass
    return r, w

def pair():
    ends = socket.socketpair()
    for end in ends:
        try:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
        except OSError:
            pass
    return [end.detach() for end in ends]

held = 0
for _ in range(2000):
    try:
        ends = MAKE()
    except OSError:
        break
    for end in ends:
        os.set_blocking(end, False)
        try:
            while True:
                held += os.write(end, bytes(1 << 16))
        except OSError:
            pass
print(held >> 20)
"""


@pytest.mark.parametrize(("make", "most_mib"), [("pipe", 34), ("pair", 34)])
def test_buffers_of_pipes_and_sockets_are_bounded(sandbox: Sandbox, make: str, most_mib: int) -> None:
    assert 5 < int(printed(sandbox.run(FILLS.replace("MAKE", make), LIMITS))) <= most_mib


def test_new_processes_are_refused_and_threads_counted(sandbox: Sandbox) -> None:
    assert printed(sandbox.run(FORKS, LIMITS)) == "0"
    code = """
import threading
gate, made = threading.Event(), 0
try:
    while made < 200:
        threading.Thread(target=gate.wait).start()
        made += 1
except RuntimeError:
    pass
gate.set()
print(made)
"""
    assert printed(sandbox.run(code, LIMITS)) == "3"
    assert (
        printed(
            sandbox.run(
                "import subprocess, sys\ntry: subprocess.run([sys.executable])\nexcept OSError: print(0)", LIMITS
            )
        )
        == "0"
    )


def test_processes_are_counted_and_end_with_the_program(unfiltered: Sandbox) -> None:
    """Without the filter: daemons that left the session, of a program that has ended and of one that hasn't."""
    with watched() as seen:
        assert printed(unfiltered.run(FORKS, LIMITS)) == "3"
        assert unfiltered.run(FORKS + "time.sleep(1000)", SHORT).timed_out
        left = [p for p in seen if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert len(seen) >= 5, "the watch sees processes"
    assert left == []


@pytest.mark.parametrize("filtered", [True, False])
def test_no_process_outside_can_be_ended(sandbox: Sandbox, unfiltered: Sandbox, filtered: bool) -> None:
    """The victim runs as the sandbox's own user, so that nothing but the namespace is in the way."""
    victim = subprocess.Popen(["/bin/sleep", "100"], user=65534 if os.getuid() == 0 else None, cwd="/")
    code = f"""
import os, signal
for pid in [os.getppid(), 1, -1, {os.getpid()}, {os.getppid()}, {victim.pid}]:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
"""
    try:
        (sandbox if filtered else unfiltered).run(code, LIMITS)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_there_is_no_network(sandbox: Sandbox, unfiltered: Sandbox) -> None:
    code = """
import socket
for address in (("127.0.0.1", PORT), "\\0NAME"):
    try:
        with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as s:
            s.settimeout(2)
            s.connect(address)
            print("connected", address)
    except OSError as error:
        print(type(error).__name__)
"""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
        name = f"gemma-tune-{os.getpid()}"
        local.bind(f"\0{name}")
        local.listen()
        tcp.settimeout(0.1)
        local.settimeout(0.1)
        code = code.replace("PORT", str(tcp.getsockname()[1])).replace("NAME", name)
        outside = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert outside.stdout.count("connected") == 2, "the attack works where nothing is in the way"
        tcp.accept()[0].close()
        local.accept()[0].close()
        assert printed(sandbox.run(code, LIMITS)) == "\n".join(["PermissionError"] * 2)
        assert "connected" not in printed(unfiltered.run(code, LIMITS))
        for server in (tcp, local):
            with pytest.raises(TimeoutError):
                server.accept()


def test_no_file_outside_is_read_or_changed(sandbox: Sandbox, unfiltered: Sandbox, public: Path) -> None:
    canary = public / "canary"
    with tempfile.NamedTemporaryFile("w", dir=Path.home(), prefix=".canary-") as home:
        home.write("secret")
        home.flush()
        canary.write_text("secret")
        canary.chmod(0o666)
        code = f"""
import glob, os
for path in ({str(canary)!r}, {home.name!r}, {str(Path(__file__))!r}):
    for tried in (path, "/proc/1/root" + path, "/proc/1/cwd/.." + path, *glob.glob("/proc/*/fd/*" + path)):
        try:
            print("read", open(tried).read())
            open(tried, "a").write("!")
        except OSError:
            pass
try:
    open({str(public / "new")!r}, "w").close()
except OSError:
    print("done")
"""
        for box in (sandbox, unfiltered):
            assert printed(box.run(code, LIMITS)) == "done"
        assert (canary.read_text(), Path(home.name).read_text()) == ("secret", "secret")
        assert [f.name for f in public.iterdir()] == ["canary"]
