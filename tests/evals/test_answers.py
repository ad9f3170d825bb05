"""What counts as right, and that the counting counts."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from transformers import AutoTokenizer

from gemma_tune.chat import FORMS
from gemma_tune.cli.compose import compose_config
from gemma_tune.config import Config
from gemma_tune.config.eval import AnswersConfig
from gemma_tune.data.records import Record
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.errors import UserError
from gemma_tune.evals.answers import _judge, is_right, prepare
from gemma_tune.evals.base import Inputs, Outcome
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.evals.no_call import RULE
from gemma_tune.page.blocks import Text
from gemma_tune.report.change_blocks import change_blocks
from gemma_tune.report.figures import changes
from gemma_tune.run.paths import ASSETS

TOOLS = [{"type": "function", "function": {"name": "set_timer", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"type": "function", "function": {"name": "set_timer", "arguments": {"minutes": 5, "label": "tea"}}}
GOOD = '{"name": "set_timer", "parameters": {"label": "tea", "minutes": 5}}'


def row(answer: dict[str, Any], tools: list[dict[str, Any]] | None) -> Record:
    messages = [{"role": "user", "content": "Tea, 5 minutes"}, {"role": "assistant", **answer}]
    return Record("test:1", messages=messages, tools=tools)


CALLS = row({"content": "", "tool_calls": [CALL]}, TOOLS)
REFUSES = row({"content": "Sorry, none of my tools can do that."}, TOOLS)
GREETS = row({"content": "Hello, how can I help you today?"}, TOOLS)
JAPANESE = row({"content": "申し訳ありません、それはできません。"}, TOOLS)
WORDS = row({"content": "It is yellow."}, None)
PARTS = row({"content": [{"type": "text", "text": "It is"}, {"type": "text", "text": " yellow."}]}, None)
_RESULT = {"role": "tool", "content": "{}"}
AFTER_RESULT = Record(
    "test:2", messages=[*(CALLS.messages or []), _RESULT, {"role": "assistant", "content": "Done."}], tools=TOOLS
)


@pytest.mark.parametrize(
    ("record", "answer", "right"),
    [
        (CALLS, GOOD, True),
        (CALLS, f"[{GOOD}]", True),
        (CALLS, GOOD.replace("5", '"5"'), False),
        (CALLS, GOOD.replace("tea", "Tea"), False),
        (CALLS, GOOD.replace("set_timer", "timer"), False),
        (CALLS, f"[{GOOD}, {GOOD}]", False),
        (CALLS, GOOD[:-1], False),
        (CALLS, "Sorry, none of my tools can do that.", False),
        (REFUSES, "I can't do that.", True),
        (REFUSES, "I’m sorry, but the available tools lack the ability to do that.", True),
        (REFUSES, "sorry, none of these can do it", True),
        (REFUSES, "Hello hear Seven Doors in the kitchen.", False),  # babble of an untuned model
        (REFUSES, "It is 14 degrees in Rome.", False),
        (REFUSES, "yes yes yes yes", False),
        (REFUSES, "Done.", False),
        (GREETS, "Hi, how can I help you?", True),
        (GREETS, "Sorry, none of my tools can do that.", False),  # a refusal where an answer was asked for
        (GREETS, "The weather is fine.", False),
        (JAPANESE, "申し訳ありませんが、それはできません。", True),
        (JAPANESE, "今日は晴れです。", False),
        (REFUSES, GOOD, False),
        (REFUSES, GOOD[:-1], False),
        (REFUSES, "", False),
        (CALLS, f"{GOOD}\n{GOOD}", False),
        (AFTER_RESULT, "Done.", True),
        (AFTER_RESULT, "Hm.", False),
        (AFTER_RESULT, GOOD, False),
        (PARTS, "It isyellow.", True),  # as the template renders it: each part trimmed
        (PARTS, "It is yellow.", False),
        (WORDS, " It is yellow.\n", True),
        (WORDS, "It is yellow", False),
    ],
)
def test_is_right(record: Record, answer: str, right: bool) -> None:
    assert is_right(record, answer) is right


NATIVE = '<|tool_call>call:set_timer{label:<|"|>tea<|"|>,minutes:5}<tool_call|>'


@pytest.mark.parametrize(
    ("record", "answer", "right"),
    [
        (CALLS, NATIVE, True),
        (CALLS, "<|channel>thought\nA timer.<channel|>" + NATIVE, True),
        (CALLS, NATIVE.replace("5", "5.5"), False),
        (CALLS, NATIVE.removesuffix("<tool_call|>"), False),
        (CALLS, GOOD, False),  # another form's call is none
        (REFUSES, "I can't do that.", True),
        (REFUSES, NATIVE, False),
        (REFUSES, NATIVE.removesuffix("<tool_call|>"), False),
        (WORDS, "<|channel>thought\nHm.<channel|>It is yellow.", True),
        (WORDS, "<|channel>thought\nIt is yellow.", False),  # it was only thought
        (PARTS, "It isyellow.", True),
    ],
)
def test_is_right_in_a_form_with_tokens_of_its_own(record: Record, answer: str, right: bool) -> None:
    """Calls are read from their tokens, and thinking doesn't count."""
    assert is_right(record, answer, FORMS["gemma4"]) is right


