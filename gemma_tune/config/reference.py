"""docs/configuration.md from the schema: `python -m gemma_tune.config.reference > docs/configuration.md`."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

from gemma_tune.config import Config
from gemma_tune.config.option import plain_number


def _type(kind: Any) -> str:
    arguments = typing.get_args(kind)
    if type(None) in arguments:
        return " or ".join(_type(a) for a in arguments if a is not type(None)) + " or null"
    if typing.get_origin(kind) is dict:
        return "mapping"
    if typing.get_origin(kind) is list:
        return f"list of {_type(arguments[0])}"
    return {int: "int", float: "float", bool: "bool", str: "str"}.get(kind, "any")


def _limits(metadata: Any) -> str:
    words = {"at_least": "≥", "above": ">", "at_most": "≤"}
    limits = [f"{sign} {plain_number(metadata[name])}" for name, sign in words.items() if metadata[name] is not None]
    if metadata["choices"]:
        limits.append("one of " + ", ".join(metadata["choices"]))
    return f" ({', '.join(limits)})" if limits else ""


def _default(f: dataclasses.Field[Any]) -> str:
    value = f.default if f.default is not dataclasses.MISSING else typing.cast(Any, f.default_factory)()
    # As YAML writes it
    return json.dumps(value) if value is None or isinstance(value, bool | dict) or value == "" else str(value)


def _table(cls: type, prefix: str) -> list[str]:
    hints = typing.get_type_hints(cls)
    lines = ["| key | default | type | meaning |", "| --- | --- | --- | --- |"]
    for f in dataclasses.fields(cls):
        if not dataclasses.is_dataclass(hints[f.name]):
            meaning = f.metadata["help"].replace("|", "\\|") + _limits(f.metadata)
            lines.append(f"| `{prefix}{f.name}` | `{_default(f)}` | {_type(hints[f.name])} | {meaning} |")
    return [*lines, ""]


def markdown() -> str:
    """The whole page."""
    lines = [
        "# Configuration",
        "",
        "Every key with its default, generated from the schema (`make docs`). A file of `configs/` overrides some of "
        "them, and the command line overrides both. Names are those of Transformers, TRL and PEFT.",
        "",
        *_table(Config, ""),
    ]
    return "\n".join([*lines, *_sections(Config, "", "##")])


def _sections(cls: type, prefix: str, mark: str) -> list[str]:
    """The tables of what has keys of its own below it, each under a heading."""
    hints = typing.get_type_hints(cls)
    lines = []
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            kind, name = typing.cast(type, hints[f.name]), f"{prefix}{f.name}"
            lines += [f"{mark} {name}", "", (kind.__doc__ or "").strip(), "", *_table(kind, f"{name}.")]
            lines += _sections(kind, f"{name}.", mark + "#")
    return lines


if __name__ == "__main__":
    print(markdown(), end="")
