"""The code reward: what scores and what doesn't, how code is found, and that time and interrupts end a batch."""

from __future__ import annotations

import json
import os
import signal
import threading
from typing import Any

import pytest
from sandboxed import DOUBLE, ECHO, needs_bwrap, score, task

from gemma_tune.config.reward import CodeReward
from gemma_tune.rewards import code as module
from gemma_tune.rewards.base import Completion, Reward, Task
from gemma_tune.rewards.code import code_of, prepare, same_lines
from gemma_tune.rewards.sandbox import SandboxResult

pytestmark = needs_bwrap


@pytest.fixture(scope="module")
def reward() -> Reward:
    return prepare(CodeReward(timeout=1.0, memory_mb=256, processes=4, file_mb=4))


@pytest.mark.parametrize(
    ("code", "share"),
    [
        ("def f(x): return 2 * x", 1.0),
        ("def f(x): return 2 * x if x > 0 else 0", 0.5),
        ("def f(x): return x", 0.0),
        ("def f(x): return 2.0 * x", 1.0),
        ("def f(x): return [2 * x]", 0.0),
        ("def g(x): return 2 * x", 0.0),
        ("def f(x): return 2 * x\nraise ValueError", 0.0),
        ("def f(x):\n    print('debug')\n    return 2 * x", 1.0),
        ("def f(x) return 2 * x", 0.0),
        ("import sys\ndef f(x): return 2 * x\nsys.exit(0)", 0.0),
        ("import os\ndef f(x): os._exit(0)", 0.0),
        ("def f(x): return f(x)", 0.0),
        ("def f(x): return {2 * x}", 0.0),
        ("from __future__ import annotations\nimport math\ndef f(x: int): return math.prod([2, x])", 1.0),
    ],
)  # fmt: skip
def test_functions_score_by_the_share_of_tests_passed(reward: Reward, code: str, share: float) -> None:
    assert score(reward, code, DOUBLE) == share


@pytest.mark.parametrize(
    ("code", "result", "share"),
    [
        ("def f(): return 1, (2, 3)", [1, [2, 3]], 1.0),
        ("def f(): return True", 1, 0.0),
        ("def f(): return None", None, 1.0),
        ("def f(): return 'ünï\\n\\u2028💡'", "ünï\n\u2028💡", 1.0),
        ("def f(): return 0.1 + 0.2", 0.3, 1.0),
        ("def f(): return {1: 'a'}", {"1": "a"}, 1.0),
        ("def f(): return 10 ** 400", 10**400, 1.0),
        ("def f(): return 10 ** 400", 1.5, 0.0),
        ("def f(): return 'x' * (1 << 20)", "x", 0.0),
        ("def f(): return 'x' * (1 << 20)", "x" * (1 << 20), 1.0),
        ("x = []\nfor _ in range(100): x = [x]\ndef f(): return x", [[]], 0.0),
    ],
)
def test_results_are_compared_as_json(reward: Reward, code: str, result: Any, share: float) -> None:
    assert score(reward, code, [{"args": [], "result": result}]) == share


@pytest.mark.parametrize(
    ("code", "share"),
    [
        ("import sys\nprint(sys.stdin.read(), end='')", 1.0),
        ("print(input())\nprint(input() + '  ')\nprint()", 1.0),
        ("print(open(0).read())\nexit()", 1.0),
        ("print('a b')", 0.0),
        ("print('a')\nprint()\nprint('b')", 0.0),
        ("print(' a')\nprint('b')", 0.0),
        ("print('a')\nprint('b')\nraise ValueError", 0.0),
        ("import sys\nprint('a')\nprint('b')\nsys.exit(3)", 0.0),
        ("import sys\nprint('a', file=sys.stderr)\nprint('a')\nprint('b')", 1.0),
        ("import sys\nsys.stdout.buffer.write(b'\\xff')", 0.0),
    ],
)
def test_programs_score_by_their_output(reward: Reward, code: str, share: float) -> None:
    assert score(reward, code, ECHO) == share


def test_tests_may_be_a_text_and_name_their_own_function(reward: Reward) -> None:
    own = [{"args": [1], "kwargs": {"y": 2}, "result": 3, "entry_point": "add"}]
    assert score(reward, "def add(x, y): return x + y", json.dumps(own)) == 1.0


def test_only_the_first_tests_count_where_that_is_set() -> None:
    code = "def f(x): return 6"
    assert score(prepare(CodeReward(max_tests=1)), code, DOUBLE) == 1.0
    assert score(prepare(CodeReward()), code, DOUBLE) == 0.5


