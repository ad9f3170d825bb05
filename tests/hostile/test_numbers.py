"""Every number of the configuration has limits; what can't be computed with, or named on disk, is refused at once."""

from __future__ import annotations

import typing
from typing import Any

import pytest

from gemma_tune.chat import FORMS
from gemma_tune.cli.compose import check_words, compose_config
from gemma_tune.config.model import CHAT_FORMS
from gemma_tune.errors import RunError, UserError, bounded, listed, quoted
from gemma_tune.models.estimate.memory import in_unit
from gemma_tune.validation.schema import FIELDS, wrong_value


def has_number(kind: Any) -> bool:
    return kind in (int, float) or any(map(has_number, typing.get_args(kind)))


NUMBERS = {key: (f, kind) for key, (f, kind) in FIELDS.items() if has_number(kind)}


def shaped(kind: Any, number: Any) -> Any:
    """The number as the field takes it: alone, in a list, or in a mapping."""
    kinds = [typing.get_origin(k) or k for k in (kind, *typing.get_args(kind))]
    return {"a": number} if dict in kinds else [number] if list in kinds else number


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_limits(key: str) -> None:
    f, kind = NUMBERS[key]
    low = f.metadata["at_least"] if f.metadata["above"] is None else f.metadata["above"]
    high = f.metadata["at_most"]
    assert low is not None and high is not None and low < high, "option(…, at_least=…, at_most=…)"
    for number in (float("nan"), float("inf"), -float("inf"), 1e300, 10**5000, low - 1, high * 2 + 1):
        said = wrong_value(key, shaped(kind, number), "here")
        assert said and said.startswith(f"here: {key}") and len(said) < 400, (number, said)
    assert (
        wrong_value(key, shaped(kind, high if float in (kind, *typing.get_args(kind)) else int(high)), "here") is None
    )


LONG = "x" * 300
WORDS = {
    "tracker.name": "write tracker.name=VALUE", "chat.prompt": "write chat.prompt=VALUE",
    "data.train_file": "write data.train_file=VALUE", "seed=4294967296": "at most 4294967295",
    "seed=1" + "0" * 5000: "too many digits", "train.warmup_steps=1e300": "at most 1000000000",
    "train.warmup_steps=1e999": "must be a finite number", "train.warmup_steps=nan": "must be a finite number",
    "train.extra.adam_epsilon=inf": "must be at most 1e+15", "train.extra.adam_epsilon=1e300": "must be at most 1e+15",
    "data.generator_options={a: nan}": "must be a finite number", "model.chat_template=gema3": "Did you mean gemma3",
    f"data.train_file={LONG}": "at most 255 bytes", f"output_dir={LONG}": "at most 255 bytes",
    f"model.model_name_or_path=a/{LONG}": "at most 255 bytes", f"data.test_files.{LONG}=a.jsonl": "no key has more",
    f"tracker.name={LONG}": "at most 128 characters", "data.train_file=a\0b": "no zero byte",
    "seed=range(0,1000000000)": "the values of a sweep", "tracker.name=" + "x" * 100_000: "more than 8,000 characters",
    "train.extra.x=" + "[" * 3000: "a bracket isn't closed",
    "adapter.rank_pattern={q_proj: 0}": "q_proj must be at least 1",
    "adapter.layers_to_transform=[1000000000000]": "at most 9999", "recipe=" + "x" * 5000: "there is no recipe",
    "x" * 5000: "is not of the form key=value",
}  # fmt: skip


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word[:40].replace("\0", "0"))
def test_a_hostile_word(word: str) -> None:
    with pytest.raises(UserError) as error:
        compose_config("qlora_sft", [word])
    assert WORDS[word] in str(error.value) and len(str(error.value)) <= 2100


def test_a_sweep_without_an_end() -> None:
    with pytest.raises(UserError, match="a sweep of more than"):
        check_words(["recipe=qlora_sft", "seed=range(0,1000000000)"], [], sweeps=True)


def test_the_names_of_chat_forms_are_theirs() -> None:
    assert sorted(CHAT_FORMS) == sorted(FORMS)


def test_messages_are_bounded() -> None:
    said = str(UserError("begin " + "x" * 10**6 + " the fix"))
    assert len(said) < 2100 and said.startswith("begin") and said.endswith("the fix") and "characters left out" in said
    assert len(UserError(*["x"] * 10**5).problems) == 201 and len(str(RunError("x" * 10**6))) < 2100
    assert bounded("a\x1b[2Jb\nc\td\x9b") == "a\\x1b[2Jb\nc\td\\x9b"  # which would clear the screen
    assert len(quoted("x" * 10**6)) < 300 and "1,000,000 characters" in quoted("x" * 10**6)
    assert "too large" in quoted(10**5000) and quoted("short") == "'short'"
    assert listed(range(30)).endswith("19 and 10 more") and listed("ab") == "a, b"


def test_sizes_are_said_in_the_unit_that_fits() -> None:
    sizes = (7.42, 0.35, 3e-5, 0.0)
    assert [in_unit(gib) for gib in sizes] == ["7.4 GiB", "358.4 MiB", "31.5 KiB", "0.0 KiB"]
