"""The table of methods, and that nothing outside `config/` and `recipes/` asks for a method's name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gemma_tune.config.methods import METHODS, TRAINERS
from gemma_tune.run.paths import CONFIGS
from gemma_tune.validation.trainer_options import trainer_options

PACKAGE = Path(__file__).parent.parent / "gemma_tune"
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if not file.is_relative_to(PACKAGE / "config")]


def names_in(node: ast.AST) -> set[str]:
    """The text constants of an expression."""
    return {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}


def reads_method(node: ast.AST) -> bool:
    """Whether an expression reads a configuration's `method`: `x.method`, `x["method"]`, `getattr(x, "method")`."""
    if isinstance(node, ast.Attribute):
        return node.attr == "method"
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and node.slice.value == "method"
    if isinstance(node, ast.Call):
        named = [a.value for a in node.args if isinstance(a, ast.Constant)]
        return "method" in named and ast.unparse(node.func).endswith(("getattr", ".get", "attrgetter", ".pop"))
    return False


def questions(tree: ast.AST) -> Iterator[str]:
    """Where a method's name decides something: a comparison, `in`, a look-up or a `match`, under any variable name."""
    taken: set[str] = set()  # names of variables that hold a method's name
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value and reads_method(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            taken |= {t.id for t in targets if isinstance(t, ast.Name)}

    def holds(node: ast.AST) -> bool:
        return reads_method(node) or (isinstance(node, ast.Name) and node.id in taken)

    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(map(holds, [node.left, *node.comparators])):
            yield ast.unparse(node)
        elif isinstance(node, ast.Compare) and len(names_in(node) & set(METHODS)) > 1:
            yield ast.unparse(node)  # `name in ("qat", "dpo")`
        elif (isinstance(node, ast.Subscript) and holds(node.slice)) or (
            isinstance(node, ast.Call) and any(map(holds, node.args))
        ):
            yield ast.unparse(node)
        elif isinstance(node, ast.Match) and holds(node.subject):
            yield ast.unparse(node.subject)
        elif (
            isinstance(node, ast.Dict)
            and len({k for key in node.keys if key for k in names_in(key)} & set(METHODS)) > 1
        ):
            yield ast.unparse(node)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_nothing_asks_for_a_methods_name(file: Path) -> None:
    found = set(questions(ast.parse(file.read_text(encoding="utf-8"))))
    assert found == set()


@pytest.mark.parametrize(
    "source",
    [
        "if cfg.method == 'sft': pass", "x = c.method in ('dpo', 'qat')", "m = cfg.method\nif m != 'rl': pass",
        "RATES[cfg.method]", "RATES.get(config.method, 1)", "match conf.method:\n    case 'qat': pass",
        "if getattr(cfg, 'method') == name: pass", "if tree['method'] == wanted: pass", "x = kind in ('dpo', 'qat')",
        "RATES = {'dpo': 1, 'reward_model': 2}",
    ],
)  # fmt: skip
def test_questions_are_seen(source: str) -> None:
    assert list(questions(ast.parse(source)))


def test_every_recipe_has_a_method_and_every_method_a_recipe() -> None:
    used = set()
    for file in (CONFIGS / "recipe").glob("*.yaml"):
        method = yaml.safe_load(file.read_text(encoding="utf-8")).get("method")
        assert method in METHODS, file
        used.add(method)
    assert used == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_fits_together(name: str) -> None:
    m = METHODS[name]
    assert (PACKAGE.parent / "recipes" / f"{m.file}.py").is_file()
    assert m.trains == (m.trainer is not None)
    assert not m.trains or m.rates
    assert all(stage in METHODS for stage in m.stages)


def test_trainers_are_trls() -> None:
    for name in TRAINERS:
        assert "learning_rate" in trainer_options(name)
