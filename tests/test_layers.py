"""Who may import whom, as the design says it, and what no file of ours does to other packages.

The imports are read from the source (those inside functions, too), so nothing is imported for this but in one child.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemma_tune.run import paths

PACKAGE = Path(paths.__file__).parent.parent
RECIPES = PACKAGE.parent / "recipes"
FILES = [*sorted(PACKAGE.rglob("*.py")), *sorted(RECIPES.glob("*.py"))]

HEAVY = {"torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "wandb", "scipy"}
# What anything may use; these import nothing of ours but each other.
BASE = (
    "errors", "untrusted", "run.paths", "run.lock", "user_code", "user_source", "neighbours", "same_json",
    "call_syntax", "child", "collector", "cores", "search_path", "progress", "processes", "process_failures",
    "nested", "media.files", "media.kinds", "media.content",
)  # fmt: skip
# The parts in the order of the design's tree: each may import those before it.
ORDER = (
    "config", "validation", "run", "media", "models", "chat", "data", "train", "rewards", "quant", "engines", "rl",
    "evals", "export",
)  # fmt: skip
# Modules that stand later than their part.
LATE = {"rl.reward_hacking": "evals"}
# Pure modules: any part may import them, wherever they stand, and they import no part.
PURE = (
    "chat",
    "data.records",
    "data.files",
    "data.file_rows",
    "data.compressed",
    "data.folders",
    "data.json_layouts",
    "data.json_tables",
    "data.json_decoder",
    "data.plain_text",
    "data.tables",
    "data.sources",
    "data.row_fields",
    "data.known_fields",
    "data.tools",
    "data.google",
    "data.anthropic",
    "data.message",
    "data.media_parts",
    "data.media_fields",
    "data.scratch",
    "data.messages",
    "data.conversation",
    "data.formats.messages",
    "data.formats.columns",
    "data.formats.text",
    "data.formats.alpaca",
    "data.formats.sharegpt",
    "data.formats.prompt_completion",
    "data.formats.translation",
    "data.formats.preference",
    "rewards",
    "quant.grid",
)
# Above the parts, for recipes and the command line only.
TOP = (
    "",
    "__main__",
    "cli",
    "compare",
    "sweep",
    "steps",
    "page",
    "preview",
    "report",
    "chat_cli",
    "doctor",
    "plan",
    "catalog",
    "serve",
    "sharing",
    "launching",
    "run.terminal",
)
# Recipes that are a sequence of others.
COMPOSED = ("recipes.tune_to_int4",)
# "Nothing up to 'the configuration has passed' imports torch."
LIGHT = (
    *BASE, "config", "validation", "run.identity", "run.manifest", "run.existing", "run.folder", "", "__main__",
    "cli.main", "cli.exit_status", "cli.arguments", "cli.overview", "cli.compose", "cli.defaults", "cli.runner",
    "cli.sweep", "cli.worker", "compare.names", "sweep.outcomes", "launching.start", "launching.place",
    "launching.handover", "launching.local",
)  # fmt: skip


def name_of(file: Path) -> str:
    """Dotted name below gemma_tune: `models.load`; `recipes.sft` for a recipe."""
    relative = file.relative_to(PACKAGE if file.is_relative_to(PACKAGE) else RECIPES.parent).with_suffix("")
    return ".".join(p for p in relative.parts if p != "__init__")


NAMES = {name_of(f) for f in FILES}


def belongs(name: str, groups: tuple[str, ...]) -> bool:
    """Whether a module is one of the groups or lies below one."""
    return any(name == g or (g and name.startswith(g + ".")) for g in groups)


def imports(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Every import with the full name of the module; `from a import b` is `a.b` where that is a module of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, a.name) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for a in node.names:
                longer = f"{node.module}.{a.name}"
                yield node, longer if longer.removeprefix("gemma_tune.") in NAMES else str(node.module)


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Every file by its name, parsed once."""
    return {name_of(file): parsed(file) for file in FILES}


def ours(tree: ast.Module) -> set[str]:
    """The modules of gemma_tune that a file imports, by their names below it."""
    found = {m for _, m in imports(tree) if m.split(".")[0] == "gemma_tune"}
    return {m.removeprefix("gemma_tune").lstrip(".") for m in found}


def place(name: str) -> int:
    """Where the part of a module stands in ORDER."""
    return ORDER.index(LATE.get(name, name.split(".")[0]))


def may_import(importer: str, target: str) -> bool:
    """The design's rule."""
    if belongs(target, BASE):
        return True
    if belongs(importer, BASE):
        return False
    if belongs(importer, PURE) or belongs(importer, ("config", "validation")):
        own = belongs(target, PURE) and importer.split(".")[0] == target.split(".")[0]
        return (
            own
            or belongs(target, ("config",))
            or (belongs(importer, ("validation",)) and belongs(target, ("validation",)))
        )
    if belongs(importer, TOP):
        return not belongs(target, ("recipes",))
    if belongs(importer, COMPOSED) and belongs(target, ("recipes",)):
        return not belongs(target, COMPOSED)
    if belongs(importer, ("recipes",)):
        return not belongs(target, ("", "__main__", "cli.main", "cli.compose", "cli.runner", "recipes"))
    return belongs(target, ORDER) and (belongs(target, PURE) or place(target) <= place(importer))


