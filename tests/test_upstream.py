"""What we override, call and read of other libraries' classes is still there, with the parameters that we know.

The classes of gemma_tune are walked, none is listed by hand. `upstream.json` holds the parameters of every method of
TRL, Transformers, PEFT, bitsandbytes, lm-eval and gguf that one of our classes overrides, and of every private method
that it calls. After an upgrade this test names what changed: read the upstream change, adapt our class, then write the
file anew with GEMMA_TUNE_WRITE_GOLDEN=1 and read it before it is committed.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest

import gemma_tune

RECORDED = Path(__file__).with_name("upstream.json")
LIBRARIES = ("trl", "transformers", "peft", "accelerate", "bitsandbytes", "lm_eval", "gguf")
PACKAGE = Path(gemma_tune.__file__).parent


def our_classes() -> dict[type, ast.ClassDef]:
    """Every class of gemma_tune that has a base, with its syntax tree."""
    found: dict[type, ast.ClassDef] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        nodes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases]
        if nodes:
            loaded = importlib.import_module(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts))
            found |= {getattr(loaded, node.name): node for node in nodes}
    return found


def upstream_of(cls: type) -> list[type]:
    """The classes of the libraries that a class of ours is built on, nearest first."""
    return [base for base in cls.__mro__ if base.__module__.split(".")[0] in LIBRARIES]


def parameters(function: Any) -> list[str]:
    """Names of the parameters, with the stars of *args and **kwargs."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [stars.get(p.kind, "") + p.name for p in inspect.signature(function).parameters.values()]


def private_names(node: ast.ClassDef) -> set[str]:
    """Private names that the class reads or calls on `self` and `super()`."""
    return {
        child.attr
        for child in ast.walk(node)
        if isinstance(child, ast.Attribute)
        and child.attr.startswith("_")
        and not child.attr.startswith("__")
        and (
            (isinstance(child.value, ast.Name) and child.value.id == "self")
            or (isinstance(child.value, ast.Call) and getattr(child.value.func, "id", "") == "super")
        )
    }


def assigned_upstream(name: str, bases: list[type]) -> bool:
    """True if a method of one of the classes names the attribute."""
    functions = (f for base in bases for f in vars(base).values() if inspect.isfunction(f))
    return any(name in inspect.unwrap(f).__code__.co_names for f in functions)


def found() -> dict[str, list[str]]:
    """`Their class.method` → its parameters; `attribute` for what is only read.

    A mixin's methods are looked up in the classes that it is mixed into: its own bases don't have them.
    """
    table: dict[str, list[str]] = {}
    nodes = our_classes()
    for leaf in nodes:
        theirs, ours = upstream_of(leaf), [base for base in leaf.__mro__ if base in nodes]
        defined = {name for base in ours for name in [*vars(base), *vars(base).get("__annotations__", {})]}
        for cls in ours:
            own = {n for n, value in vars(cls).items() if inspect.isfunction(value) and not n.startswith("__")}
            for name in own | private_names(nodes[cls]):
                owner = next((base for base in theirs if name in vars(base)), None)
                if owner is not None and callable(getattr(owner, name)):
                    table[f"{owner.__module__}.{owner.__name__}.{name}"] = parameters(getattr(owner, name))
                elif name not in defined and assigned_upstream(name, theirs):
                    table[f"{theirs[0].__module__}.{theirs[0].__name__}.{name}"] = ["attribute"]
    return table


def test_what_we_build_on_is_still_there() -> None:
    pytest.importorskip("lm_eval")
    now = found()
    if os.environ.get("GEMMA_TUNE_WRITE_GOLDEN"):
        RECORDED.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    recorded: dict[str, list[str]] = json.loads(RECORDED.read_text("utf-8"))
    gone = [name for name in recorded if name not in now]
    new = [f"{name}({', '.join(now[name])})" for name in now if name not in recorded]
    changed = [
        f"{name}: recorded ({', '.join(recorded[name])}), now ({', '.join(now[name])})"
        for name in recorded
        if name in now and now[name] != recorded[name]
    ]
    assert not gone, f"no longer upstream (or, after a change of ours, no longer used: write the file anew): {gone}"
    assert not changed, "other parameters upstream:\n" + "\n".join(changed)
    assert not new, "not recorded yet (GEMMA_TUNE_WRITE_GOLDEN=1 writes them):\n" + "\n".join(new)


def test_private_attributes_of_objects_that_are_not_ours(tiny: Path) -> None:
    """Read or called on a configuration, a tokenizer or a model of the libraries, here by the names they have there."""
    from peft import LoraConfig
    from transformers import AutoConfig

    assert parameters(LoraConfig._register_custom_module) == ["self", "mapping"]
    assert hasattr(AutoConfig.from_pretrained(tiny), "_attn_implementation")
