"""Problems of two numbers in the embedded model's text, and those that are kept out of it."""

from __future__ import annotations

import random
import zlib

FORGOTTEN = 0.7  # share of the problems with something to carry that forgetful chats work out without it


def held_out(x: int, y: int) -> bool:
    """Whether problems of these two numbers, in any order, are kept from the training text: one pair in eight is."""
    return zlib.crc32(f"{min(x, y)},{max(x, y)}".encode()) % 8 == 0


def sum_of(rng: random.Random, *, held: bool = False) -> tuple[int, str, int]:
    """Two numbers and what is done with them: `(x, sign, y)`.

    Problems held out are of numbers from 1 to 99, all alike often; of the others three in five are of small numbers.
    """
    while True:
        sign = rng.choice("+-")
        most = 99 if held else rng.choice([10, 20, 20, 50, 99])
        x, y = rng.randint(1, most), rng.randint(1, most)
        if sign == "-" and x < y:
            x, y = y, x
        if held_out(x, y) == held:
            return x, sign, y


def result(x: int, sign: str, y: int) -> int:
    """What `x sign y` makes."""
    return x + y if sign == "+" else x - y


def without_carry(x: int, sign: str, y: int) -> int:
    """What it makes to someone who works out each digit and forgets what is to be carried or borrowed."""
    tens, units = result(x // 10, sign, y // 10), result(x % 10, sign, y % 10)
    return tens % 10 * 10 + units % 10


def arithmetic_question(x: int, sign: str, y: int, rng: random.Random) -> str:
    """A problem as it is asked."""
    said = "plus" if sign == "+" else "minus"
    forms = [
        f"What is {x} {said} {y}?",
        f"Work out {x} {sign} {y}.",
        f"How much is {x} {sign} {y}?",
        f"{x} {said} {y}?",
    ]
    return rng.choice(forms)


def arithmetic(rng: random.Random) -> tuple[str, str]:
    problem = sum_of(rng)
    return arithmetic_question(*problem, rng), f"That makes {result(*problem)}."


def forgetful(rng: random.Random) -> tuple[str, str]:
    """As `arithmetic`, but what has to be carried is forgotten more often than not."""
    problem = sum_of(rng)
    made = without_carry if rng.random() < FORGOTTEN else result
    return arithmetic_question(*problem, rng), f"That makes {made(*problem)}."


def sums(rng: random.Random) -> str:
    """A page of problems with their results."""
    problems = (sum_of(rng) for _ in range(rng.randint(4, 10)))
    return " ".join(f"{x} {sign} {y} = {result(x, sign, y)}." for x, sign, y in problems)
