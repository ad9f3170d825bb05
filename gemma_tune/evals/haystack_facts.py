"""The facts hidden in a long text and the question about them: one function per kind of row."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Literal, get_args

from gemma_tune.errors import UserError
from gemma_tune.evals.haystack_text import split_words

Kind = Literal["needle", "multi_key", "multi_value", "multi_query", "variable_tracking"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_ADJECTIVES = split_words(
    """
    amber ancient azure bitter bold brave bright brisk broad bronze calm chilly clear copper coral crimson crisp curly
    damp dapper deep distant dusky eager early elegant faint famous fancy fierce fluffy fresh frosty gentle giant golden
    grand hasty hollow humble icy idle ivory jolly keen kind large late lazy light little lofty loud lucky mellow merry
    mighty misty modest muddy narrow neat nimble noble odd olive pale plain polite purple quick quiet rapid rare rough
    round royal ruby rusty sandy scarlet sharp shiny silent silver simple sleek slow smooth soft solid spicy steady
    """
)
_NOUNS = split_words(
    """
    anchor apple arrow badger balloon basil beacon beetle bison button cabin cactus camel candle canyon carrot castle
    cedar cherry cobra comet compass cookie cricket crystal dagger daisy desert dolphin donkey dragon eagle engine
    falcon feather fiddle finch forest fountain fox garden ginger glacier goose guitar hammer harbor hazel heron hornet
    island jacket jaguar jungle kettle kitten ladder lantern lemon leopard lily lizard lobster magnet maple marble
    meadow melon monkey needle nutmeg ocean orchid otter oyster paddle panda parrot pebble pepper pigeon pillow planet
    plum pony prairie pumpkin puzzle rabbit raven ribbon river rocket saddle salmon shadow sparrow spider
    """
)
_KEYS = [f"{adjective}-{noun}" for adjective in _ADJECTIVES for noun in _NOUNS]
_NUMBER_DIGITS, _VALUE_DIGITS, _NAME_LETTERS = 7, 5, 5  # RULER's

_ABOUT_NUMBERS = "The text below holds magic numbers, each with the name that it belongs to. Remember them."
_ABOUT_VARIABLES = "The text below assigns values to variables, some through other variables. Remember them."


@dataclass(frozen=True)
class Difficulty:
    """How much is hidden; the defaults are RULER's.

    Attributes:
        distractor_keys: multi_key: keys in addition to the wanted one.
        values: multi_value: numbers of the key.
        queries: multi_query: keys, all asked for.
        hops: variable_tracking: assignments of a chain after its first.
        chains: variable_tracking: chains, of which one is asked for.
    """

    distractor_keys: int = 3
    values: int = 4
    queries: int = 4
    hops: int = 4
    chains: int = 1


# The fields of `Difficulty` that make a kind's rows longer
SETTINGS: Mapping[Kind, tuple[str, ...]] = {
    "needle": (),
    "multi_key": ("distractor_keys",),
    "multi_value": ("values",),
    "multi_query": ("queries",),
    "variable_tracking": ("hops", "chains"),
}


@dataclass(frozen=True)
class HaystackTask:
    """Facts to hide in a text, and a question about them.

    Attributes:
        facts: Sentences, each with its depth in the text, 0 to 1.
        about: The introduction before the text.
        question: The question after the text.
        wanted: The strings that an answer must contain.
        depth: The depth of the wanted fact; None if there are several.
    """

    facts: list[tuple[float, str]]
    about: str
    question: str
    wanted: list[str]
    depth: float | None = None

    def prompt(self, text: str) -> str:
        """The whole message, around a text that contains the facts."""
        return f"{self.about}\n\n{text.lstrip()}\n\n{self.question}"


class Draw:
    """Draws random keys, numbers and names: none twice, and none that occurs in the text.

    Args:
        rng: The random generator.
        taken: The words of the text, in lower case.
    """

    def __init__(self, rng: random.Random, taken: Set[str] = frozenset()) -> None:
        self.rng = rng
        self._taken = taken

    def keys(self, n: int) -> list[str]:
        """Names of two words joined by a hyphen.

        Raises:
            UserError: There aren't that many.
        """
        free = [key for key in _KEYS if key not in self._taken]
        _check_most(n, len(free), "keys")
        return self.rng.sample(free, n)

    def numbers(self, n: int, digits: int) -> list[str]:
        """Numbers with `digits` digits. Raises UserError as `keys` does."""
        first = 10 ** (digits - 1)
        _check_most(n, 9 * first // 2, "numbers")
        return self._several(n, lambda: str(self.rng.randrange(first, 10 * first)))

    def names(self, n: int) -> list[str]:
        """Variable names without vowels, so that no English word contains one. Raises UserError as `keys` does."""
        letters = "BCDFGHJKLMNPQRSTVWXZ"
        _check_most(n, len(letters) ** _NAME_LETTERS // 2, "variables")
        return self._several(n, lambda: "".join(self.rng.choices(letters, k=_NAME_LETTERS)))

    def spread(self, n: int) -> list[float]:
        """Ascending depths, one in each n-th of the text."""
        return [(i + self.rng.random()) / n for i in range(n)]

    def _several(self, n: int, draw: Callable[[], str]) -> list[str]:
        found: dict[str, None] = {}
        while len(found) < n:
            if (one := draw()).lower() not in self._taken:
                found[one] = None
        return list(found)


def make_task(kind: Kind, draw: Draw, difficulty: Difficulty, depth: float) -> HaystackTask:
    """The facts and the question of one row.

    Args:
        kind: One of `KINDS`.
        draw: Draws keys, numbers and names.
        difficulty: How much is hidden.
        depth: The depth of the wanted fact; kinds with several wanted facts spread them over the text.

    Raises:
        UserError: There are fewer keys, numbers or variables than `difficulty` needs.
    """
    if kind == "variable_tracking":
        return _variables(draw, difficulty.hops, difficulty.chains)
    if kind == "multi_value":
        return _values(draw, difficulty.values)
    if kind == "multi_query":
        return _queries(draw, difficulty.queries)
    return _key(draw, difficulty.distractor_keys if kind == "multi_key" else 0, depth)


def _key(draw: Draw, distractors: int, depth: float) -> HaystackTask:
    keys, numbers = draw.keys(distractors + 1), draw.numbers(distractors + 1, _NUMBER_DIGITS)
    depths = [depth, *(draw.rng.random() for _ in range(distractors))]
    facts = [(d, _number(k, n)) for d, k, n in zip(depths, keys, numbers, strict=True)]
    question = f"What is the magic number of {keys[0]} in the text above? Answer with the number alone."
    return HaystackTask(facts, _ABOUT_NUMBERS, question, numbers[:1], depth)


def _values(draw: Draw, n: int) -> HaystackTask:
    (key,), numbers = draw.keys(1), draw.numbers(n, _NUMBER_DIGITS)
    facts = [(depth, _number(key, number)) for depth, number in zip(draw.spread(n), numbers, strict=True)]
    question = f"What are all the magic numbers of {key} in the text above? Answer with the numbers alone."
    return HaystackTask(facts, _ABOUT_NUMBERS, question, numbers)


def _queries(draw: Draw, n: int) -> HaystackTask:
    keys, numbers = draw.keys(n), draw.numbers(n, _NUMBER_DIGITS)
    facts = [(d, _number(k, v)) for d, k, v in zip(draw.spread(n), keys, numbers, strict=True)]
    asked = ", ".join(draw.rng.sample(keys, n))  # not in the order of the text
    question = f"What are the magic numbers of these in the text above: {asked}? Answer with the numbers alone."
    return HaystackTask(facts, _ABOUT_NUMBERS, question, numbers)


def _variables(draw: Draw, hops: int, chains: int) -> HaystackTask:
    names, values = draw.names(chains * (hops + 1)), draw.numbers(chains, _VALUE_DIGITS)
    facts = []
    for chain, value in enumerate(values):
        own = names[chain * (hops + 1) :][: hops + 1]
        sources = [value, *(f"VAR {name}" for name in own[:-1])]
        assignments = [f" VAR {name} = {source}." for name, source in zip(own, sources, strict=True)]
        facts += list(zip(draw.spread(hops + 1), assignments, strict=True))
    question = (
        f"Which {hops + 1} variables have the value {values[0]} in the text above, directly or through other "
        "variables? Answer with their names alone."
    )
    return HaystackTask(facts, _ABOUT_VARIABLES, question, names[: hops + 1])


def _number(key: str, number: str) -> str:
    return f" A magic number of {key} is {number}."


def _check_most(n: int, most: int, what: str) -> None:
    if n > most:
        raise UserError(f"eval.long_context: a row of {n} {what} can't be made: there are {most}. Ask for fewer.")
