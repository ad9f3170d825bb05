"""The text that needles are hidden in: randomly generated sentences, or a user's text file."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from gemma_tune.data.records import BadRow, Record
from gemma_tune.errors import UserError

CountTokens = Callable[[str], int]


def split_words(text: str, by: str | None = None) -> list[str]:
    """The words of a text (or its parts between `by`), as a list."""
    return [" ".join(part.split()) for part in text.split(by)]


_SLOTS = {
    "adjective": split_words(
        """
        old young patient careful quiet cheerful tired clever honest proud gentle curious busy lonely friendly stubborn
        shy generous sleepy nervous
        """
    ),
    "person": split_words(
        """
        baker gardener teacher sailor farmer painter carpenter doctor shepherd librarian weaver fisherman postman cook
        student driver musician tailor miller clerk ferryman grocer potter nurse
        """
    ),
    "verb": split_words(
        """
        carried mended painted sold found lost borrowed cleaned hid measured described remembered forgot repaired moved
        bought admired covered
        """
    ),
    "kind": split_words(
        """
        wooden heavy small broken painted rusty blue green yellow narrow hollow beautiful plain woollen leather dusty
        new crooked
        """
    ),
    "thing": split_words(
        """
        ladder basket lamp table coat boat drum letter bench barrel mirror chair kettle clock wheel blanket map bell
        cupboard bucket rope saddle parasol suitcase
        """
    ),
    "place": split_words(
        """near the harbour|behind the mill|under the bridge|beside the river|in the market|on the hill|in the orchard|
        at the edge of the forest|by the lake|behind the church|in the upper town|at the station|along the canal|
        in the library garden|outside the village|near the lighthouse""",
        by="|",
    ),
    "time": split_words(
        """in the morning|late in the evening|on a rainy afternoon|before breakfast|after the harvest|one winter day|
        during the long summer|at noon|shortly before sunset|on the day of the fair|in the second week of spring|
        every autumn""",
        by="|",
    ),
    "weather": split_words(
        """cold|windy|foggy|warm and still|so dry that the grass turned brown|too hot for work|unusually bright|
        raining without a pause|snowing a little|getting dark""",
        by="|",
    ),
    "topic": split_words(
        """the price of wool|the new road|an old song|the weather|the next harvest|a journey to the coast|a lost dog|
        the repair of the roof|the history of the town|the best way to bake bread|the school play|
        a letter from abroad""",
        by="|",
    ),
    "ending": split_words(
        """and nobody was surprised|but it was already too late|although few people noticed|while the others waited|
        and that was the end of it|because there was nothing else to do|and everyone agreed|as had been promised""",
        by="|",
    ),
}
_FORMS = (
    "{time} the {adjective} {person} {verb} a {kind} {thing} {place}.",
    "the {person} {verb} the {thing}, {ending}.",
    "it was {weather} {place}, so the {person} stayed at home.",
    "{time} it was {weather}, {ending}.",
    "the {kind} {thing} stood {place} for many years.",
    "the {adjective} {person} and the {person2} talked about {topic} {time}.",
    "nobody knew why the {person} had left the {kind} {thing} {place}.",
    "{place} there was a {thing} that the {adjective} {person} never {verb}.",
    "people {place} still talk about {topic}, {ending}.",
    "the {person} asked another {person2} about {topic}, {ending}.",
    "{time} the {person} came back with a {thing} and a {thing2}.",
    "a {kind} {thing} is useful, said the {adjective} {person}, {ending}.",
)
_PARAGRAPH = 8  # sentences

# Splits a user's text into pieces that end with a sentence, else with a word, of at most about `_LONGEST` characters.
# Each begins with the blanks before it.
_LONGEST = 160
_PIECE = re.compile(
    rf"\s*\S(?:.{{0,{_LONGEST}}}?(?:[.!?][\"'”’)]*(?=\s|\Z)|[。！？])|.{{0,{_LONGEST}}}(?=\s|\Z)|.{{0,{_LONGEST}}})",
    re.DOTALL,
)


def sentences(rng: random.Random, n: int) -> list[str]:
    """`n` sentences in paragraphs, each beginning with a blank or line breaks.

    They contain only letters, commas and full stops: no digits, no hyphens.
    """
    made = []
    for i in range(n):
        chosen = {name: rng.choice(choices) for name, choices in _SLOTS.items()}
        form = rng.choice(_FORMS)
        text = form.format(**chosen, person2=rng.choice(_SLOTS["person"]), thing2=rng.choice(_SLOTS["thing"]))
        made.append(("\n\n" if i % _PARAGRAPH == 0 else " ") + text[0].upper() + text[1:])
    return made


def read_text(path: Path) -> str:
    """Reads a user's text file.

    Raises:
        UserError: It can't be read, isn't UTF-8, is empty, or contains control tokens of a chat template.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        Record(str(path), messages=[{"role": "user", "content": text}])  # rejects control tokens
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the bytes are not UTF-8; save the file as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path}: the file can't be read ({error.strerror}).") from error
    except BadRow as error:
        raise UserError(str(error)) from error
    if not text.strip():
        raise UserError(f"{path}: the file has no text; name another file, or none.")
    return text


def pieces(text: str) -> list[str]:
    """The sentences of a text; joined, they give the text again except for trailing blanks."""
    return _PIECE.findall(text.rstrip())


class Filler:
    """A cyclic text whose pieces' tokens are counted once.

    Args:
        supply: Consecutive pieces; the first follows the last.
        count_tokens: Returns the number of tokens of a text; special tokens that it adds to every text are subtracted.
    """

    def __init__(self, supply: Sequence[str], count_tokens: CountTokens) -> None:
        self._supply = supply
        self._count_tokens = count_tokens
        self._added = count_tokens("")
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._supply)

    def count(self, text: str) -> int:
        """Tokens of a piece within a text."""
        return self._count_tokens(text) - self._added

    def take(self, start: int, budget: int) -> tuple[list[str], list[int]]:
        """Whole pieces from index `start` on, preceded by the end of the previous piece, as much as fits.

        Returns:
            The pieces and their token counts, in total at most `budget`.
        """
        taken, counts, left, i = list[str](), list[int](), budget, start
        while (n := self._counted(i % len(self))) <= left:
            taken.append(self._supply[i % len(self)])
            counts.append(n)
            left, i = left - n, i + 1
        if end := self._end_of(self._supply[(start - 1) % len(self)], left):
            taken.insert(0, end)
            counts.insert(0, self.count(end))
        return taken, counts

    def _counted(self, i: int) -> int:
        if i not in self._counts:
            self._counts[i] = max(1, self.count(self._supply[i]))  # so that `take` ends
        return self._counts[i]

    def _end_of(self, piece: str, budget: int) -> str:
        """The last words (or characters, without blanks) of a piece that take at most `budget` tokens."""
        words = re.findall(r"\s*\S+", piece)
        parts = words if len(words) > 1 else list(piece)
        ends = ("".join(parts[k:]) for k in range(1, len(parts)))
        return next((end for end in ends if self.count(end) <= budget), "")
