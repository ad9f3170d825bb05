"""Which language counts as wanted, and how surely lingua sees it."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from gemma_tune.config.reward import LanguageReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Completion, Task
from gemma_tune.rewards.language import _detector, prepare

GERMAN = "Das Wetter in Berlin ist heute schön, aber morgen soll es wieder regnen."
ENGLISH = "The weather in Berlin is fine today, but tomorrow it is going to rain again."
CHINESE = "今天柏林的天气很好，但是明天又要下雨了。"


def score(said: str, language: str | None = None, asked: Any = "", **row: Any) -> float | None:
    task = Task("rows.jsonl:1", prompt=[{"role": "user", "content": asked}], row=row)
    return prepare(LanguageReward(language=language))([Completion(said)], [task])[0]


@pytest.mark.parametrize(("code", "text"), [("de", GERMAN), ("en", ENGLISH), ("zh", CHINESE), ("DE", GERMAN)])
def test_text_in_the_language_is_near_one(code: str, text: str) -> None:
    high, low = score(text, code), score(ENGLISH if text != ENGLISH else GERMAN, code)
    assert high is not None and high > 0.9
    assert low is not None and low < 0.1


def test_row_and_prompt_say_the_language() -> None:
    assert (score(GERMAN, asked=ENGLISH) or 0) < 0.1
    assert (score(GERMAN, asked=GERMAN) or 0) > 0.9
    parts = [{"type": "image"}, {"type": "text", "text": GERMAN}]
    assert (score(GERMAN, asked=parts) or 0) > 0.9
    task = Task("rows.jsonl:1", prompt=[{"role": "user", "content": ENGLISH}], row={"language": "de"})
    assert (prepare(LanguageReward())([Completion(GERMAN)], [task])[0] or 0) > 0.9
    assert (prepare(LanguageReward(language="en"))([Completion(GERMAN)], [task])[0] or 0) < 0.1


def test_last_message_of_the_user_counts() -> None:
    prompt = [
        {"role": "user", "content": ENGLISH},
        {"role": "assistant", "content": ENGLISH},
        {"role": "user", "content": GERMAN},
    ]
    assert (prepare(LanguageReward())([Completion(GERMAN)], [Task("rows.jsonl:1", prompt=prompt)])[0] or 0) > 0.9


def test_prompt_without_a_language_says_nothing() -> None:
    assert score(GERMAN, asked="2 + 2 =") is None
    assert prepare(LanguageReward())([Completion(GERMAN)], [Task("rows.jsonl:1")]) == [None]


@pytest.mark.parametrize("said", ["", "42", "\0", "\ud800", "🙂" * 1000])
def test_text_without_letters_is_zero(said: str) -> None:
    assert score(said, "de") == 0.0


def test_odd_marks_within_do_not_matter() -> None:
    assert (score(f"{GERMAN} \ud800 \0", "de") or 0) > 0.9


def test_unknown_language_is_named() -> None:
    with pytest.raises(UserError, match=r"reward\.language\.language=german: .* for example de"):
        prepare(LanguageReward(language="german"))
    task = Task("rows.jsonl:3", row={"language": "python"})
    with pytest.raises(ValueError, match=r"rows\.jsonl:3: language: lingua knows no 'python'"):
        prepare(LanguageReward())([Completion(GERMAN)], [task])


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lingua", None)
    with pytest.raises(UserError, match=r"pip install 'gemma_tune\[rl\]'"):
        prepare(LanguageReward())


def test_detector_is_built_once() -> None:
    assert _detector() is _detector()
