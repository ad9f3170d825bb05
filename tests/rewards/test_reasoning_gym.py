"""The verifiers of reasoning-gym as they are, and that none of them runs what a model wrote."""

from __future__ import annotations

import importlib
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from gemma_tune.config.reward import ReasoningGymReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Completion, Task
from gemma_tune.rewards.reasoning_gym import EVALUATED, FORMULAS, SUMS, answer_of, prepare, trusted

factory = importlib.import_module("reasoning_gym.factory")
# Where `eval` and the like stand beside the verifier, in what makes the questions or reads the row's own answer.
GENERATION_ONLY = {"basic_arithmetic", "bitwise_arithmetic", "codeio", "number_sorting"}
NAMES = (
    "chain_sum", "leg_counting", "number_sorting", "word_sorting", "sudoku", "basic_arithmetic", "family_relationships",
    "decimal_arithmetic", "complex_arithmetic", "bitwise_arithmetic", "letter_jumble", "base_conversion", *EVALUATED,
    *SUMS, *FORMULAS,
)  # fmt: skip


@lru_cache
def entry_of(name: str) -> dict[str, Any]:
    made: dict[str, Any] = factory.create_dataset(name, seed=3, size=2)[0]
    return made


def score(name: str, said: str, entry: dict[str, Any] | None = None, **how: Any) -> Any:
    task = Task("rows.jsonl:1", row={"dataset": name, "entry": entry or entry_of(name)})
    return prepare(ReasoningGymReward())([Completion(said, **how)], [task])[0]


@pytest.mark.parametrize("name", NAMES)
def test_own_answer_scores_as_reasoning_gym_says(name: str) -> None:
    entry = entry_of(name)
    verify = factory.get_score_answer_fn(name)
    assert score(name, f"Let me see: 3.\n<answer>\n{entry['answer']}\n</answer>", entry) == 1.0
    assert score(name, entry["answer"], entry) == 1.0
    for other in ("17", "[1, 2]", "nothing like it"):
        assert score(name, f"<answer>{other}</answer>", entry) == pytest.approx(verify(other, entry))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a <answer> 5 </answer> b", "5"),
        (r"\boxed{6} <answer>5</answer>", "5"),
        ("so \\boxed{6}\n#### 7", "6"),
        ("so\n#### 7\nindeed", "7"),
        (" all of it ", "all of it"),
        ("<answer></answer>", ""),
    ],
)
def test_answer_is_found(text: str, answer: str) -> None:
    assert answer_of(text) == answer


def test_what_was_cut_off_is_zero() -> None:
    entry = entry_of("chain_sum")
    assert score("chain_sum", f"<answer>{entry['answer']}</answer>", entry, stopped=False) == 0.0


def test_verifiers_that_run_answers_are_all_known() -> None:
    """Fails where a new release runs answers in other places, or no longer: mend the lists."""
    pattern = re.compile(r"(?<![.\w])(?:eval|exec|sympify|parse_expr)\(|\b(?:sp|sympy)\.(?:parse_expr|sympify|S)\(")
    found = set()
    for name, (kind, _) in factory.DATASETS.items():
        source = Path(str(sys.modules[kind.__module__].__file__)).read_text(encoding="utf-8")
        if pattern.search(source):
            found.add(name)
    found.discard("propositional_logic")  # a parse_expr of its own, that evaluates nothing
    assert found == {*EVALUATED, *SUMS, *FORMULAS, *GENERATION_ONLY}


@pytest.mark.parametrize("name", [*EVALUATED, *SUMS, *FORMULAS])
@pytest.mark.parametrize(
    "attack",
    [
        "__import__('pathlib').Path('{file}').write_text('1')",
        "[__import__('pathlib').Path('{file}').write_text('1')]",
        "(lambda: open('{file}', 'w'))()",
        "[open('{file}', 'w') for _ in range(1)]",
        "exp(open('{file}', 'w'))",
        "x.__class__(open('{file}', 'w'))",
        "f\"{{open('{file}', 'w')}}\"",
        "  open('{file}', 'w')",
        "\u2003open('{file}', 'w')",
        "open('{file}', 'w')!",
        "1 + 0.[3] + open('{file}', 'w')",
    ],
)
def test_no_verifier_runs_an_answer(name: str, attack: str, tmp_path: Path) -> None:
    file = tmp_path / "written"
    given = score(name, f"<answer>{attack.format(file=file)}</answer>")
    assert given <= 0.05 and not file.exists()


@pytest.mark.parametrize("name", [*EVALUATED, *SUMS, *FORMULAS])
@pytest.mark.parametrize(
    "answer",
    [
        "9**9**9", "((9**30)**30)**30", "(9**9)**(9**9)", "exp(exp(exp(99)))", "'a'*10**10", "[0]*10**10", "1<<10**10",
        "10**10000000", "x**1000", "sum(range(10**12))", "9" * 6000, "(" * 3000 + "1" + ")" * 3000, "[" * 90 + "]" * 90,
        "oracle_answer", "entry", "answer", "factorial(10**9)", "10000000!!", "True and 1", "1e999", "\0", "\ud800", "",
    ],
)  # fmt: skip
def test_no_answer_is_computed_without_a_bound(name: str, answer: str) -> None:
    assert score(name, f"<answer>{answer}</answer>") <= 0.05


def test_plain_answers_reach_the_verifiers_that_run_them() -> None:
    assert trusted("binary_matrix", "[[0, 1], [-1, 0]]") and trusted("binary_matrix", "0 1\n1 0")
    assert trusted("string_insertion", "ABCDE") and not trusted("string_insertion", "oracle_answer")
    assert trusted("countdown", "(3 + 4) * 5 - 6 / 2") and not trusted("countdown", "2**3")
    assert trusted("intermediate_integration", "x**2*exp(3*x)/2 + (x**2 + 1)**4/8 - sin(2*x)*log(x) + C")
    assert trusted("polynomial_multiplication", "-3*x**4*y + 2*z - 1")
    assert trusted("chain_sum", "__import__('os')")  # only compared there


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "no dataset and entry"),
        ({"dataset": "chain_sum"}, "no dataset and entry"),
        ({"dataset": "chain_sum", "entry": {"question": "1+1"}}, "no dataset and entry"),
        ({"dataset": "chains", "entry": {"answer": "2"}}, "dataset: .*'chains' not registered"),
        ({"dataset": "binary_matrix", "entry": {"answer": "2"}}, None),
        ({"dataset": "sudoku", "entry": {"answer": "2"}}, "entry: the verifier of sudoku fails on its own answer"),
    ],
)
def test_rows_that_reasoning_gym_did_not_make_are_named(row: dict[str, Any], message: str | None) -> None:
    def reward() -> Any:
        return prepare(ReasoningGymReward())([Completion("1 2 3")], [Task("rows.jsonl:1", row=row)])

    if message is None:
        assert reward() == [0.0]
        return
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1: .*{message}"):
        reward()


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"pip install 'gemma_tune\[rl\]'"):
        prepare(ReasoningGymReward())
