"""No call of ours lets a library run what a model's folder brings with it: read from the source of every call."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [*sorted((ROOT / "gemma_tune").rglob("*.py")), *sorted((ROOT / "recipes").glob("*.py"))]
LOADS = ("from_pretrained", "from_config", "load_dataset")
# Where pickles are read: our own, written in the same process, into a folder that only this user can open; and what the
# processes of one run tell one another, as torch's own collectives of objects do.
PICKLES = {
    "gemma_tune/data/record_cache.py", "gemma_tune/data/render_ahead.py", "gemma_tune/data/render_worker.py",
    "gemma_tune/data/stream.py", "gemma_tune/processes.py",
}  # fmt: skip


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def unsafe(name: str, call: ast.Call) -> str | None:
    """What a call lacks."""
    given = {k.arg: ast.unparse(k.value) for k in call.keywords}
    last = name.rpartition(".")[2]
    if last in LOADS and given.get("trust_remote_code") != "False":
        return "trust_remote_code=False"
    weights = "Model" in name or name.startswith("cls.")
    if last == "from_pretrained" and weights and given.get("use_safetensors") != "True":
        return "use_safetensors=True"
    if name == "torch.load" and given.get("weights_only") != "True":
        return "weights_only=True"
    return "no pickle" if last in ("load", "loads", "Unpickler") and "pickle" in name else None


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_load_is_safe(file: Path) -> None:
    found = [f"line {call.lineno}: {lack}" for name, call in calls(file) if (lack := unsafe(name, call))]
    assert not found or str(file.relative_to(ROOT)) in PICKLES, found


def test_there_are_loads() -> None:
    assert sum(name.rpartition(".")[2] in LOADS for file in FILES for name, _ in calls(file)) >= 8


@pytest.mark.parametrize(
    "source",
    [
        "AutoTokenizer.from_pretrained(x)", "AutoModel.from_pretrained(x, trust_remote_code=False)",
        "AutoConfig.from_pretrained(x, trust_remote_code=cfg.trust)", "datasets.load_dataset(x)", "torch.load(x)",
        "pickle.load(x)", "torch.load(x, weights_only=False)",
    ],
)  # fmt: skip
def test_the_rule_refuses(source: str) -> None:
    call = ast.parse(source).body[0].value
    assert unsafe(ast.unparse(call.func), call)
