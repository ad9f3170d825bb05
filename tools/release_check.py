"""Whether this commit can be released: `make release-check`, after the wheel and the source archive are in dist/.

The version stands once, in pyproject.toml; the changelog has a section of it, and its tag is not of another commit.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent


def version_of(pyproject: str) -> str:
    """The version in the text of pyproject.toml."""
    return str(tomllib.loads(pyproject)["project"]["version"])


def changelog_problems(version: str, changelog: str) -> Iterator[str]:
    """What the changelog lacks for a release of a version."""
    sections = dict(re.findall(r"^## \[([^\]]+)\](.*)$", changelog, re.MULTILINE))
    if version not in sections:
        yield f"CHANGELOG.md has no section [{version}]: make one of [Unreleased], with the date."
    elif not re.fullmatch(r" - \d{4}-\d\d-\d\d", sections[version]):
        yield f"CHANGELOG.md: the section [{version}] has no date, as in `## [{version}] - 2026-12-01`."
    left = re.search(r"^## \[Unreleased\]\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if version in sections and left and left[1].strip():
        yield f"CHANGELOG.md: [Unreleased] still has entries; they belong to [{version}] or to the next version."


def tree_problems(version: str, root: Path) -> Iterator[str]:
    """What git says against a release: changed files, or a tag of another commit."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    if git("status", "--porcelain"):
        yield "There are changed or new files that are not committed."
    tagged = git("rev-list", "-n", "1", f"v{version}")
    if tagged and tagged != git("rev-parse", "HEAD"):
        yield f"The tag v{version} is of another commit ({tagged[:8]}): raise the version in pyproject.toml."


def wheel_problems(version: str, dist: Path) -> Iterator[str]:
    """What the wheel in dist/ lacks."""
    wheels = list(dist.glob("*.whl"))
    if [wheel.name.split("-")[1] for wheel in wheels] != [version]:
        yield f"dist/ has {', '.join(w.name for w in wheels) or 'no wheel'}, and not the one wheel of {version}."
        return
    with zipfile.ZipFile(wheels[0]) as z:
        names = set(z.namelist())
    modules = (str(file.relative_to(ROOT)) for file in (ROOT / "gemma_tune").rglob("*.py"))
    recipes = (f"gemma_tune/{file.relative_to(ROOT)}" for file in (ROOT / "recipes").glob("*.py"))
    for needed in (*modules, *recipes, "gemma_tune/configs/config.yaml", "gemma_tune/assets/tiny/config.json"):
        if needed not in names:
            yield f"{wheels[0].name} lacks {needed}."


def main() -> int:
    """Prints every problem; 0 where there is none."""
    version = version_of((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = [
        *changelog_problems(version, changelog),
        *tree_problems(version, ROOT),
        *wheel_problems(version, ROOT / "dist"),
    ]
    for problem in found:
        print(f"release-check: {problem}", file=sys.stderr)
    if not found:
        print(
            f"Version {version} can be released: git tag v{version} && git push origin v{version}, then upload dist/."
        )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
