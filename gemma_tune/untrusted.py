"""Reads small files that others have written (settings, headers, results): sizes are bounded before they are believed.

A file of a few bytes can stand for terabytes: aliases of aliases in YAML, lists in lists in JSON, a number of a million
digits. Each reader here refuses what is too large with ValueError, so that its caller can say which file it was. Rows
of data have readers of their own (`data/`). Imports no torch.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from gemma_tune.errors import UserError

MIB = 1 << 20
# Of JSON: bytes; values in lists and mappings (about 100 bytes each in Python); lists in lists
_JSON_BYTES, _JSON_VALUES, _DEPTH = 64 * MIB, 1_000_000, 100
_LINE = 4 * MIB  # bytes of a line of results
# Of YAML, which Python reads at about 200 KiB a second: characters; values once every alias is written out
_YAML_CHARACTERS, _YAML_VALUES = 128 << 10, 5_000
_TEXT = 64  # characters of a text in YAML that count as one value


class TooLarge(ValueError):
    """A file, or what it stands for, is larger than anything it could be."""


def read_bytes(path: Path, most: int = _JSON_BYTES) -> bytes:
    """A whole file.

    Raises:
        OSError: It can't be read.
        TooLarge: It has more than `most` bytes.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise TooLarge(f"it has more than {most // MIB or most / MIB:g} MiB")
    return content


def parse_json(content: str | bytes, values: int = _JSON_VALUES) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is not JSON, not UTF-8, or holds too many values, lists within lists, or digits in a number.
    """
    if len(content) > _JSON_BYTES:
        raise TooLarge(f"it has more than {_JSON_BYTES // MIB} MiB")
    text = content.decode("utf-8") if isinstance(content, bytes) else content
    begun = text.count("[") + text.count("{")
    if begun + text.count(",") > values:
        raise TooLarge(f"it holds more than {values:,} values")
    try:
        value = json.loads(text)
    except RecursionError:
        raise TooLarge("it is nested too deeply") from None
    if begun > _DEPTH:
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(_DEPTH):
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level = [v for values in inner for v in values]
        if not level:
            return
    raise TooLarge(f"it is nested more than {_DEPTH} deep")


def read_json(path: Path, most: int = _JSON_BYTES, values: int = _JSON_VALUES) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: It can't be read.
        ValueError: As `parse_json`.
    """
    return parse_json(read_bytes(path, most), values)


def read_object(path: Path, most: int = _JSON_BYTES, values: int = _JSON_VALUES) -> dict[str, Any]:
    """The same where the value must be a JSON object.

    Raises:
        OSError: It can't be read.
        ValueError: As `parse_json`, or it is another value.
    """
    value = read_json(path, most, values)
    if not isinstance(value, dict):
        raise ValueError(f"it is no object of names and values, but {type(value).__name__}")
    return value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON object of each whole line of a file; an incomplete last line, of a run that was killed, is left out.

    Raises:
        UserError: A line is something else.
    """
    with path.open("rb") as file:
        number = 0
        while (line := file.readline(_LINE + 1)).endswith(b"\n") or len(line) > _LINE:
            number += 1
            try:
                value = parse_json(line) if len(line) <= _LINE else None
                if not isinstance(value, dict):
                    long = len(line) > _LINE
                    raise ValueError(f"more than {_LINE:,} bytes" if long else "it is no object of names and values")
            except ValueError as error:
                raise UserError(f"{path}:{number}: this line can't be read ({error}); take it out.") from error
            yield value


def check_yaml(text: str) -> None:
    """Refuses YAML that stands for more than is written there, before it is read.

    Raises:
        ValueError: It is no YAML, too long, nested too deeply, or its aliases lead to themselves or multiply.
    """
    if len(text) > _YAML_CHARACTERS:
        raise TooLarge(f"it has more than {_YAML_CHARACTERS:,} characters")
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None and _written_out(node, {}) > _YAML_VALUES:
            raise TooLarge(f"it stands for more than {_YAML_VALUES:,} values (aliases of aliases, or a long text)")
    except RecursionError:
        raise TooLarge("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def yaml_fault(file: str | Path, error: Exception) -> str:
    """Why a file is no valid YAML, in one line with its line.

    Args:
        file: The file.
        error: Of PyYAML, or what was made of it.
    """
    of_yaml = error if isinstance(error, yaml.MarkedYAMLError) else error.__cause__
    mark = of_yaml.problem_mark if isinstance(of_yaml, yaml.MarkedYAMLError) else None
    if mark is None or not isinstance(of_yaml, yaml.MarkedYAMLError):
        return f"{file}: this is not valid YAML: {' '.join(str(error).split())}"
    said = of_yaml.problem or of_yaml.context
    if "'\\t'" in str(said):
        said = "there is a tab; indent with spaces"
    return f"{file}:{mark.line + 1}: this is not valid YAML: {said}."


def _written_out(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """How many values there are once every alias is written out."""
    if id(node) in sizes:
        size = sizes[id(node)]
        if size is None:
            raise TooLarge("an alias leads to itself")
        return size
    sizes[id(node)] = None
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inner = [n for pair in node.value for n in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    own = 1 + (len(node.value) // _TEXT if isinstance(node, yaml.ScalarNode) else 0)
    sizes[id(node)] = size = own + sum(_written_out(n, sizes) for n in inner)
    return size


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: As `check_yaml`, or a value in it can't be read: a date that isn't one, a number of thousands of
            digits.
    """
    check_yaml(text)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, TypeError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def read_yaml(path: Path) -> Any:
    """The value of a YAML file.

    Raises:
        OSError: It can't be read.
        ValueError: As `parse_yaml`, or it is not UTF-8.
    """
    return parse_yaml(read_bytes(path, 4 * _YAML_CHARACTERS).decode("utf-8"))


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Stops Python code, regular expressions included, after some seconds; only in the main thread.

    Raises:
        TimeoutError: The time is over.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it takes more than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
