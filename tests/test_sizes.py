"""What keeps the house readable: recipes of at most 90 lines, functions of 70, files of 300, one class of each name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [*sorted((ROOT / "gemma_tune").rglob("*.py")), *sorted((ROOT / "recipes").glob("*.py"))]
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=name)
def test_lengths(file: Path) -> None:
    most = 90 if file.parent.name == "recipes" else 300
    assert len(file.read_text(encoding="utf-8").splitlines()) <= most
    functions = [n for n in ast.walk(TREES[file]) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno >= 70] == []


def test_no_class_has_a_namesake() -> None:
    found = defaultdict(list)
    for file, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(name(file))
    assert {cls: files for cls, files in found.items() if len(files) > 1} == {}