def test_an_answer_cut_off_scores_nothing(reward: Reward) -> None:
    assert score(reward, "def f(x): return 2 * x", DOUBLE, stopped=False) == 0.0


def test_thinking_is_no_answer(reward: Reward) -> None:
    said = Completion("```python\ndef f(x): return 2 * x\n```", text="I don't know.")
    assert reward([said], [task(DOUBLE)]) == [0.0]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("print(1)", "print(1)"),
        ("```python\na\n```\nthen\n```Python\nb\n\nc\n```\nso\n```\nd\n```", "b\n\nc"),
        ("```\na\n```\n```text\nb\n```", "b"),
        ("```py\na", "a"),
        ("1. So:\n   ```python\n   if x:\n       y\n   ```", "if x:\n    y"),
        ("````python\na = '''\n```\n'''\n````", "a = '''\n```\n'''"),
        ("~~~python\na\n~~~", "a"),
        ("Use ```x``` inline:\n```python\na\n```", "a"),
        ("", ""),
    ],
)
def test_the_code_is_the_last_block_of_python(text: str, code: str) -> None:
    assert code_of(text) == code


@pytest.mark.parametrize(
    "text",
    [
        "~" * 50_000 + "`",
        "`" * 50_000 + "x`",
        " " * 50_000 + "```" + " " * 50_000 + "`",
        "```a" * 20_000,
        "```\n" * 20_000,
    ],
)
def test_a_long_line_of_marks_is_looked_at_once(text: str) -> None:
    """A search that tries each way to part it would take hours."""
    code_of(text)


def test_lines_are_the_same_but_for_blanks_at_the_end() -> None:
    assert same_lines("a \r\nb\n\n\n", "a\nb")
    assert not same_lines("a\n\nb", "a\nb")
    assert not same_lines("a\x0bb", "a\nb")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "needs the field `tests`"),
        ({"tests": []}, "needs the field `tests`"),
        ({"tests": "[1"}, "isn't JSON"),
        ({"tests": '[{"input": "a", "input": "b", "output": "c"}]'}, "two values under the name 'input'"),
        ({"tests": [{"input": "a", "output": "b"}, {"input": "a"}]}, "test 2 has neither"),
        ({"tests": [{"args": [], "result": 1}]}, "test 1 has a `result`: .*`entry_point`"),
        ({"tests": [{"args": 3, "result": 1}], "entry_point": "f"}, r"`args` \(a list\)"),
    ],
)
def test_a_row_without_proper_tests_is_named(reward: Reward, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^rows\.jsonl:7: .*{message}"):
        reward([Completion("x")], [Task("rows.jsonl:7", row=row)])


def test_time_outs_end_a_completion() -> None:
    """Of 50 tests, all but the first and the last run into their time-out: the last isn't run any more."""
    reward = prepare(CodeReward(timeout=0.3))
    tests = [{"args": [i], "result": i} for i in [*range(49), 0]]
    assert score(reward, "import time\ndef f(x):\n    while x: time.sleep(1000)\n    return x", tests) == 1 / 50
    slow = "import time\ndef f(x):\n    if x: time.sleep(0.2)\n    return 0"
    assert score(reward, slow, tests) == 1 / 50


def test_a_batch_is_scored_in_order_beside_each_other(reward: Reward) -> None:
    answers = [Completion(f"def f(x): return {k} * x") for k in (2, 1, 2, 0, 2, 3)]
    assert reward(answers, [task(DOUBLE)] * 6) == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert [t for t in threading.enumerate() if t.name.startswith("code")] == []
    assert reward([], []) == []


def test_little_memory_and_one_thread_are_enough() -> None:
    assert score(prepare(CodeReward(memory_mb=64, processes=1, file_mb=1)), "def f(x): return 2 * x", DOUBLE) == 1.0


class _Counted:
    """Stands for the sandbox: each run passes; the fourth one interrupts the main thread, as Ctrl-C does."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, *_: Any) -> SandboxResult:
        self.runs += 1
        if self.runs == 4:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        threading.Event().wait(0.02)
        return SandboxResult(b"1", 0, compiled=True, timed_out=False, seconds=0.02)


def test_an_interrupt_ends_a_batch_and_not_all_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = _Counted()
    monkeypatch.setattr(module, "find_sandbox", lambda: counted)
    rows = [task([{"args": [], "result": 1}] * 100)] * 4
    with pytest.raises(KeyboardInterrupt):
        prepare(CodeReward(max_tests=100))([Completion("x")] * 4, rows)
    assert 4 <= counted.runs < 50


def test_a_worker_for_each_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert module._workers() == 6
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert module._workers() == 5