def test_imports_go_one_way(trees: dict[str, ast.Module]) -> None:
    wrong = {}
    for name, tree in trees.items():
        assert belongs(name, (*BASE, *ORDER, *TOP, "recipes")), f"{name} has no place in the order: give it one"
        wrong[name] = sorted(target for target in ours(tree) if not may_import(name, target))
    assert {name: targets for name, targets in wrong.items() if targets} == {}, "none may import these"


def test_the_rule_refuses() -> None:
    """The rule itself: what it must not let through."""
    for importer, target in [
        ("run.paths", "config"), ("config", "validation"), ("chat.render", "models.load"),
        ("data.records", "data.tokenized"),
        ("models.load", "train.sft"), ("data.tokenized", "evals.samples"), ("train.sft", "report"),
        ("run.folder", "models.load"), ("evals.samples", "recipes.sft"), ("cli.compose", "recipes.sft"),
        ("recipes.sft", "cli.runner"), ("recipes.sft", "recipes.qat"),
    ]:  # fmt: skip
        assert not may_import(importer, target), (importer, target)


def test_heavy_imports(trees: dict[str, ast.Module]) -> None:
    """Pure modules import no heavy library at all; those that run before the checks have passed, not at the top."""
    over_torch = ("quant.grid", "processes", "process_failures")  # the latter import it where there are several
    trackers = {"wandb", "tensorboard", "mlflow", "trackio"}
    wrong = {}
    for name, tree in trees.items():
        found = [(node, module.split(".")[0]) for node, module in imports(tree)]
        heavy = [(node, module) for node, module in found if module in HEAVY]
        if belongs(name, (*PURE, *BASE, "config", "validation")) and name not in over_torch:
            wrong[name] = [module for _, module in heavy]
        elif belongs(name, (*LIGHT, "processes", "process_failures")):
            inside = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
            wrong[name] = [module for node, module in heavy if node not in inside]
        if name != "run.trackers":
            wrong[f"{name}, trackers"] = [module for _, module in found if module in trackers]
    assert {name: modules for name, modules in wrong.items() if modules} == {}


def test_recipes_are_imported_by_name_in_one_place(trees: dict[str, ast.Module]) -> None:
    names = [
        name
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__"))
        if "recipes" in ast.unparse(node)
    ]
    assert set(names) == {"cli.runner"}


def root(node: ast.expr) -> str | None:
    """The leftmost name of `a.b.c` or `a.b[c]`."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def patches(tree: ast.AST) -> list[str]:
    """Assignments (`x.y = …`, `del x.y`, `setattr(x, …)`) where x is imported, the standard library aside."""
    imported = set()
    for node in ast.walk(tree):
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        for a in node.names if isinstance(node, ast.Import | ast.ImportFrom) else []:
            if (module or a.name).split(".")[0] not in sys.stdlib_module_names:
                imported.add((a.asname or a.name).split(".")[0])
    found = []
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            found += [ast.unparse(node)] * (root(node.args[0]) in imported)
        flat = [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple | ast.List) else [t])]
        found += [
            ast.unparse(node)
            for t in flat
            if isinstance(t, ast.Attribute | ast.Subscript)
            and (root(t) in imported or ast.unparse(t).startswith("sys.modules"))
        ]
    return found


def text_as_code(tree: ast.AST) -> list[str]:
    """Calls that run text as code, or that read a function's source."""
    calls = [ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)]
    return [c for c in calls if c in ("exec", "eval", "compile") or c.endswith(("getsource", "getsourcelines"))]


def test_other_packages_are_left_as_they_are(trees: dict[str, ast.Module]) -> None:
    """Nothing is patched into Transformers, TRL or PEFT, and no text is run as code."""
    found = {name: patches(tree) + text_as_code(tree) for name, tree in trees.items()}
    assert {name: code for name, code in found.items() if code} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import trl\ntrl.SFTTrainer.log = None", "from trl import SFTTrainer as T\nT.log = None",
        "import torch.nn as nn\nsetattr(nn, 'Linear', None)", "import peft\npeft.x, a = 1, 2",
        "import sys\nsys.modules['trl'] = None", "def f():\n    import trl\n    del trl.x",
    ],
)  # fmt: skip
def test_patches_are_seen(source: str) -> None:
    assert patches(ast.parse(source))


def test_composing_imports_no_torch() -> None:
    """In a process of its own: the package, and a whole configuration checked, without a heavy library."""
    code = (
        "import sys, gemma_tune\n"
        "from gemma_tune.cli.compose import compose_config\n"
        "compose_config('qlora_sft', ['train.extra.adam_beta2=0.95'])\n"
        f"print(*sorted({HEAVY!r} & set(sys.modules)))"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_few_places_ask_which_process_this_is() -> None:
    """Rank shows in processes.py, where the processes end, and in at most 25 lines besides."""
    asks = re.compile(r"(?<!def )\b(is_main_process|rank|world|local_world|several)\(\)|environ.*(RANK|WORLD_SIZE)")
    known = {"processes", "process_failures", "steps.session"}
    found = [
        f"{name_of(file)}: {line.strip()}"
        for file in FILES
        if name_of(file) not in known
        for line in file.read_text(encoding="utf-8").splitlines()
        if asks.search(line)
    ]
    assert len(found) <= 25, found
