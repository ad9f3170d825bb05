"""Words of the command line that are no `key=value`: what was meant by them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import PurePath
from typing import NamedTuple

from gemma_tune.errors import shortened
from gemma_tune.run.paths import FILE_TYPES
from gemma_tune.validation.choices import options_of
from gemma_tune.validation.schema import FIELDS, GROUPS, full_key
from gemma_tune.validation.suggest import OTHER_TOOLS, near, other_option, suggest_key

_VERBS = ("train", "tune", "finetune", "fine-tune", "fine_tune", "run", "start", "launch", "python", "gemma_tune")
_ASKS = {"help": "--help", "version": "--version", "list": "--help", "recipes": "--help", "?": "--help"}
_ADDRESS = re.compile(r"https?:\S+|(localhost|\d+\.\d+\.\d+\.\d+):\d+\S*", re.IGNORECASE)
_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")
# Keys with free text: taken literally, with commas, braces and quotes.
FREE_TEXTS = ("chat.prompt", "chat.system")
# What a word processor makes of plain quotes and of a minus sign
TYPOGRAPHIC_QUOTES = "“”„‘’«»"
_TYPOGRAPHIC = re.compile(f"[{TYPOGRAPHIC_QUOTES}–—−]")


class BareWordAnswers(NamedTuple):
    """The messages, and the places of the words that they answer."""

    messages: list[str]
    answered: set[int]


def answer_bare_words(words: Sequence[str], recipes: Collection[str], models: Collection[str]) -> BareWordAnswers:
    """What to say to words without `=`; a value that the shell has split is answered as a whole.

    Args:
        words: All words, as typed.
        recipes: Names of recipes.
        models: Names of models.
    """
    found = BareWordAnswers([], set())
    for place, word in enumerate(words):
        if place in found.answered or word.startswith("~") or ("=" in word and not _is_apart(words, place)):
            continue
        run = [place]
        while run[-1] + 1 < len(words) and "=" not in words[run[-1] + 1]:
            run.append(run[-1] + 1)
        said, used = _answer(words, run, recipes, models)
        found.messages.append(said)
        found.answered.update(used)
    return found


def _is_apart(words: Sequence[str], place: int) -> bool:
    """Whether a word is one half of a `key=value` that blanks have split: `key=`, `=value` or `=`."""
    word, after = words[place], words[place + 1 : place + 2]
    begins = word.endswith("=") and word.count("=") == 1 and bool(after) and "=" not in after[0]
    return begins or word.startswith("=")


def _answer(
    words: Sequence[str], run: list[int], recipes: Collection[str], models: Collection[str]
) -> tuple[str, list[int]]:
    place = run[0]
    word, rest = words[place], [words[i] for i in run[1:]]
    said = f"`{shortened(word)}`"
    if "=" in word or (words[place + 1 : place + 2] and words[place + 1].startswith("=")):
        until = place + (3 if words[place + 1 : place + 2] == ["="] else 2)
        whole = shortened("".join(words[place:until]))
        said = f"write {whole} without blanks around the `=`, and quotes around a value with blanks."
        return said, list(range(place, min(until, len(words))))
    if not word.strip() or word == "\\":
        return (
            f"{said} stands alone: {'an empty word' if not word.strip() else 'a backslash ends a line'}; take it out.",
            [place],
        )
    if _TYPOGRAPHIC.search(word):
        return f"{said}: type plain quotes (') and dashes (-), and not the typographic ones.", [place]
    if (key := _as_key(word)) or (word in GROUPS and rest):
        value = rest[0] if rest else ("true" if key and FIELDS[key][1] is bool else "VALUE")
        return f"{said}: write {key or word}={shortened(value)}", run[:2]
    if word.lower() in _ASKS and not rest:
        return f"{said}: write python -m gemma_tune {_ASKS[word.lower()]}", [place]
    before = None if _is_prompt(words, word) else _split_value(words, place)
    if before and not _stands_alone(before, word, recipes, models):
        whole, part = " ".join([before, *(words[i] for i in run)]), " ".join(words[i] for i in run)
        quotes = shortened(shlex.quote(whole))
        return f"`{shortened(part)}` stands alone: put quotes around a value with blanks: {quotes}", [place - 1, *run]
    more = run[1:2] if word.lower() in _VERBS and rest and rest[0] in recipes else []
    return f"{said}{_single(words, word, rest, recipes, models)}", [place, *more]


def _is_prompt(words: Sequence[str], word: str) -> bool:
    """Whether a word is a text in quotes, where somebody wants to chat."""
    return " " in word and "recipe=chat" in words


def _single(words: Sequence[str], word: str, rest: list[str], recipes: Collection[str], models: Collection[str]) -> str:
    lower, chosen = word.lower(), next((w for w in words if w.startswith("recipe=")), None)
    if word in recipes and chosen not in (None, f"recipe={word}"):
        return f": one recipe at a time: {shortened(str(chosen))}, or recipe={word} in its place"
    if lower in _VERBS or word in GROUPS:
        if chosen:
            return f" isn't needed; leave it out: python -m gemma_tune {shortened(chosen)} …"
        name = rest[0] if rest and rest[0] in recipes else word if word in recipes else "qlora_sft"
        return f": what is done is said by a recipe: python -m gemma_tune recipe={name} …"
    if word in recipes:
        return f": write recipe={word}"
    if word in models:
        return f": write model={word}"
    if chosen and (group := _group_of(word)):
        return f": write {group}={word}"
    if lower.endswith(FILE_TYPES):
        return f": a file to train on is named by its key: data.train_file={word}"
    if lower.endswith((".yaml", ".yml")):
        return f": a recipe is named without its folder and ending: recipe={PurePath(word).stem}"
    if _ADDRESS.fullmatch(word):
        return f": a server to ask is named by its key: model.base_url={word}"
    if _ON_HUB.fullmatch(word):
        return f": a model is named by its key: model.model_name_or_path={word}"
    if _is_prompt(words, word):
        return f": write chat.prompt={shortened(shlex.quote(word))}"
    key, colon, value = word.partition(":")
    if colon and (known := _as_key(key)):
        return f": write {known}={value}"
    if hint := other_option("recipe", lower, recipes):
        return f" is not of the form key=value.{hint.replace('Did you mean ', 'Did you mean recipe=')}"
    if close := near(word, recipes):
        return f" is not of the form key=value. Did you mean recipe={close[0]}?"
    return f" is not of the form key=value.{suggest_key(word, FIELDS) if re.search('[._]', word) else ''}"


def _group_of(word: str) -> str | None:
    """The group that has an option of this name, if it is only one."""
    found = [group for group in GROUPS if word in options_of(group, [])]
    return found[0] if len(found) == 1 else None


def _stands_alone(before: str, word: str, recipes: Collection[str], models: Collection[str]) -> bool:
    """Whether a word means something of its own, and isn't the rest of the value before it."""
    key, _, value = before.partition("=")
    if key in FREE_TEXTS or "[" in value or "{" in value:
        return False
    if word.lower().endswith(FILE_TYPES):  # `data.train_file=my file.jsonl` is one name
        return FIELDS[key][0].metadata.get("path") != "rows" or value.lower().endswith(FILE_TYPES)
    return word in recipes or word in models or _group_of(word) is not None or bool(_ON_HUB.fullmatch(word))


def _as_key(word: str) -> str | None:
    word = word.replace("-", "_")
    key = full_key(OTHER_TOOLS.get(word, word))
    return key if key in FIELDS else None


def _split_value(words: Sequence[str], place: int) -> str | None:
    """The word before, if it is a `key=value` whose value may go on: of a text, or with an open bracket."""
    before = words[place - 1] if place else ""
    key, given, value = before.partition("=")
    in_brackets = value.count("[") > value.count("]") or value.count("{") > value.count("}")
    text = key in FIELDS and key not in GROUPS and "str" in str(FIELDS[key][1])
    return before if given and value and (in_brackets or text) else None