class Said:
    """An engine that says what it was told to, and stops or not."""

    max_length, stops = 4096, frozenset([1])

    def __init__(self, *said: tuple[str, bool]) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
        self._said = said

    def losses(self, rows: Any, name: str) -> list[float]:
        return [4.0, 9.0]

    def log_probs(self, rows: Any, name: str) -> Any:
        raise NotImplementedError

    def answers(self, prompts: Any, max_new_tokens: int, name: str) -> list[list[int]]:
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in self._said]
        return [i + [1] * stopped for i, (_, stopped) in zip(ids, self._said, strict=True)][: len(prompts)]


@functools.cache
def composed(*words: str) -> Config:
    return compose_config("lora_sft", ["eval.evaluators=[answers]", *words])


def outcome(engine: Said, records: list[Record], *words: str) -> Outcome:
    return prepare(Inputs(composed(*words), engine.tokenizer, TokenizedRows(), {"mine": records}))(engine)


def test_counts() -> None:
    """An answer that was cut off isn't right, whatever it says."""
    engine = Said((GOOD, True), (GOOD, False), ("Hm.", True), ("It is yellow.", True))
    found = outcome(engine, [CALLS, CALLS, CALLS, WORDS])
    assert found.figures == {"mine_exact_match": 0.5, "mine_stopped": 0.75, "mine_rows": 4}
    assert [r["score"] for r in found.rows["mine_exact_match"]] == [1.0, 0.0, 0.0, 1.0]
    ids = [r["id"] for r in found.rows["mine_exact_match"]]
    assert ids[1:3] == [f"{ids[0]}-1", f"{ids[0]}-2"] and ids[3][:16] != ids[0]


def test_rows_without_a_call_are_marked_and_the_report_says_the_rule() -> None:
    """Babble that stops is wrong, and so is a refusal that was cut off."""
    sorry = "Sorry, none of my tools can do that."
    engine = Said((sorry, True), (sorry, False), ("It is 4. Say that again.", True), (GOOD, True))
    found = outcome(engine, [REFUSES, REFUSES, REFUSES, CALLS])
    rows = found.rows["mine_exact_match"]
    assert [r["score"] for r in rows] == [1.0, 0.0, 0.0, 1.0]
    assert [r.get("without_call", False) for r in rows] == [True, True, True, False]
    for shown, said in ((rows, True), (rows[3:], False)):
        figures = {"mine_exact_match": 0.5}
        one = Evaluation(figures, {"mine_exact_match": shown})
        blocks = change_blocks(changes(one, one), once=False)
        assert (RULE in [b.text for b in blocks if isinstance(b, Text)]) is said


