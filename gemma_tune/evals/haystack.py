"""Long-context rows like those of RULER (arXiv 2404.06654): facts hidden in a long text, and a question about them.

The kinds are RULER's retrieval with one key, several keys, several values and several queries, and its variable
tracking, with its defaults. Differences from RULER: the words and the text are our own, and the text is randomly
generated; the depth of a single fact is evenly distributed from start to end, and facts that are asked for together are
spread over the whole text; variable names have no vowels, so that no English word can be one; there is no solved
example before the question; rows of one kind ask the same questions at every length.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma_tune.errors import UserError
from gemma_tune.evals.haystack_facts import KINDS, SETTINGS, Difficulty, Draw, HaystackTask, Kind, make_task
from gemma_tune.evals.haystack_text import CountTokens, Filler, pieces, read_text, sentences

_STARTS = 1024  # sentences that a generated text may begin with, independent of the lengths
_KEY = "eval.long_context."  # of the configuration keys in messages
_TRIES = 10  # to reach the length: a text may have fewer or more tokens than the sum of its pieces


@dataclass(frozen=True)
class HaystackRow:
    """One question about one text.

    Attributes:
        id: `<kind>-<length>-<number>-<digest of the message>`: another seed, text or difficulty gives other ids.
        kind: One of `KINDS`.
        length: The requested length in tokens, including the reserve.
        tokens: The actual length, including the reserve; at most `length`.
        depth: The depth of the wanted fact, 0 (start) to 1 (end); None for several facts all over the text.
        messages: One user message.
        wanted: The strings that an answer must contain.
    """

    id: str
    kind: Kind
    length: int
    tokens: int
    depth: float | None
    messages: list[dict[str, str]]
    wanted: list[str]


def make_rows(
    kinds: Sequence[str],
    lengths: Sequence[int],
    rows_per_cell: int,
    seed: int,
    count_tokens: CountTokens,
    reserve: int,
    difficulty: Difficulty | None = None,
    text_file: Path | None = None,
) -> list[HaystackRow]:
    """Rows of every kind at every length, filled close to the length but never beyond it.

    Args:
        kinds: Some of `KINDS`.
        lengths: In tokens.
        rows_per_cell: Rows per kind and length; their depths are evenly spaced from 0 to 1 (one row: 0.5).
        seed: Equal seeds give equal rows.
        count_tokens: Returns the number of tokens of a text.
        reserve: Tokens of the length for the chat template and the answer.
        difficulty: How much is hidden; None for RULER's defaults.
        text_file: The text to hide facts in; it starts anywhere and repeats if too short. None generates one.

    Returns:
        The rows by kind, then length, then depth.

    Raises:
        UserError: An unknown kind, an invalid number, an unreadable text, or lengths that are too short for a kind (the
            message names the minimum).
    """
    difficulty = difficulty or Difficulty()
    wanted_kinds = _checked(kinds, lengths, rows_per_cell, difficulty)
    text = None if text_file is None else read_text(text_file)
    taken = frozenset(re.findall(r"\w+(?:-\w+)*", (text or "").lower()))
    tasks = {
        kind: [
            make_task(kind, Draw(random.Random(f"{seed} {kind} {i}"), taken), difficulty, _depth(i, rows_per_cell))
            for i in range(rows_per_cell)
        ]
        for kind in wanted_kinds
    }
    _check_lengths(tasks, lengths, count_tokens, reserve)

    if text is None:
        # Enough that no sentence occurs twice in a text, at eight tokens or more per sentence
        supply, starts = sentences(random.Random(f"{seed} text"), _STARTS + max(lengths) // 8), _STARTS
    else:
        supply = pieces("\n\n" + text.strip())  # a new paragraph where the text repeats
        starts = len(supply)
    filler = Filler(supply, count_tokens)
    rows = []
    for kind, length in itertools.product(tasks, dict.fromkeys(lengths)):
        for i, task in enumerate(tasks[kind]):
            start = random.Random(f"{seed} {kind} {length} {i}").randrange(starts)
            prompt, tokens = _filled(task, filler, start, length - reserve, count_tokens)
            messages = [{"role": "user", "content": prompt}]
            name = f"{kind}-{length}-{i}-{hashlib.blake2b(prompt.encode(), digest_size=6).hexdigest()}"
            rows.append(HaystackRow(name, kind, length, tokens + reserve, task.depth, messages, task.wanted))
    return rows


def score(row: HaystackRow, answer: str) -> float:
    """The share of the wanted strings in the answer, ignoring case: RULER's `string_match_all`.

    As in RULER, other content of the answer isn't penalized.
    """
    return sum(wanted.lower() in answer.lower() for wanted in row.wanted) / len(row.wanted)


def _checked(kinds: Sequence[str], lengths: Sequence[int], rows: int, difficulty: Difficulty) -> list[Kind]:
    """The kinds without duplicates. Raises UserError for problems that don't depend on the text."""
    problems = [
        f"{_KEY}kinds: {kind!r} is not a kind of long-context row; the kinds are {', '.join(KINDS)}."
        for kind in kinds
        if kind not in KINDS
    ]
    problems += [
        f"{_KEY}{what} is empty; name at least one."
        for what, given in (("kinds", kinds), ("lengths", lengths))
        if not given
    ]
    least = {"num_samples": (rows, 1)} | {
        name: (n, 0 if name == "distractor_keys" else 1) for name, n in vars(difficulty).items()
    }
    problems += [
        f"{_KEY}{name}={n}: this must be {at_least} or more." for name, (n, at_least) in least.items() if n < at_least
    ]
    if problems:
        raise UserError(*problems)
    known: dict[str, Kind] = {kind: kind for kind in KINDS}
    return [known[kind] for kind in dict.fromkeys(kinds)]


