"""What the documents name exists: files, modules, tests, keys, options, make targets and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemma_tune.run.paths import CONFIGS
from gemma_tune.validation.schema import FIELDS, GROUPS, OPEN

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# It also names what is gone, so only its links are checked.
CHANGELOG = ROOT / "CHANGELOG.md"
# A recipe of the reader's own, a mistake that is shown as one, and a key that a decision record says is gone.
EXAMPLES = {"recipe=my_run", "train.lerning_rate", "train.algorithm"}
SUFFIXES = (".html", ".jsonl", ".py")

OPTION_GROUPS = sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir())
PATH = re.compile(r"(?<![\w/.…-])(?:gemma_tune|recipes|configs|tests|docs|benchmarks|tools)/[\w./-]*")
MODULE = re.compile(r"\bgemma_tune((?:\.\w+)+)")
OPTION = re.compile(rf"(?<![\w.])({'|'.join(OPTION_GROUPS)})=([\w,]+)\b(?!\.py|[/\w])")
KEY = re.compile(rf"(?<![\w./])(?:{'|'.join(g for g in GROUPS if g)})(?:\.[a-z]\w*)+(?![\w.]*[(/])")
TEST = re.compile(r"(tests/[\w/]+\.py)|\b(test_\w+)\b(?!\.py|[/\w])")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def code_of(text: str) -> Iterator[str]:
    """The code blocks and the code spans of a document."""
    fence = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    yield from fence.findall(text)
    yield from re.findall(r"^ {4}\S.*", text, re.MULTILINE)
    yield from re.findall(r"`([^`\n]+)`", fence.sub("", text))


def missing_paths(text: str) -> list[str]:
    """Named files and folders of this repository that are not there; `NAME` stands for any file."""
    without_links = re.sub(r"\]\([^)\s]*\)", "]", text)  # those are relative to the document
    found = {path.rstrip(".") for path in PATH.findall(without_links) if "NAME" not in path}
    return sorted(path for path in found if not (ROOT / path).exists())


def missing_modules(text: str) -> list[str]:
    """Dotted names that lead to no module, or to a name that the module does not hold."""
    return sorted({"gemma_tune" + dotted for dotted in MODULE.findall(text) if not _is_there(dotted[1:].split("."))})


def _is_there(parts: list[str]) -> bool:
    where = ROOT if parts[0] == "recipes" else ROOT / "gemma_tune"  # gemma_tune.recipes stands in recipes/
    while parts and ((where / parts[0]).is_dir() or (where / f"{parts[0]}.py").is_file()):
        where, parts = where / parts[0], parts[1:]
    source = where / "__init__.py" if where.is_dir() else where.with_suffix(".py")
    return not parts or re.search(rf"\b{parts[0]}\b", source.read_text(encoding="utf-8")) is not None


def missing_options(text: str) -> list[str]:
    """`group=option` without a file of configs/."""
    named = {(g, option) for code in code_of(text) for g, words in OPTION.findall(code) for option in words.split(",")}
    named = {(g, option) for g, option in named if option and option != "NAME"}
    missing = {f"{g}={option}" for g, option in named if not (CONFIGS / g / f"{option}.yaml").is_file()}
    return sorted(missing - EXAMPLES)


def missing_keys(text: str) -> list[str]:
    """Dotted keys that the schema does not have; a group of keys may be named, too."""

    def is_key(key: str) -> bool:
        groups = any(known.startswith(f"{key}.") for known in FIELDS)
        return key in FIELDS or groups or any(key.startswith(f"{mapping}.") for mapping in OPEN)

    found = {key for code in code_of(text) for key in KEY.findall(code) if not key.endswith(SUFFIXES)}
    return sorted({key for key in found if not is_key(key)} - EXAMPLES)


def missing_tests(text: str) -> list[str]:
    """Tests that are named behind a file of tests, on the same line, and are not in it."""
    missing = []
    for line in text.splitlines():
        file = ""
        for path, test in TEST.findall(line):
            file = path or file
            source = (ROOT / file).read_text(encoding="utf-8") if file and (ROOT / file).is_file() else ""
            if test and file and f"def {test}(" not in source:
                missing.append(f"{file}::{test}")
    return missing


def missing_targets(text: str) -> list[str]:
    """`make` targets that the Makefile does not have; `bench-…` stands for those that begin so."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {target for code in code_of(text) for target in re.findall(r"(?:^|\s)make ([a-z][a-z0-9-]*)", code)}
    starts = {target if target.endswith("-") else f"{target}:" for target in named}
    return sorted(s for s in starts if not re.search(rf"^{re.escape(s)}", makefile, re.MULTILINE))


