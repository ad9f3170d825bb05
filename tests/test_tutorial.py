"""docs/tutorial.md in short: its first block runs, and every command is one that the program takes.

The whole way, as it stands and from an installed wheel, is a slow test of tests/test_wheel.py.
"""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from code_blocks import blocks_of

from gemma_tune.cli.compose import compose_config
from gemma_tune.errors import UserError


@pytest.fixture
def with_the_data(folder: Path) -> Path:
    """The current folder, with what the first block writes."""
    first = blocks_of("tutorial.md")[0]
    assert first.kind == "python"
    subprocess.run([sys.executable, "-c", first.text], cwd=folder, check=True)
    return folder


def test_the_csv_is_a_chat_log(with_the_data: Path) -> None:
    rows = {
        file: list(csv.DictReader((with_the_data / file).open(encoding="utf-8")))
        for file in ("support.csv", "test.csv")
    }
    assert {file: len(found) for file, found in rows.items()} == {"support.csv": 480, "test.csv": 32}
    for found in rows.values():
        assert set(Counter(row["conversation"] for row in found).values()) == {2}
        assert {row["sender"] for row in found} == {"customer", "agent_anna"}
    questions = [{row["text"] for row in found if row["sender"] == "customer"} for found in rows.values()]
    assert not questions[0] & questions[1]


def test_every_command_is_checked(with_the_data: Path) -> None:
    """Those that need the run of an earlier step say just that."""
    lines = [line for block in blocks_of("tutorial.md") if block.kind == "sh" for line in block.commands]
    commands = [shlex.split(line.removeprefix("python -m gemma_tune ")) for line in lines]
    checked = 0
    for recipe, *words in commands:
        try:
            compose_config(recipe.removeprefix("recipe="), words)
            checked += 1
        except UserError as error:
            assert "runs/support" in str(error), error
    assert checked >= 2 and {words[0] for words in commands} >= {
        "recipe=preview", "recipe=lora_sft", "recipe=evaluate", "recipe=chat", "recipe=export",
    }  # fmt: skip