def _check_lengths(
    tasks: Mapping[Kind, Sequence[HaystackTask]], lengths: Sequence[int], count_tokens: CountTokens, reserve: int
) -> None:
    problems = []
    for kind, its_tasks in tasks.items():
        least = reserve + max(count_tokens(task.prompt(_hidden(task, [], []))) for task in its_tasks)
        if short := [n for n in dict.fromkeys(lengths) if n < least]:
            fewer = f", or for fewer {' and '.join(SETTINGS[kind])}" if SETTINGS[kind] else ""
            problems.append(
                f"{_KEY}lengths: {kind} rows of {', '.join(map(str, short))} tokens are too short: the question and "
                f"the hidden facts take {least} tokens, including {reserve} for the chat template and the answer. Use "
                f"at least {least} tokens{fewer}."
            )
    if problems:
        raise UserError(*problems)


def _depth(i: int, rows: int) -> float:
    return i / (rows - 1) if rows > 1 else 0.5


def _hidden(task: HaystackTask, texts: Sequence[str], counts: Sequence[int]) -> str:
    """The pieces of a text (with their token counts), with the task's facts inserted."""
    before = [0, *itertools.accumulate(counts)]  # tokens before each piece
    parts: list[str] = []
    done = 0
    for depth, fact in sorted(task.facts, key=lambda f: f[0]):
        place = bisect.bisect_left(before, depth * before[-1])
        parts += (*texts[done:place], fact)
        done = place
    return "".join([*parts, *texts[done:]])


def _filled(task: HaystackTask, filler: Filler, start: int, room: int, count_tokens: CountTokens) -> tuple[str, int]:
    """The message with as much of the text as fits, and its number of tokens."""
    best = task.prompt(_hidden(task, [], []))
    most = count_tokens(best)
    budget = room - most
    for _ in range(_TRIES):
        prompt = task.prompt(_hidden(task, *filler.take(start, budget)))
        left = room - (tokens := count_tokens(prompt))
        if left >= 0 and tokens > most:
            best, most = prompt, tokens
        if 0 <= left <= room // 100:
            break
        budget += left
    return best, most
