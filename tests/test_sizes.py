"""What keeps the house readable: recipes of at most 90 lines, functions of 70, files of 300, one class of each name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [*sorted((ROOT / "gemma_tune").rglob("*.py")), *sorted((ROOT / "recipes").glob("*.py"))]


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    """Every file, parsed once."""
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def test_lengths_of_files() -> None:
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    too_long = {name(f): n for f, n in lines.items() if n > (90 if f.parent.name == "recipes" else 300)}
    assert too_long == {}


def test_lengths_of_functions(trees: dict[Path, ast.Module]) -> None:
    functions = [
        (name(file), node.name, node.end_lineno - node.lineno)
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [f for f in functions if f[2] >= 70] == []


def test_no_class_has_a_namesake(trees: dict[Path, ast.Module]) -> None:
    found = defaultdict(list)
    for file, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(name(file))
    assert {cls: files for cls, files in found.items() if len(files) > 1} == {}
