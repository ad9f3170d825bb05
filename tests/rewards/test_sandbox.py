"""The sandbox: what goes in and comes out, and that nothing is left of a run."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from sandboxed import LIMITS, SHORT, needs_bwrap, printed, watched

from gemma_tune.rewards.sandbox import Sandbox, SandboxError
from gemma_tune.rewards.sandbox_setup import find_sandbox

pytestmark = needs_bwrap


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return find_sandbox()


def test_a_program_gets_its_input_and_gives_its_output(sandbox: Sandbox) -> None:
    outcome = sandbox.run("import sys\nfor line in sys.stdin: print(line.upper(), end='')", LIMITS, stdin="ä\nb\n")
    assert (outcome.output.decode(), outcome.status, outcome.compiled, outcome.timed_out) == ("Ä\nB\n", 0, True, False)


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_input_may_be_larger_than_a_pipe_and_left_unread(sandbox: Sandbox, size: int) -> None:
    assert printed(sandbox.run("import sys\nprint(len(sys.stdin.read()))", LIMITS, stdin="x" * size)) == str(size)
    assert printed(sandbox.run("print(1)", LIMITS, stdin="x" * size)) == "1"


def test_a_call_gives_its_result_alone(sandbox: Sandbox) -> None:
    code = "print('loading')\ndef f(a, *, b):\n    print('noise')\n    return {'sum': a + b}"
    outcome = sandbox.run(code, LIMITS, call={"entry_point": "f", "args": [1], "kwargs": {"b": 2}})
    assert (outcome.output, outcome.status) == (b'{"sum": 3}', 0)


def test_a_program_is_main_and_a_module_with_a_function_is_not(sandbox: Sandbox) -> None:
    code = "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\ndef f(): return [__name__, A(1).x]"
    assert sandbox.run(code, LIMITS, call={"entry_point": "f", "args": [], "kwargs": {}}).output == b'["solution", 1]'
    assert printed(sandbox.run("if __name__ == '__main__': print('main')", LIMITS)) == "main"


@pytest.mark.parametrize("code", ["x = (", "\0", "def f():\nreturn", "(" * 10_000, "x = '\ud800'"])
def test_code_that_does_not_compile_is_known(sandbox: Sandbox, code: str) -> None:
    assert not sandbox.run(code, LIMITS).compiled


def test_the_same_program_says_the_same(sandbox: Sandbox) -> None:
    """Sets of strings have an order by their hashes."""
    said = {printed(sandbox.run("print({str(i) for i in range(50)})", LIMITS)) for _ in range(3)}
    assert len(said) == 1


def test_time_is_over_and_nothing_is_left(sandbox: Sandbox) -> None:
    with watched() as seen:
        began = time.monotonic()
        outcome = sandbox.run("import os\nos.close(0); os.close(1); os.close(2)\nwhile True: pass", SHORT)
        assert time.monotonic() - began < 20
        assert (outcome.timed_out, outcome.status) == (True, None)
        assert [p for p in seen if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert len(seen) >= 2


def test_output_is_read_up_to_its_limit(sandbox: Sandbox) -> None:
    outcome = sandbox.run("while True: print('x' * 1000)", LIMITS)
    assert outcome.status is None and not outcome.timed_out
    assert len(outcome.output) < LIMITS.output + (1 << 17)


def test_no_descriptor_is_left_open(sandbox: Sandbox) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for code in ("print(1)", "while True: print('x' * 1000)", "x = ("):
        sandbox.run(code, LIMITS)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_it_ends_with_the_process_that_started_it(sandbox: Sandbox) -> None:
    code = (
        "from gemma_tune.rewards.sandbox import Limits\n"
        "from gemma_tune.rewards.sandbox_setup import find_sandbox\n"
        "sandbox = find_sandbox()\nprint('found', flush=True)\n"
        "sandbox.run('import time; time.sleep(1000)', Limits(1000.0, 256, 4, 4, 1 << 16))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"found\n"
    inside: list[psutil.Process] = []
    for _ in range(1000):
        inside = psutil.Process(child.pid).children(recursive=True)
        if len(inside) >= 3:
            break
        time.sleep(0.02)
    assert len(inside) >= 3, "bwrap, its first process and the code"
    time.sleep(0.5)  # until the code has been handed in: before, it would end for want of it
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert psutil.wait_procs(inside, timeout=20)[1] == []


def test_an_interrupt_of_the_terminal_does_not_reach_it(sandbox: Sandbox) -> None:
    """It goes to the group of processes in the foreground: this one's."""
    with sandbox._started(4) as process:
        assert os.getpgid(process.pid) == process.pid != os.getpgid(0)


def test_a_sandbox_that_no_longer_starts_is_no_answer(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxError, match="bwrap"):
        dataclasses.replace(sandbox, places=["--ro-bind", "/no/such/folder", "/usr"]).run("print(1)", LIMITS)
