"""Several evaluators together: what fails is noted, what is no number is left out, and what a user's may give."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gemma_tune.cli.compose import compose_config
from gemma_tune.data.records import Record
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.errors import UserError
from gemma_tune.evals.base import Outcome
from gemma_tune.evals.evaluation import Evaluation, conditions_of, evaluate, files_of, prepare_evaluators, with_samples

ENGINE: Any = None


def giving(outcome: Outcome) -> Any:
    return lambda engine, limit=None: outcome


def rows(*scores: float) -> list[dict[str, Any]]:
    return [{"id": str(i), "score": score} for i, score in enumerate(scores)]


def own(folder: Path, text: str) -> str:
    """A user's file with a function `f`."""
    (folder / "mine.py").write_text(text, encoding="utf-8")
    return f"{folder / 'mine.py'}:f"


def evaluated(folder: Path, text: str) -> Evaluation:
    name = own(folder, text)
    cfg = compose_config("lora_sft", [f"eval.evaluators=[{name}]"])
    return evaluate(prepare_evaluators(cfg, None, TokenizedRows(), {}), ENGINE)


def test_what_is_no_number_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its rows, so that what is stored is JSON; the other figures stay."""
    outcome = Outcome(
        {"a_loss": math.nan, "b": math.inf, "c": 1.0, "d": 0.5, "e": 0.5},
        {"a_loss": rows(math.nan, 1.0), "d": rows(0, 1), "e": rows(1, math.nan)},
    )
    found = evaluate({"mine": giving(outcome), "other": giving(Outcome({"z": 1}))}, ENGINE)
    assert found.figures == {"c": 1.0, "d": 0.5, "z": 1} and found.rows == {"d": rows(0, 1)}
    assert found.failures == {
        "a_loss": "it is nan, not a finite number", "b": "it is inf, not a finite number",
        "e": "the score of a row is nan, not a finite number",
    }  # fmt: skip
    assert found.not_finite == ["a_loss", "b", "e"]
    assert capsys.readouterr().err.count("is left out") == 3
    found.save(tmp_path, "after")
    text = (tmp_path / "after.json").read_text("utf-8")
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text) == vars(found)


def test_what_is_better_the_lower_it_is() -> None:
    """By its name, or as the evaluator says."""
    outcome = Outcome({"mine_ter": 3.0, "mean_kl": 1.0, "top1": 0.5}, lower_is_better=frozenset({"mine_ter", "gone"}))
    assert evaluate({"x": giving(outcome)}, ENGINE).lower_is_better == ["mean_kl", "mine_ter"]


def test_samples_that_fail_are_noted() -> None:
    class Full:
        tokenizer = None

        def answers(self, *_: Any) -> Any:
            raise MemoryError("no memory")

    cfg = compose_config("lora_sft", [])
    held_out = TokenizedRows([Record("here", messages=[{"role": "user", "content": "?"}])], [])
    before = Evaluation({"x": 1.0}, failures={"y": "z"}, lower_is_better=["x"])
    found = with_samples(before, Full(), cfg, held_out)  # type: ignore[arg-type]
    assert found.figures == {"x": 1.0} and found.answers == [] and found.lower_is_better == ["x"]
    assert set(found.failures) == {"y", "samples"}


NUMBERS = """
import fractions
import numpy

def f(engine, inputs):
    return {"a": numpy.float32(0.5), "b": numpy.int64(3), "c": True, "d": fractions.Fraction(1, 4)}
"""
ROWS = """
import numpy
from gemma_tune.evals.base import Outcome

def f(engine, inputs):
    rows = [{"id": "1", "score": numpy.float64(1), "weight": numpy.int64(2)}, {"id": "2", "score": False}]
    return Outcome({"a": numpy.mean([1, 0])}, {"a": rows}, frozenset({"a"}))
