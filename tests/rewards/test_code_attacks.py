"""The code reward under attack: nothing succeeds, each attack scores nothing in bounded time, and others aren't hurt.

What the sandbox itself holds back is seen in test_sandbox*.py.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from sandboxed import DOUBLE, ECHO, needs_bwrap, score, task

from gemma_tune.config.reward import CodeReward
from gemma_tune.rewards import code as checker
from gemma_tune.rewards.base import Completion, Reward
from gemma_tune.rewards.code import prepare

pytestmark = needs_bwrap


@pytest.fixture(scope="module")
def reward() -> Reward:
    return prepare(CodeReward(timeout=1.0, memory_mb=256, processes=4, file_mb=4))


ATTACKS = {
    "endless loop": "while True: pass",
    "sleep": "import time\ntime.sleep(1000)",
    "200 forks": "import os\nfor _ in range(200): os.fork()",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "threads": "import threading\nwhile True: threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()",
    "memory": "x = []\nwhile True: x.append(bytes(1 << 24))",
    "disk": "import itertools\nfor i in itertools.count(): open(f'/tmp/{i}', 'wb').write(bytes(1 << 20))",
    "empty files": "import itertools\nfor i in itertools.count(): open(f'/tmp/{i}', 'w').close()",
    "output": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef g(n): return [g(n + 1)]\ng(0)",
    "crash": "import ctypes\nctypes.string_at(0)",
    "closed descriptors": "import os\nos.closerange(0, 1000)\nprint(1)",
    "kills its parents": "import os\nfor p in (os.getppid(), 1, -1, 0): os.kill(p, 9)",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "deaf": "import signal\nfor s in {*range(1, 32)} - {9, 19}: signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
    "slow to compile": "x = " + "-" * 100_000 + "1",
    "exits at once": "import os\nos._exit(0)",
    "the driver's own bytes": "import os\nos.write(1, b'sc')\nprint('a\\nb')",
}


KINDS = {"program": ECHO, "function": DOUBLE[:1]}
# They take all their time, before a function is called.
SLOW = ("sleep", "stopped", "deaf", "empty files")
GOOD = "def f(x): return 2 * x\nif __name__ == '__main__':\n    for _ in 'ab': print(input())"


@pytest.fixture(scope="module", params=KINDS)
def attacked(request: pytest.FixtureRequest) -> tuple[dict[str, float | None], list[float | None]]:
    """The scores of all attacks in one batch, and of right answers among them."""
    attacks = {name: code for name, code in ATTACKS.items() if request.param == "program" or name not in SLOW}
    reward = prepare(CodeReward(timeout=0.5, memory_mb=256, processes=4, file_mb=4))
    answers = [Completion(code) for attack in attacks.values() for code in (attack, GOOD)]
    scores = reward(answers, [task(KINDS[request.param])] * len(answers))
    return dict(zip(attacks, scores[::2], strict=True)), list(scores[1::2])


def test_attacks_score_nothing(attacked: tuple[dict[str, float | None], list[float | None]]) -> None:
    assert attacked[0] == dict.fromkeys(attacked[0], 0.0)


def test_answers_beside_attacks_are_not_hurt(attacked: tuple[dict[str, float | None], list[float | None]]) -> None:
    assert attacked[1] == [1.0] * len(attacked[0])


# Looks for `KEY-` and digits wherever it can: its own memory, the driver's variables, other processes, files.
SEARCH = r"""
import glob, os, re, sys
pattern = re.compile(b"KEY" + b"-[0-9a-f]{16}")
def places():
    frame = sys._getframe()
    while frame:
        yield repr([frame.f_globals, frame.f_locals]).encode()
        frame = frame.f_back
    for name in ("environ", "cmdline", "mountinfo", "maps"):
        for file in glob.glob(f"/proc/*/{name}"):
            yield open(file, "rb").read()
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in list(maps):
            first, last = (int(n, 16) for n in line.split()[0].split("-"))
            if " r" in line and "[v" not in line:
                memory.seek(first)
                yield memory.read(last - first)
    for file in glob.glob("/*") + glob.glob("/tmp/**") + glob.glob("/proc/1/fd/*") + glob.glob("/proc/1/root/*"):
        if os.path.isfile(file):
            yield open(file, "rb").read(1 << 20)
def f():
    found = "nothing"
    it = places()
    while True:
        try:
            for m in pattern.finditer(next(it)):
                found = m[0].decode()
        except StopIteration:
            return found
        except OSError:
            it = iter(())
"""


def test_what_is_expected_is_nowhere_to_be_found(reward: Reward, monkeypatch: pytest.MonkeyPatch) -> None:
    key = f"KEY-{secrets.token_hex(8)}"
    monkeypatch.setenv("EXPECTED", key)
    assert score(reward, SEARCH, [{"args": [], "result": key}]) == 0.0
    assert score(reward, f"{SEARCH}\nprint(f())", [{"input": "", "output": key}]) == 0.0
    # It does find what is there, and finishes.
    assert score(reward, SEARCH, [{"args": [], "result": "nothing"}]) == 1.0
    assert score(reward, f"kept = {key!r}\n{SEARCH}", [{"args": [], "result": key}]) == 1.0


# Past the driver, to whatever is open.
WRITES = """import os
def f(x):
    for fd in range(64):
        try: os.write(fd, b"{}")
        except OSError: pass
    os._exit(0)"""


@pytest.mark.parametrize(
    "code",
    [
        "class A(int):\n    __eq__ = lambda *a: True\n    __hash__ = int.__hash__\ndef f(x): return A(7)",
        "class A(dict):\n    def __eq__(self, other): return True\ndef f(x): return A()",
        "import json\njson.dumps = lambda *a, **k: 'true'\ndef f(x): return 1",
        "def f(x): return float('nan')",
        "import sys\nsys.stdout = open('/dev/null', 'w')\ndef f(x): return ...",
        WRITES.format("[6, -2] 6 -2 true"),
        WRITES.format("6 -2"),
        WRITES.format("sc6"),
        WRITES.format("[" * 60_000),
        "import builtins, sys\nbuiltins.all = lambda *a: True\nsys.modules['math'] = None\ndef f(x): return 0",
        "import atexit\natexit.register(print, 'passed')\ndef f(x): raise SystemExit(0)",
        "def f(x):\n    print(2 * x)",
    ],
)  # fmt: skip
def test_the_checker_is_out_of_reach(reward: Reward, code: str) -> None:
    file = Path(str(checker.__file__))
    before = file.read_bytes()
    spoil = f"try: open({str(file)!r}, 'w').write('')\nexcept OSError: pass\n"
    assert score(reward, spoil + code, DOUBLE) == 0.0
    assert file.read_bytes() == before


def test_the_pipe_back_may_be_written_to_by_who_knows_what_is_right(reward: Reward) -> None:
    """The control of the test above: past the driver is no harm, and no help."""
    assert score(reward, WRITES.format("6"), DOUBLE) == 0.5


def test_printing_all_that_could_be_right_is_not_right(reward: Reward) -> None:
    assert score(reward, "for i in range(1000): print(i)", [{"input": "", "output": "7"}]) == 0.0


def test_nothing_is_kept_from_one_test_to_the_next(reward: Reward) -> None:
    code = (
        "import os\ndef f(x):\n    seen = os.path.exists('/tmp/seen')\n    open('/tmp/seen', 'w').close()\n"
        "    return seen"
    )
    assert score(reward, code, [{"args": [1], "result": False}] * 3) == 1.0
