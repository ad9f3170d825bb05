"""Long-context rows: their lengths, what is hidden in them, and that a reader finds it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gemma_tune.errors import UserError
from gemma_tune.evals.haystack import KINDS, Difficulty, HaystackRow, make_rows, score
from gemma_tune.evals.haystack_facts import _KEYS
from gemma_tune.evals.haystack_text import pieces, sentences
from gemma_tune.run.paths import ASSETS

# 2,048 is the embedded model's own bound; its tokenizer is to count further, without a warning
TOKENIZER = AutoTokenizer.from_pretrained(ASSETS / "tiny", model_max_length=10**9)
FACT = re.compile(r"A magic number of (\S+) is (\d+)\.")
ASSIGNMENT = re.compile(r"VAR (\w+) = (?:VAR )?(\w+)\.")


def count(text: str) -> int:
    return len(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def whole(messages: list[dict[str, str]]) -> int:
    """Tokens of a prompt in the chat form."""
    return len(TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


RESERVE = whole([{"role": "user", "content": "."}]) - count(".")


def rows_of(*kinds: str, lengths: Sequence[int] = (2048,), n: int = 2, seed: int = 0, **more: Any) -> list[HaystackRow]:
    return make_rows(kinds or KINDS, lengths, n, seed, more.pop("count_tokens", count), RESERVE, **more)


def said(row: HaystackRow) -> str:
    return row.messages[0]["content"]


def solve(row: HaystackRow) -> str:
    """The right answer, read from the message alone."""
    text, _, question = said(row).rpartition("\n\n")
    if value := re.search(r"the value (\d+)", question):
        sources = dict(re.findall(r"\bVAR (\w+) = (?:VAR )?(\w+)\.", text))
        having: list[str] = []
        while new := [name for name in sources if name not in having and sources[name] in {value[1], *having}]:
            having += new
        return ", ".join(having)
    asked = re.findall(r"[a-z]+-[a-z]+", question)
    return ", ".join(number for key, number in FACT.findall(text) if key in asked)


def places(row: HaystackRow, pattern: re.Pattern[str]) -> list[float]:
    """Where the facts stand, as shares of the text's characters."""
    start, end = said(row).index("\n\n"), said(row).rindex("\n\n")
    return [(m.start() - start) / (end - start) for m in pattern.finditer(said(row), start, end)]


@pytest.mark.parametrize("length", [512, 8192, 32768])
def test_a_reader_of_the_message_finds_it_all_and_the_length_is_as_asked(length: int) -> None:
    rows = rows_of(lengths=[length], n=3)
    assert [(r.kind, r.length) for r in rows] == [(kind, length) for kind in KINDS for _ in range(3)]
    for row in rows:
        assert score(row, solve(row)) == 1, row.id
        assert 0.98 * length <= row.tokens <= length, row.id
        assert whole(row.messages) == row.tokens, row.id
        assert [m["role"] for m in row.messages] == ["user"]
    assert len({row.id for row in rows}) == len(rows)


def test_128k_tokens_are_filled_to_a_word() -> None:
    (row,) = rows_of("variable_tracking", lengths=[131072], n=1)
    assert 131072 - 20 <= whole(row.messages) <= 131072
    assert score(row, solve(row)) == 1


def test_the_reader_goes_by_the_message_alone() -> None:
    for row in rows_of():
        assert solve(replace(row, wanted=["?"], id="", depth=None)) == solve(row)
        first = next(w for w in row.wanted if w in said(row))
        changed = [{"role": "user", "content": said(row).replace(first, "9" * len(first))}]
        assert score(row, solve(replace(row, messages=changed))) < 1, row.id


def test_depths_go_evenly_from_start_to_end() -> None:
    for kind in ("needle", "multi_key"):
        rows = rows_of(kind, lengths=[16384], n=5)
        assert [r.depth for r in rows] == [0, 0.25, 0.5, 0.75, 1]
        for row in rows:
            (place,) = places(row, re.compile(rf"A magic number of \S+ is {row.wanted[0]}"))
            assert abs(place - (row.depth or 0)) < 0.01, row.id
    (alone,) = rows_of("needle", n=1)
    assert alone.depth == 0.5


def test_facts_that_are_asked_for_together_stand_all_over_the_text() -> None:
    difficulty = Difficulty(values=5, queries=5, hops=4)
    for row in rows_of("multi_value", "multi_query", "variable_tracking", lengths=[8192], difficulty=difficulty):
        found = places(row, ASSIGNMENT if row.kind == "variable_tracking" else FACT)
        assert row.depth is None
        assert len(found) == 5 and all(i - 0.05 < 5 * place < i + 1.05 for i, place in enumerate(found)), row.id


