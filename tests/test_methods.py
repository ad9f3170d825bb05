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


def taken_names(tree: ast.AST) -> set[str]:
    """The variables that hold a method's name, alone or in a tuple."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) or node.value is None:
            continue
        values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(map(reads_method, values)):
            found |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return found


def questions(tree: ast.AST) -> Iterator[str]:
    """Where a method's name decides something: comparison, look-up, call or `match`, under any variable name."""
    taken = taken_names(tree)

    def holds(node: ast.AST) -> bool:
        return reads_method(node) or (isinstance(node, ast.Name) and node.id in taken)

    for node in ast.walk(tree):
        asked: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            sides, names = [node.left, *node.comparators], names_in(node) & set(METHODS)
            named = isinstance(node.left, ast.Attribute) and node.left.attr in ("recipe", "file") and names
            asked = [node] if len(names) > 1 or named else [side for side in sides if holds(side)]
        elif isinstance(node, ast.Subscript):
            asked = [node] if holds(node.slice) else []
        elif isinstance(node, ast.Call):
            given = [*node.args, *(k.value for k in node.keywords)]
            asked = [n for n in given if holds(n)]
            if isinstance(node.func, ast.Attribute) and holds(node.func.value):  # `cfg.method.startswith("qat")`
                asked.append(node)
        elif isinstance(node, ast.Match):
            asked = [node] if holds(node.subject) else []
        elif isinstance(node, ast.Dict):
            keys = {name for key in node.keys if key for name in names_in(key)}
            asked = [node] if len(keys & set(METHODS)) > 1 else []
        yield from (ast.unparse(node) for _ in asked[:1])


def test_nothing_asks_for_a_methods_name() -> None:
    found = {str(file.relative_to(PACKAGE)): [*questions(ast.parse(file.read_text("utf-8")))] for file in FILES}
    assert {name: asked for name, asked in found.items() if asked} == {}


@pytest.mark.parametrize(
    "source",
    [
        "if cfg.method == 'sft': pass", "x = c.method in ('dpo', 'qat')", "m = cfg.method\nif m != 'rl': pass",
        "RATES[cfg.method]", "RATES.get(config.method, 1)", "match conf.method:\n    case 'qat': pass",
        "if getattr(cfg, 'method') == name: pass", "if tree['method'] == wanted: pass", "x = kind in ('dpo', 'qat')",
        "x = cfg.method.startswith('qat')", "f(kind=cfg.method)", "name, why = cfg.method, 1\nif name == 'qat': pass",
        "if cfg.traits.file == 'rl' or cfg.recipe == 'qat': pass", "RATES = {'dpo': 1, 'reward_model': 2}",
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
