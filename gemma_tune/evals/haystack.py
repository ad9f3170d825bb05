"""Long-context rows in the manner of RULER (arXiv 2404.06654): facts hidden in a long text, and a question about them.

The kinds are RULER's retrieval with one key, several keys, several values and several queries, and its variable
tracking, with its defaults. Where they depart from it: the words are our own, and so is the text, put together by
chance; the depth of a single fact goes evenly from start to end, and facts that are asked for together are spread over
the whole text; a variable's name has no vowels, so that an answer's words can't be taken for one; no solved example
comes before the question; rows of one kind ask the same questions at every length.
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

_STARTS = 1024  # sentences that a made-up text may begin with, the same ones whatever lengths are asked for
_KEY = "eval.long_context."  # of the configuration, for messages
_TRIES = 10  # at the length, where a text's tokens aren't the sum of its pieces'


@dataclass(frozen=True)
class HaystackRow:
    """One question about one text.

    Attributes:
        id: `<kind>-<length>-<number>-<digest of the message>`: one of another seed, text or difficulty is another row.
        kind: One of `KINDS`.
        length: The length that was asked for, in tokens, reserve included.
        tokens: The length that it has, reserve included; never more than `length`.
        depth: Where the wanted fact stands, 0 (start) to 1 (end); None where several are wanted, all over the text.
        messages: One message of the user's.
        wanted: What an answer must hold.
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
    """Rows of every kind at every length, filled close to the length and never beyond it.

    Args:
        kinds: Some of `KINDS`.
        lengths: In tokens.
        rows_per_cell: Rows of one kind and length; their depths go evenly from 0 to 1 (one row: 0.5).
        seed: Equal seeds give equal rows.
        count_tokens: Tokens of a text.
        reserve: Tokens of a length that aren't the message's text: the chat template's, and perhaps the answer's.
        difficulty: How much is hidden; None is as much as in RULER.
        text_file: A text to hide it in, begun anywhere, and again where it is too short; None makes one up.

    Returns:
        The rows by kind, then length, then depth.

    Raises:
        UserError: An unknown kind, a number that makes no sense, a text that can't be read, or lengths that are too
            short for a kind (the message names the least one).
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
        # So many that, at eight tokens a sentence or more, none stands twice in a text, wherever it begins
        supply, starts = sentences(random.Random(f"{seed} text"), _STARTS + max(lengths) // 8), _STARTS
    else:
        supply = pieces("\n\n" + text.strip())  # a paragraph of its own where it begins again
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
    """The share of the wanted strings that stand in the answer, in capitals or not: RULER's `string_match_all`.

    As there, nothing is taken off for what else the answer says.
    """
    return sum(wanted.lower() in answer.lower() for wanted in row.wanted) / len(row.wanted)


def _checked(kinds: Sequence[str], lengths: Sequence[int], rows: int, difficulty: Difficulty) -> list[Kind]:
    """The kinds, each once. Raises UserError for whatever can be told without a text."""
    problems = [
        f"{_KEY}kinds: {kind!r} is no kind of long-context row; the kinds are {', '.join(KINDS)}."
        for kind in kinds
        if kind not in KINDS
    ]
    problems += [
        f"{_KEY}{what} is empty; name one at least."
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
                f"{_KEY}lengths: {kind} rows of {', '.join(map(str, short))} tokens can't be made: the question and "
                f"what is hidden take {least} tokens, with {reserve} kept for the chat's form and the answer. Ask for "
                f"{least} tokens at least{fewer}."
            )
    if problems:
        raise UserError(*problems)


def _depth(i: int, rows: int) -> float:
    return i / (rows - 1) if rows > 1 else 0.5


def _hidden(task: HaystackTask, texts: Sequence[str], counts: Sequence[int]) -> str:
    """The pieces of a text, of so many tokens each, with the task's facts between them."""
    before = [0, *itertools.accumulate(counts)]  # tokens before each piece
    parts: list[str] = []
    done = 0
    for depth, fact in sorted(task.facts, key=lambda f: f[0]):
        place = bisect.bisect_left(before, depth * before[-1])
        parts += (*texts[done:place], fact)
        done = place
    return "".join([*parts, *texts[done:]])


def _filled(task: HaystackTask, filler: Filler, start: int, room: int, count_tokens: CountTokens) -> tuple[str, int]:
    """The message with as much of the text as there's room for, and its tokens."""
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
