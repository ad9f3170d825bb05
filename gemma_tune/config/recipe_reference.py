"""docs/recipes.md: `python -m gemma_tune.config.recipe_reference > docs/recipes.md`.

What is said of a recipe stands in the comment of its YAML: a line that says what it does, its commands, and then what
it needs and what to expect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gemma_tune.config.methods import METHODS, Kind
from gemma_tune.config.reference import composed
from gemma_tune.run.paths import shipped_recipes

_TITLES = {
    Kind.TRAIN: "Training",
    Kind.MEASURE: "Measuring and comparing",
    Kind.COMPARE: "Measuring and comparing",
    Kind.EXPORT: "Files for inference engines",
}
_OTHER = "Looking, asking and helping"
_LEAVES = {
    Kind.MEASURE: "a run folder with the figures and every answer (`eval/`)",
    Kind.COMPARE: "a run folder with the comparison as Markdown and page",
    Kind.PREVIEW: "`preview.html`, and the rows in the terminal",
    Kind.CHAT: "answers in the terminal, or the file of `chat.output_file`",
    Kind.DOCTOR: "lines in the terminal, and exit status 0 or 1",
    Kind.PLAN: "tables in the terminal, and the file of `plan.output_file`",
    Kind.MODELS: "lines in the terminal; with `models.fetch` a model in the Hub's cache",
    Kind.SERVE: "nothing: it serves until Ctrl-C",
    Kind.PUSH: "a repository on the Hub for each artifact, with its card as README.md",
    Kind.COPY: "a `.py` and a `.yaml` of your own",
}


def comment(recipe: str) -> list[str]:
    """The comment at the head of a recipe's YAML, without its signs."""
    text = shipped_recipes()[recipe].read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines()[1:]:  # the first one is Hydra's
        if not line.startswith("#"):
            break
        lines.append(line[2:])
    return lines


def commands(lines: list[str]) -> list[str]:
    """The commands of a comment, which are indented; each with the lines that go on with it."""
    found: list[str] = []
    for line in lines:
        if re.match(r" +python -m gemma_tune ", line):
            found.append(line.strip())
        elif found and found[-1].endswith("\\") and line.startswith(" "):
            found[-1] += f"\n    {line.strip()}"
    return found


def _words(lines: list[str]) -> Iterator[str]:
    """The paragraphs behind the commands: a line that begins with `Memory:`, `Expect:` and the like begins one."""
    behind = max((n for n, line in enumerate(lines) if line.startswith("  ")), default=0) + 1
    text = ""
    for line in lines[behind:]:
        if text and (not line.strip() or re.match(r"[A-Z][a-z ]{2,20}: ", line)):
            yield text
            text = ""
        text = f"{text} {line.strip()}".strip()
    if text:
        yield text


def leaves(recipe: str) -> str:
    """What is there when the recipe is done."""
    tree: dict[str, Any] = composed(recipe)
    kind, formats = METHODS[tree["method"]].kind, tree["export"]["formats"]
    names = {"merged": "a plain Transformers folder", "gguf": "llama.cpp and Ollama", "w4a16": "vLLM"}
    exported = [f"`export/{name}/` ({names.get(name, name)})" for name in formats]
    if kind is Kind.EXPORT:
        return f"a run folder with {' and '.join(exported)}"
    if kind is not Kind.TRAIN:
        return _LEAVES.get(kind, "what it prints")
    adapter = ["`adapter/`"] if tree["adapter"]["peft_type"] != "none" and not METHODS[tree["method"]].stages else []
    if METHODS[tree["method"]].stages:
        adapter = [f"a run folder for each of its {len(METHODS[tree['method']].stages)} trainings"]
    return f"a run folder with report, figures and answers before and after, {', '.join([*adapter, *exported])}"


def markdown() -> str:
    """The whole page."""
    groups: dict[str, list[str]] = {title: [] for title in (*dict.fromkeys(_TITLES.values()), _OTHER)}
    for recipe in shipped_recipes():
        groups[_TITLES.get(METHODS[composed(recipe)["method"]].kind, _OTHER)].append(recipe)
    lines = [
        "# Recipes",
        "",
        "Every recipe with its commands and what comes out; generated from `configs/recipe/` by `make docs`. A command "
        "that names no run folder, file or model runs as it stands, on the embedded model and its sample. "
        "[configuration.md](configuration.md) lists every key.",
        "",
        "| you want | recipe |",
        "| --- | --- |",
    ]
    for recipes in groups.values():
        lines += [f"| {comment(recipe)[0].rstrip('.')} | [`{recipe}`](#{recipe}) |" for recipe in recipes]
    for title, recipes in groups.items():
        lines += ["", f"## {title}"]
        for recipe in recipes:
            said = comment(recipe)
            lines += ["", f"### {recipe}", "", said[0], "", "```", *commands(said), "```", ""]
            lines += [f"Leaves: {leaves(recipe)}.", *(line for words in _words(said) for line in ("", words))]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(markdown(), end="")
