"""Checks the words of the command line before anything is composed."""

from __future__ import annotations

import itertools
import json
import re
import typing
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gemma_tune.errors import shortened
from gemma_tune.untrusted import check_yaml
from gemma_tune.validation.bare_words import FREE_TEXTS, TYPOGRAPHIC_QUOTES, answer_bare_words
from gemma_tune.validation.choices import LONGEST_KEY, WHERE, group_problem, options_of
from gemma_tune.validation.schema import (
    FIELDS,
    GROUPS,
    OPEN,
    is_open,
    is_secret,
    nest,
    of_a_secret,
    problems_of_tree,
    unknown_key,
)
from gemma_tune.validation.secret_words import without_secrets
from gemma_tune.validation.suggest import did_you_mean

_QUOTES = ("'", '"')
# Characters of a word (Hydra reads about 10,000 a second) and of a free text; values of a sweep
_WORD, _FREE_TEXT, _SWEPT = 8_000, 100_000, 200
# References to references double at each step: so few can't stand for more than about a thousand values.
_REFERENCE, _REFERENCES = re.compile(r"(?<!\\)(?:\\\\)*\$\{"), 20


def _parsed(word: str) -> Override:
    """The word as Hydra reads it.

    Raises:
        HydraException: It can't be read; also where Hydra's own parser fails in another way.
    """
    try:
        return OverridesParser.create().parse_override(word)
    except (ValueError, OverflowError):
        raise HydraException("a number in it has too many digits") from None
    except RecursionError:
        raise HydraException("it is nested too deeply") from None


def _values(override: Override) -> list[Any]:
    if override.is_sweep_override():
        values = list(itertools.islice(override.sweep_string_iterator(), _SWEPT + 1))
        if len(values) > _SWEPT:
            raise HydraException(f"a sweep of more than {_SWEPT} values")
        return [_parsed(f"{override.key_or_group}={v}").value() for v in values]
    return [override.value()]


def swept(word: str) -> list[tuple[str, Any]]:
    """The words that a word with several values stands for, each with its value; nothing for one of a single value.

    Args:
        word: A word in which `problems_of_words` has found nothing.
    """
    key, override = word.partition("=")[0], _parsed(quoted(word))
    if not override.is_sweep_override():
        return []
    texts = list(override.sweep_string_iterator())
    return list(zip((f"{key}={text}" for text in texts), _values(override), strict=True))


def _check(override: Override, config_dirs: list[Path]) -> str | None:
    key = override.key_or_group.lstrip("/")
    if key.startswith(("hydra.", "hydra/")):
        if key == "hydra.searchpath":
            return f"{WHERE}: use --config-dir FOLDER in place of hydra.searchpath."
        return None
    if "_target_" in key.split("."):
        return f"{WHERE}: `{key}`: there is no _target_ here; name a part of ours, or path/to/file.py:function."
    if override.is_delete():
        return f"{WHERE}: ~{key} can't be left out; set another value (for a group: {key}=none where it has one)."
    if override.package:
        return f"{WHERE}: {key}@{override.package}: a group has one place only; write {key}=OPTION."
    if key in GROUPS:
        problems = (group_problem(key, v, config_dirs) for v in _values(override))
        return next((p for p in problems if p), None)
    if message := unknown_key(key, WHERE):
        return message
    return next((p for v in _values(override) for p in problems_of_tree(nest(key, v), WHERE)), None)


def _too_long(word: str) -> str | None:
    key = word.partition("=")[0]
    if len(key) > LONGEST_KEY:
        return f"{WHERE}: `{shortened(word)}`: no key has more than {LONGEST_KEY} characters."
    most = _FREE_TEXT if key in FREE_TEXTS else _WORD
    if len(word) <= most:
        return None
    return f"{WHERE}: {shortened(word)} has more than {most:,} characters; write it into a YAML file of --config-dir."


