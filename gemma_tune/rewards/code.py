"""The share of a row's tests that a completion's code passes, run in a sandbox (sandbox.py).

It can be gamed: code that always returns the same value passes the tests with that result, and code that has memorized
a row's tests passes all of them. Give each row several tests with different results.

A row has a field `tests`, a list or a JSON text with one, of two kinds:

- `{"input": …, "output": …}`: a program, its standard input and output. Lines are compared, ignoring trailing blanks
  and trailing empty lines; the program must exit with status 0.
- `{"args": […], "kwargs": {…}, "result": …}`: a function, named by the row's `entry_point` or the test's own. Its
  result is compared as JSON: 20 equals 20.0 but not true, a tuple equals a list, floats may differ by 1e-9 (relative).

Each test runs in its own sandbox, which receives only that test's input, never the expected result: results come back
through a pipe and are compared outside. A program can write anything to that pipe, bypassing the driver, but it doesn't
know the right result.

Time: a test takes at most `timeout`. Once the failed tests of a completion have taken twice that (two time-outs, for
example), its remaining tests count as failed. So a completion takes at most 3 × `timeout` if nothing passes, and
tests × `timeout` if every test passes just in time, plus 0.05 s to start each sandbox. A batch uses one worker per CPU
that this process may use. An interrupt ends the batch after the tests that are running.
"""

from __future__ import annotations

import json
import re
import textwrap
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from gemma_tune.config.reward import CodeReward
from gemma_tune.cores import allowed_cores
from gemma_tune.processes import local_world
from gemma_tune.rewards.base import Completion, Reward, Task
from gemma_tune.rewards.sandbox import Limits, Sandbox, SandboxResult
from gemma_tune.rewards.sandbox_setup import find_sandbox
from gemma_tune.same_json import one_value_a_name, same_json

# Possessive quantifiers don't backtrack, so a long line of marks is scanned once.
_FENCE = re.compile(r"[ \t]*+(`{3,}+|~{3,}+)[ \t]*+([^\s`]*+)[^`]*+$")
_PYTHON = ("python", "python3", "py")
# Failed tests of one completion may take this many times `timeout`.
_LOST = 2
# Bytes read at most: a constant, plus a multiple of the expected output's length, since JSON may escape characters.
_MORE_OUTPUT, _TIMES_OUTPUT = 1 << 16, 8
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class _Test:
    """One test.

    Attributes:
        expected: A program's output, or a call's result.
        stdin: A program's input.
        call: The function call for the driver; None for a program.
    """

    expected: Any
    stdin: str = ""
    call: dict[str, Any] | None = field(default=None)


def prepare(options: CodeReward) -> Reward:
    """The reward.

    Args:
        options: Limits of the sandbox.

    Returns:
        Scores from 0 to 1 for a batch; 0 if the code doesn't compile or the completion was cut off. It raises
        ValueError for a row without valid tests, and SandboxError if the sandbox no longer starts.

    Raises:
        UserError: The sandbox doesn't work on this machine.
    """
    sandbox = find_sandbox()

    def scores(completions: Sequence[Completion], records: Sequence[Task]) -> list[float | None]:
        tests = [_tests_of(record)[: options.max_tests] for record in records]
        stop = threading.Event()
        with ThreadPoolExecutor(_workers(), thread_name_prefix="code") as pool:
            pairs = list(zip(completions, tests, strict=True))
            try:
                return list(pool.map(lambda pair: _share(sandbox, options, pair[0], pair[1], stop), pairs))
            except BaseException:  # also an interrupt: the pool waits for running tests
                stop.set()
                raise

    return scores


def _workers() -> int:
    """This process's share of the CPUs that it may use, at least one."""
    return max(1, allowed_cores() // local_world())


def code_of(text: str) -> str:
    """The code in an answer: its last Python block, else its last block of any language, else the whole text.

    A block that isn't closed extends to the end.
    """
    blocks: list[tuple[str, str]] = []
    lines: list[str] = []
    fence, name = "", ""
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if not fence and found:
            fence, name, lines = found[1], found[2].lower(), []
        elif fence and found and not found[2] and found[1].startswith(fence):
            blocks.append((name, "\n".join(lines)))
            fence = ""
        elif fence:
            lines.append(line)
    if fence:
        blocks.append((name, "\n".join(lines)))
    python = [code for name, code in blocks if name in _PYTHON]
    # A block in a list is indented.
    return textwrap.dedent((python or [code for _, code in blocks] or [text])[-1])


def same_lines(found: str, expected: str) -> bool:
    """Whether two outputs have the same lines, ignoring trailing blanks and trailing empty lines."""
    return _lines(found) == _lines(expected)


def _lines(text: str) -> list[str]:
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n").split("\n")


def _share(
    sandbox: Sandbox, options: CodeReward, completion: Completion, tests: Sequence[_Test], stop: threading.Event
) -> float:
    """The share of tests passed; once `stop` is set, no more tests are run."""
    code = code_of(completion.text)
    if not completion.stopped or not code.strip():
        return 0.0
    passed, lost = 0, 0.0
    for test in tests:
        if stop.is_set():
            break
        length = len(json.dumps(test.expected))
        limits = Limits(
            seconds=options.timeout,
            memory_mb=options.memory_mb,
            threads=options.processes,
            file_mb=options.file_mb,
            output=_MORE_OUTPUT + _TIMES_OUTPUT * length,
        )
        outcome = sandbox.run(code, limits, test.stdin, test.call)
        if not outcome.compiled:
            return 0.0
        if _passes(outcome, test):
            passed += 1
        else:
            lost += outcome.seconds
        if lost >= _LOST * options.timeout:
            break
    return passed / len(tests)


def _passes(outcome: SandboxResult, test: _Test) -> bool:
    if outcome.status != 0:
        return False
    try:
        text = outcome.output.decode()
        return same_json(json.loads(text), test.expected, _TOLERANCE) if test.call else same_lines(text, test.expected)
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or nested too deeply
        return False


def _tests_of(record: Task) -> list[_Test]:
    """The row's tests.

    Raises:
        ValueError: It has none, or one of neither kind; the message names file and line.
    """
    tests = record.row.get("tests")
    try:
        tests = json.loads(tests, object_pairs_hook=one_value_a_name) if isinstance(tests, str) else tests
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{record.where}: `tests` is a string that isn't JSON that can be read ({error}).") from error
    if not isinstance(tests, list) or not tests:
        raise ValueError(f"{record.where}: reward.code needs the field `tests`, a non-empty list of tests.")
    return [_test(test, record.row, f"{record.where}: test {number}") for number, test in enumerate(tests, 1)]


def _test(test: Any, row: dict[str, Any], where: str) -> _Test:
    if isinstance(test, dict) and "result" in test:
        name = test.get("entry_point") or row.get("entry_point")
        args, kwargs = test.get("args") or [], test.get("kwargs") or {}
        if not isinstance(name, str) or not isinstance(args, list) or not isinstance(kwargs, dict):
            raise ValueError(
                f"{where} has a `result`: it needs `args` (a list), `kwargs` (an object), and the function's name as "
                "`entry_point`, in it or in the row."
            )
        return _Test(test["result"], call={"entry_point": name, "args": args, "kwargs": kwargs})
    if isinstance(test, dict) and isinstance(test.get("output"), str) and isinstance(test.get("input", ""), str):
        return _Test(test["output"], stdin=test.get("input", ""))
    raise ValueError(f"{where} has neither `input` and `output` as strings, nor `args` and `result`.")