@pytest.mark.parametrize("n", [0, 1, 40, 600])
def test_more_distractors_are_more_keys(n: int) -> None:
    for row in rows_of("multi_key", lengths=[32768], difficulty=Difficulty(distractor_keys=n)):
        keys, numbers = zip(*FACT.findall(said(row)), strict=True)
        asked = re.search(r"magic number of (\S+) in the text above\?", said(row))
        assert asked and keys.count(asked[1]) == 1
        assert len(keys) == len(set(keys)) == len(set(numbers)) == n + 1
        assert numbers[keys.index(asked[1])] == row.wanted[0]


def test_more_values_and_more_queries_are_more_to_find() -> None:
    for n in (1, 12):
        values, queries = rows_of("multi_value", "multi_query", n=1, difficulty=Difficulty(values=n, queries=n))
        assert len(set(values.wanted)) == len(set(queries.wanted)) == n
        assert len({key for key, _ in FACT.findall(said(values))}) == 1
        assert len({key for key, _ in FACT.findall(said(queries))}) == n


@pytest.mark.parametrize(("hops", "chains"), [(1, 1), (4, 3), (12, 2), (2, 30)])
def test_more_hops_are_longer_chains_and_more_chains_are_more_of_them(hops: int, chains: int) -> None:
    for row in rows_of("variable_tracking", lengths=[8192], difficulty=Difficulty(hops=hops, chains=chains)):
        lines = ASSIGNMENT.findall(said(row))
        sources = dict(lines)
        assert len(lines) == len(sources) == chains * (hops + 1) and not set("".join(sources)) & set("AEIOUY")
        values = [source for source in sources.values() if source.isdigit()]
        assert len(set(values)) == chains
        order = [name for name, _ in lines]
        for name, source in lines:
            assert source.isdigit() or order.index(source) < order.index(name)
        end = row.wanted[-1]  # as many steps to the value as there are hops
        for _ in range(hops):
            end = sources[end]
        assert end == row.wanted[0] and f"the value {sources[end]} in" in said(row)
        assert len(row.wanted) == hops + 1 and f"Which {hops + 1} variables" in said(row)


def test_wrong_answers_score_less() -> None:
    for row in rows_of(difficulty=Difficulty(chains=2)):
        facts = FACT.findall(said(row)) or ASSIGNMENT.findall(said(row))
        others = {text for fact in facts for text in fact} - set(row.wanted)
        assert score(row, "") == score(row, ", ".join(others)) == 0, row.id
        assert score(row, ", ".join(row.wanted[1:])) == pytest.approx(1 - 1 / len(row.wanted)), row.id
        assert score(row, f"They are {' and '.join(row.wanted).lower()}.") == 1, row.id


def test_equal_seeds_give_equal_rows_and_others_others() -> None:
    assert rows_of(seed=3) == rows_of(seed=3)
    one, other = rows_of(seed=3), rows_of(seed=4)
    assert not {said(r) for r in one} & {said(r) for r in other}
    assert not {tuple(r.wanted) for r in one} & {tuple(r.wanted) for r in other}
    assert not {r.id for r in one} & {r.id for r in other}  # so that they are never taken for the same


def test_a_row_is_the_same_whatever_else_is_made_and_asks_the_same_at_every_length() -> None:
    alone, among = rows_of("multi_query", lengths=[512]), rows_of(*reversed(KINDS), lengths=[4096, 512])
    assert alone == [r for r in among if (r.kind, r.length) == ("multi_query", 512)]
    longer = [r for r in among if (r.kind, r.length) == ("multi_query", 4096)]
    for a, b in zip(alone, longer, strict=True):
        assert a.wanted == b.wanted and said(a).rpartition("\n\n")[2] == said(b).rpartition("\n\n")[2]


def test_lengths_too_short_are_answered_with_the_least_ones() -> None:
    with pytest.raises(UserError) as error:
        rows_of(lengths=[64, 100, 8192])
    assert [p.split()[:2] for p in error.value.problems] == [["eval.long_context.lengths:", kind] for kind in KINDS]
    for kind, problem in zip(KINDS, error.value.problems, strict=True):
        found = re.search(r"Use at least (\d+) tokens", problem)
        assert found and "64, 100 tokens" in problem and "8192" not in problem
        least = int(found[1])
        for row in rows_of(kind, lengths=[least]):
            assert row.tokens <= least and score(row, solve(row)) == 1
        with pytest.raises(UserError, match=f"{kind} rows of {least - 1} tokens are too short"):
            rows_of(kind, lengths=[least - 1])
    with pytest.raises(UserError, match="or for fewer hops and chains"):
        rows_of("variable_tracking", lengths=[512], difficulty=Difficulty(hops=40))


