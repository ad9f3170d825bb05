"""The messages that docs/troubleshooting.md quotes are those of the program, and its commands are checked."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from gemma_tune.cli.compose import compose_config
from gemma_tune.errors import UserError

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^> (.+)$", PAGE, re.MULTILINE)
COMMANDS = re.findall(r"^python -m gemma_tune (.+)$", PAGE, re.MULTILINE)
FIELD = "\0"


def texts() -> list[str]:
    """Every text of the source, with FIELD in place of what an f-string puts in."""
    found = []
    for file in sorted((ROOT / "gemma_tune").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else FIELD for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def in_program(message: str, said: list[str]) -> bool:
    """Whether a text of the program has all of a message's words, in order; `…` stands for anything."""
    parts = [part.strip() for part in message.split("…")]
    return any(in_order(parts, text) for text in said)


def in_order(parts: list[str], text: str) -> bool:
    """Whether the text has the parts one behind the other; a regular expression takes a minute for that."""
    place = 0
    for part in parts:
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def test_quoted_messages_are_those_of_the_program() -> None:
    said = texts()
    assert len(QUOTED) >= 15
    assert [message for message in QUOTED if not in_program(message, said)] == []
    assert not in_program("… is … at step …; this step updated some weights. …", said)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_checked(command: str) -> None:
    """Every word is one that the program takes; files and runs of the reader are not here."""
    recipe, *words = shlex.split(command)
    try:
        compose_config(recipe.removeprefix("recipe="), words)
    except UserError as error:
        assert re.search(r"my\.jsonl|runs/support", str(error)) and "did you mean" not in str(error).lower(), error