"""


def test_numbers_of_any_kind(tmp_path: Path) -> None:
    found = evaluated(tmp_path, NUMBERS)
    assert found.figures == {"a": 0.5, "b": 3, "c": 1, "d": 0.25} and not found.failures
    assert {type(v) for v in found.figures.values()} == {int, float}
    json.dumps(vars(found))


def test_rows_of_a_users(tmp_path: Path) -> None:
    found = evaluated(tmp_path, ROWS)
    assert found.rows == {"a": [{"id": "1", "score": 1.0, "weight": 2}, {"id": "2", "score": 0.0}]}
    assert found.lower_is_better == ["a"] and not found.failures
    json.dumps(vars(found))


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ("[1]", "mine.py:3: f: it returned list, not numbers by name"),
        ("{'a': 'b'}", "mine.py:3: f: it returned str as a, not a number"),
        ("{'a': 1j}", "mine.py:3: f: it returned complex as a, not a number"),
        ("Outcome({'a': 1}, {'b': []})", "mine.py:3: f: it returned rows of b, but no metric of that name"),
        ("Outcome({'a': 1}, {'a': [{'score': 1}]})", "mine.py:3: f: row 0 of a is not a mapping with an id and"),
        ("Outcome({'a': 1}, {'a': [{'id': 1, 'score': '1'}]})", "mine.py:3: f: it returned str as a's score"),
        ("Outcome({'a': 1}, {'a': [{'id': 1, 'score': 1, 'x': {2}}]})", "mine.py:3: f: row 0 of a can't be stored"),
    ],
)  # fmt: skip
def test_what_a_users_may_not_give(gives: str, message: str, tmp_path: Path) -> None:
    text = f"from gemma_tune.evals.base import Outcome\n\ndef f(engine, inputs):\n    return {gives}\n"
    found = evaluated(tmp_path, text)
    assert found.figures == {} and [message in reason for reason in found.failures.values()] == [True]


def test_what_a_users_may_raise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also what would end the command in silence."""
    for line, said in (("{}['a']", "KeyError: 'a'."), ("raise SystemExit(0)", "SystemExit: 0: it would end")):
        found = evaluated(tmp_path, f"def f(engine, inputs):\n    {line}\n")
        (reason,) = found.failures.values()
        assert reason.startswith(f"mine.py:2: {said}"), reason  # beside the evaluator's name, which has the path
    assert "Error: /" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import os\nimport no_such_package\nfrom mine_too import f\n",
            "mine.py:2: there is no module no_such_package; install the package",
        ),
        ("def g():\n    return {}['a']\n\nf = g()\n", "mine.py:2: KeyError: 'a'"),
        ("import json\nf = json.loads('')\n", "mine.py:2: JSONDecodeError"),
        ("def f(:\n", r"mine.py:1: invalid syntax: def f\(:"),
        ("f = len\nraise SystemExit(3)\n", "mine.py:2: SystemExit: 3: it would end the whole command"),
        ("f = open('nix.txt')\n", r"mine.py:1: FileNotFoundError: .*relative paths count from the current folder"),
        ("from .helper import f\n", r"mine.py:1: a relative import, .* write from helper import f:"),
        ("f = 5\n", "mine.py:1: f: this is the value 5, and no function; name one: mine.py has none"),
        ("g = 1\n", "has no function 'f'; it has none"),
        ("def f(engine):\n    return {}\n", r"its parameters are \(engine\), and it is called with \(engine, inputs\)"),
    ],
)
def test_a_users_file_that_can_not_be_run(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        evaluated(tmp_path, text)


def test_a_function_is_given_the_test_rows(tmp_path: Path) -> None:
    name = own(tmp_path, "def f(engine, inputs): ...\n")
    assert compose_config("lora_sft", [f"eval.evaluators=[{name}]"]).eval.answers_tests
    words = ["eval.evaluators=[]", f"eval.during_training=[{name}]", "train.eval_steps=1"]
    assert compose_config("lora_sft", words).eval.answers_tests
    assert not compose_config("lora_sft", ["eval.evaluators=[held_out_loss]"]).eval.answers_tests


def test_conditions_are_those_of_what_ran() -> None:
    words = ["eval.evaluators=[kl]", "eval.kl.reference=a/b", "model.dtype=float32"]
    cfg = compose_config("evaluate", words)
    cfg.eval.answers.match = "number"
    model = {"model.dtype": "float32", "model.load_in_4bit": False}
    assert conditions_of(cfg, []) == model
    assert conditions_of(cfg, ["kl"]) == model | {"train.max_length": 1024, "eval.kl.reference": "a/b"}
    answers = {"eval.max_new_tokens": 64, "data.enable_thinking": False, "eval.answers.match": "number"}
    assert conditions_of(cfg, ["answers"]) == model | answers
    assert conditions_of(cfg, ["lm_eval", "x.py:f"]) == model | {
        "eval.lm_eval.num_fewshot": None, "eval.lm_eval.apply_chat_template": False,
    }  # fmt: skip
    assert "eval.long_context.max_new_tokens" in conditions_of(cfg, ["long_context"])


def test_files_that_are_read(tmp_path: Path, tiny: Path) -> None:
    names = {key: tmp_path / key for key in ("questions.json", "answers.json", "text.txt")}
    for file in names.values():
        file.write_text("", encoding="utf-8")
    name = own(tmp_path, "def f(engine, inputs): ...\n")
    cfg = compose_config(
        "evaluate",
        [
            f"eval.evaluators=[tool_calls,long_context,kl,{name}]",
            f"eval.kl.reference={tiny}",
            f"eval.tool_calls.questions_file={names['questions.json']}",
            f"eval.tool_calls.answers_file={names['answers.json']}",
            f"eval.long_context.text_file={names['text.txt']}",
        ],
    )
    assert set(files_of(cfg)) == {tmp_path / "mine.py", *names.values(), tiny}
    assert files_of(compose_config("evaluate", [])) == []