@pytest.mark.parametrize(
    "counter",
    [
        lambda text: 2 + count(text),  # a tokenizer that adds its own tokens to every text
        lambda text: -(-len(text) // 4),  # parts that count more than the whole
        lambda text: len(text) // 4,  # parts that count less than the whole
        lambda text: len(text.split()),
    ],
)
def test_the_length_holds_where_tokens_do_not_add_up(counter: Callable[[str], int]) -> None:
    for row in rows_of(lengths=[512, 8192], count_tokens=counter):
        assert row.tokens == counter(said(row)) + RESERVE
        assert 0.98 * row.length <= row.tokens <= row.length, row.id


def test_the_made_up_text_is_plain_sentences_and_none_comes_twice() -> None:
    (row,) = rows_of("needle", lengths=[32768], n=1)
    text = " ".join(FACT.sub("", said(row).partition("\n\n")[2].rpartition("\n\n")[0]).split())
    found = re.split(r"(?<=\.) ", text)[1:]  # the first is the end of one
    assert len(found) > 500 and len(set(found)) > 0.99 * len(found)
    for sentence in found:
        assert re.fullmatch(r"[A-Z][a-z, ]+\.", sentence) and not re.search(r"\ba [aeiou]", sentence), sentence


def test_a_text_of_the_users_is_used_and_says_nothing_that_is_hidden(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    own = "The tide tables of 1893 were wrong.\nNobody minded! “So?” VAR FLOOD = VAR TIDE. And so on, for years\n"
    # Every key but three: those are the ones that can be hidden
    path.write_text("\ufeff" + own + "; ".join(_KEYS[3:]) + ".\n\n" + own, encoding="utf-8")
    for row in rows_of(lengths=[1024, 16384], text_file=path, difficulty=Difficulty(2, 3, 3)):
        assert score(row, solve(row)) == 1, row.id
        assert 0.98 * row.length <= whole(row.messages) <= row.length, row.id
        text = said(row).partition("\n\n")[2].rpartition("\n\n")[0]
        rest = re.sub(r"A magic number of \S+ is \d+\.|VAR [^AEIOU]{5} = (VAR )?\w+\.", "", text)
        assert set(rest.split()) <= set(path.read_text(encoding="utf-8-sig").split()), row.id
        if row.kind != "variable_tracking":
            assert {key for key, _ in FACT.findall(text)} <= set(_KEYS[:3]), row.id
    with pytest.raises(UserError, match="4 keys can't be made: there are 3"):
        rows_of("multi_key", text_file=path)


def test_a_text_without_blanks_is_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("潮水来了又走，没有人在意。船停在港口" * 400, encoding="utf-8")
    for row in rows_of(lengths=[512, 8192], text_file=path):
        assert score(row, solve(row)) == 1, row.id
        assert 0.98 * row.length <= whole(row.messages) <= row.length, row.id


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the file can't be read"),
        (b" \n\n", "the file has no text"),
        ("Käse".encode("latin-1"), "the bytes are not UTF-8"),
        (b"One.<end_of_turn>\nTwo.", "<end_of_turn>"),
    ],
)
def test_texts_that_can_not_be_used(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        rows_of(text_file=path)
    assert str(path) in str(error.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UserError) as error:
        make_rows(["needle", "passkey"], [], 0, 0, count, 0, Difficulty(distractor_keys=-1, hops=0))
    assert [p.removeprefix("eval.long_context.").split()[0] for p in error.value.problems] == [
        "kinds:",
        "lengths",
        "num_samples=0:",
        "distractor_keys=-1:",
        "hops=0:",
    ]
    with pytest.raises(UserError, match="10001 keys can't be made"):
        rows_of("multi_key", difficulty=Difficulty(distractor_keys=10_000))
    with pytest.raises(UserError, match="45001 numbers can't be made: there are 45000"):
        rows_of("variable_tracking", difficulty=Difficulty(chains=45_001))


def test_pieces_are_the_whole_text() -> None:
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choices(["word", " ", "\n", ". ", "! ", "。", "x" * 170, "?\n\n", '." ', "3.5"], k=60))
        found = pieces(text)
        assert "".join(found) == text.rstrip()
        assert all(len(p.strip()) <= 165 for p in found)
    assert pieces('He came. "Did he?" Yes') == ["He came.", ' "Did he?"', " Yes"]
    made = sentences(rng, 50)
    assert pieces("".join(made)) == made