def _sweep_problem(override: Override, word: str) -> str:
    """What to say to commas without `--multirun`."""
    key, value = override.key_or_group, word.partition("=")[2]
    kind = str(FIELDS[key][1]) if key in FIELDS else ""
    within = key.rpartition(".")[0]  # of a mapping such as reward.functions
    if not kind and within in FIELDS and "dict[str, str" in str(FIELDS[within][1]):
        kind = "str"
    if re.fullmatch(r"\d+,\d+", value) and "float" in kind:
        return f"{WHERE}: {shortened(word)}: write decimals with a point: {key}={value.replace(',', '.')}"
    if key == "export":  # several formats of one run
        formats = ",".join(part.strip().lower() for part in value.split(","))
        return f"{WHERE}: {shortened(word)}: formats of one run are a list: 'export.formats=[{shortened(formats)}]'"
    ways = [f"-m {word} runs once with each"]
    if "list" in kind:
        ways = [f"a list stands in brackets: '{key}=[{value}]'"]
    elif "str" in kind and key not in GROUPS:
        ways.append(f"quotes make it one text: {key}='\"{value}\"'")
    return f"{WHERE}: {shortened(word)}: a comma separates the values of a sweep; {'; '.join(map(shortened, ways))}."


def _unreadable(word: str, error: HydraException) -> str:
    said = shortened(word)
    key, _, value = word.partition("=")
    if value.startswith("="):
        return f"{WHERE}: `{said}`: write one `=`: {shortened(key + '=' + value.lstrip('='))}"
    if any(quote in word for quote in TYPOGRAPHIC_QUOTES):
        return f"{WHERE}: `{said}`: type plain quotes (') and not the typographic ones."
    if value.count("[") != value.count("]"):
        return f"{WHERE}: `{said}`: a bracket isn't closed; a list is written in quotes: '{key}=[one,two]'"
    if (message := unknown_key(key.lstrip("+"), WHERE)) and key not in GROUPS:
        return message
    if ";" in value and key in FIELDS and not _takes_text(key):
        meant = shortened(f"{key}={value.replace(';', ',')}")
        return f"{WHERE}: `{said}`: values are separated by a comma: -m {meant} runs once with each."
    reason = shortened(str(error).splitlines()[0])
    way = f"put quotes around it: '{said}' → key='\"…\"'"
    if word.partition("=")[2].startswith("{"):
        way = "write such names into a YAML file of yours (--config-dir FOLDER)"
    return f"{WHERE}: `{said}` can't be read ({reason}); {way}."


def problems_of_words(words: list[str], config_dirs: list[Path], sweeps: bool = False) -> list[str]:
    """All problems of the words that can be seen without composing.

    Args:
        words: As typed.
        config_dirs: The folders of `--config-dir`.
        sweeps: Whether commas mean several values (`--multirun`).
    """
    bare = answer_bare_words(words, options_of("recipe", config_dirs), options_of("model", config_dirs))
    found: list[str | None] = [f"{WHERE}: {without_secrets(said, words)}" for said in bare.messages]
    recipes = [w for w in words if w.startswith("recipe=")]
    if len(recipes) > 1:
        found.append(f"{WHERE}: {' '.join(map(shortened, recipes))}: one recipe at a time; several: -m recipe=A,B")
    for given in (word for place, word in enumerate(words) if place not in bare.answered):
        problem = _problem_of_word(given, config_dirs, sweeps)
        key = given.partition("=")[0].lstrip("+")
        found.append(f"{WHERE}: {key} {of_a_secret(key)}" if problem and is_secret(key) else problem)
    for root in config_dirs:
        if not root.is_dir():
            near = did_you_mean(root.name, [p.name for p in root.absolute().parent.glob("*/")])
            found.append(f"{WHERE}: --config-dir {root}: there is no such folder.{near}")
    return [f for f in found if f]


def _problem_of_word(given: str, config_dirs: list[Path], sweeps: bool) -> str | None:
    if long := _too_long(given):
        return long
    word = quoted(given)
    try:
        override = _parsed(word)
        alone = _sweep_problem(override, given) if override.is_sweep_override() and not sweeps else None
        return alone or _check(override, config_dirs)
    except HydraException as error:
        return _unreadable(word, error)


def in_quotes(value: str) -> str:
    """The value as a text for Hydra, whatever is in it."""
    # Backslashes are Hydra's own only where they stand before a quote or at the end.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