def numbered(text: str) -> Record:
    return row({"content": text}, None)


@pytest.mark.parametrize(
    ("wanted", "answer", "right"),
    [
        ("6 * 3 = 18\n#### 18", "It is 18.", True), ("#### 18", "18.0 dollars", True), ("#### 1,200", "1200", True),
        ("#### -3", "3", False), ("#### -3", "The answer is -3", True), ("#### 18", "18 of 20", False),
        ("#### 18", "eighteen", False), ("#### 0.5", "0.50", True), ("#### 18", "$18.", True),
        ("#### 10", "It takes 5-10", True), ("#### -10", "5-10", False), ("#### 0.5", "It is .5", True),
        ("#### 5", "It is No.5", True), ("#### -5", "It is \N{MINUS SIGN}5", True), ("#### 1000000", "1e6", True),
        ("#### 1e6", "1,000,000", True), ("#### 1200", "It is 1,200...", True), ("#### 2", "It is 1, or 1,2", True),
        ("#### 2", "It is 1, or 2", False),
        ("#### 3", "2e and 3", False), ("#### 0.0015", "1.5e-3", True), ("#### 1234.5", "1,234.50.", True),
    ],
)  # fmt: skip
def test_numbers(wanted: str, answer: str, right: bool) -> None:
    """The final answer counts; where an answer names several numbers without a choice, none of them is right."""
    found = outcome(Said((answer, True)), [numbered(wanted)], "eval.answers.match=number")
    assert found.figures["mine_number"] == float(right)


def test_thinking_is_not_looked_at() -> None:
    """Nor by a regular expression: what was only thought isn't the answer."""
    form = FORMS["gemma4"]
    thought = {"wanted": "#### 18", "answer": "<|channel>thought\nIs it 17? 18!<channel|>It is 17."}
    for cfg in (AnswersConfig("number"), AnswersConfig("regex", r"\d+")):
        assert _judge(cfg, form)(WORDS, thought) is False
        assert _judge(cfg, form)(WORDS, thought | {"answer": thought["answer"].replace("is 17", "is 18")})
        assert _judge(cfg, form)(WORDS, thought | {"answer": "<|channel>thought\n18"}) is False


def test_a_regular_expression() -> None:
    engine = Said(("So <answer>b</answer>", True), ("<answer>c</answer>", True), ("b", True))
    words = ["eval.answers.match=regex", "eval.answers.regex='<answer>(.*)</answer>'"]
    found = outcome(engine, [numbered("<answer>b</answer>")] * 3, *words)
    assert [r["score"] for r in found.rows["mine_regex"]] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval.answers.match=number"], "test:1: the answer holds no number, or several"),
        (["eval.answers.match=regex", "eval.answers.regex=x"], "test:1: eval.answers.regex finds nothing"),
    ],
)
def test_rows_without_what_is_compared(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        outcome(Said(), [WORDS], *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval.evaluators=[anwsers]"], "no evaluator anwsers.*Did you mean answers"),
        (["eval.evaluators=[nix.py:f]"], "nix.py"),
        (["eval.evaluators=[kl]"], "eval.kl.reference is not set"),
        (["eval.evaluators=[lm_eval]"], "eval.lm_eval.tasks is empty"),
        (["eval.evaluators=[tool_calls]"], "eval.tool_calls.questions_file is not set"),
        (["eval.evaluators=[long_context]", "eval.long_context.kinds=[neddle]"], "Did you mean needle"),
        (["eval.lm_eval.tasks=[x]"], "eval.lm_eval.tasks has no effect"),
        (["eval.answers.regex=x"], "has no effect without eval.answers.match"),
        (["eval.answers.match=regex", "eval.answers.regex='('"], "no regular expression"),
        (["train.eval_steps=1", "eval.during_training=[]"], "names no evaluator"),
        (["eval.answers.match=exactmatch"], "Did you mean exact_match"),
    ],
)  # fmt: skip
def test_mistakes_in_the_settings(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_config("lora_sft", words)