def broken_links(file: Path) -> list[str]:
    """Relative links that lead to no file, or to a heading that the file does not have."""
    broken = []
    for link in LINK.findall(file.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = file.parent / path if path else file
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)
    return broken


def headings(file: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_what_is_named_exists(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    checks = (missing_paths, missing_modules, missing_options, missing_keys, missing_tests, missing_targets)
    missing = {check.__name__: found for check in checks if (found := check(text))}
    assert not missing


@pytest.mark.parametrize("file", [*DOCUMENTS, CHANGELOG], ids=name_of)
def test_links_resolve(file: Path) -> None:
    assert broken_links(file) == []


def test_the_tree_of_the_readme_has_every_room() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## How the code is laid out")[1]
    rooms = {folder.name for folder in (ROOT / "gemma_tune").iterdir() if (folder / "__init__.py").is_file()}
    lines = dict(re.findall(r"^  (\w+)/ +(.*)", tree, re.MULTILINE))
    assert set(lines) == rooms
    files = [ROOT / "gemma_tune" / room / file for room, line in lines.items() for file in re.findall(r"\w+\.py", line)]
    assert [file for file in files if not file.is_file()] == []
    top = set(re.findall(r"^(\w+)/ ", tree, re.MULTILINE))
    assert {"recipes", "configs", "data", "gemma_tune", "tests", "benchmarks", "tools", "docs"} == top


SOURCES = [file for room in ("gemma_tune", "recipes", "configs") for file in sorted((ROOT / room).rglob("*"))]


def british(text: str) -> list[str]:
    """The lines with `quantise`; runs have stored the name `unquantised`, so it stays where it is a name."""
    return re.findall(r"^.*quantis.*$", re.sub(r'"unquantised"|unquantised_', "", text), re.MULTILINE | re.IGNORECASE)


def test_quantize_is_spelled_with_a_z() -> None:
    files = [*DOCUMENTS, *(f for f in SOURCES if f.suffix in (".py", ".yaml"))]
    found = {name_of(file): british(file.read_text(encoding="utf-8")) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_the_checks_find_what_is_missing(tmp_path: Path) -> None:
    """The checks themselves: each finds the wrong name and leaves the right one alone."""
    assert missing_paths("`gemma_tune/talk/voice.py`, `tests/test_docs.py`.") == ["gemma_tune/talk/voice.py"]
    assert missing_modules("gemma_tune.evals.outcome.Outcome, gemma_tune.evals.base.Outcome, gemma_tune.run") == [
        "gemma_tune.evals.outcome.Outcome"
    ]
    assert missing_options("`recipe=build_tiny adapter=lora,nix recipe=NAME`") == ["adapter=nix", "recipe=build_tiny"]
    assert missing_keys("`eval.while_training=[answers] train.extra.anything=1 quant.stage2`") == [
        "eval.while_training"
    ]
    assert missing_tests("`tests/test_docs.py::test_nothing`, `test_links_resolve`") == [
        "tests/test_docs.py::test_nothing"
    ]
    assert missing_targets("`make figures-nix`, `make bench-…`, `make test`") == ["figures-nix:"]
    assert british('run.measure("unquantised")\nQuantised, quantized\n') == ["Quantised, quantized"]
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](page.md#a-title) [b](gone.md) [c](#nothing)\n", encoding="utf-8")
    assert broken_links(page) == ["gone.md", "#nothing"]