def literal(tree: Any) -> Any:
    """The value as OmegaConf reads it back: `${` in a text of it is no interpolation."""
    if isinstance(tree, dict):
        return {k: literal(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [literal(v) for v in tree]
    if isinstance(tree, str):
        return re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", tree)
    return tree


def too_many_references(tree: Any, where: str) -> str | None:
    """The message for more references (`${…}`) than anybody writes, or None."""
    if _references(tree) <= _REFERENCES:
        return None
    return f"{where}: it has more than {_REFERENCES} references (`${{…}}`); write the values themselves."


def _references(tree: Any) -> int:
    if isinstance(tree, dict | list):
        return sum(map(_references, tree.values() if isinstance(tree, dict) else tree))
    return len(_REFERENCE.findall(tree)) if isinstance(tree, str) else 0


def _quoted_free_text(key: str, value: str) -> str:
    """A prompt may be quoted as Hydra wants it, or not at all."""
    if value == "null":
        return f"{key}=null"
    try:
        override = _parsed(f"{key}={value}")
        if value[:1] in _QUOTES and not override.is_sweep_override():
            return f"{key}={value}"
    except HydraException:
        pass
    return f"{key}={in_quotes(literal(value))}"


def _takes_text(key: str) -> bool:
    """Whether the value is a text: of a key of its own, or of one below a mapping of texts (`data.test_files.name`)."""
    above = key.rpartition(".")[0]
    kinds = {key: FIELDS[key][1]} if key in FIELDS else {}
    if above in OPEN:
        kinds[key] = typing.get_args(FIELDS[above][1])[-1]
    kind = kinds.get(key)
    return str in (kind, *typing.get_args(kind))


def _mapping(value: str) -> str | None:
    """A mapping as JSON or YAML writes it, in Hydra's words, whose names can't be in quotes; None where it is none."""
    if not value.startswith("{"):
        return None
    try:
        check_yaml(value)
        return _in_hydras_words(OmegaConf.to_container(OmegaConf.create(value)))
    except (YAMLError, OmegaConfBaseException, ValueError):
        return None


def _in_hydras_words(tree: Any) -> str:
    if isinstance(tree, dict):
        names = {re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", str(name)): value for name, value in tree.items()}
        return f"{{{', '.join(f'{name}: {_in_hydras_words(value)}' for name, value in names.items())}}}"
    if isinstance(tree, list):
        return f"[{', '.join(map(_in_hydras_words, tree))}]"
    return in_quotes(tree) if isinstance(tree, str) else json.dumps(tree)


def _readable(word: str) -> bool:
    try:
        _parsed(word)
    except HydraException:
        return False
    return True


def quoted(word: str) -> str:
    """The word, with the value of a text key in quotes where Hydra would not read it as that text.

    A path with `~`, `=` or `(` in it would not be read at all, and `output_dir=1e3` would become 1000.0. A mapping as
    JSON writes it (`{"q_proj": 4}`) becomes one of Hydra's.
    """
    key, given, value = word.partition("=")
    if not given:  # a key alone, which has no value
        return word
    if key in FREE_TEXTS:
        return _quoted_free_text(key, value)
    if (key in OPEN or is_open(key)) and not _readable(word) and (mapping := _mapping(value)):
        return f"{key}={mapping}"
    if not _takes_text(key):
        return word
    try:
        override = _parsed(word)
        number = not override.is_sweep_override() and isinstance(override.value(), int | float)
    except HydraException:
        number = True
        if value[:1] + value[-1:] == "[]":  # texts, as `model.added_tokens=[<a>,<b>]`
            items = (item.strip() for item in value[1:-1].split(","))
            return f"{key}=[{','.join(i if i[:1] in _QUOTES else in_quotes(i) for i in items)}]"
    return f"{key}={in_quotes(value)}" if number and value.lower() not in ("true", "false") else word


def for_hydra(words: list[str]) -> list[str]:
    """The words as Hydra reads them: paths quoted, and `train.extra.name=value` marked as an addition."""
    keys = [w.split("=", 1)[0] for w in words]
    return [f"++{quoted(w)}" if k in OPEN or is_open(k) else quoted(w) for k, w in zip(keys, words, strict=True)]
