"""What is released: the check of version, changelog and tag, the Dockerfile, and the page of the installation."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

from tools.release_check import changelog_problems, tree_problems, version_of, wheel_problems

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HEAD = "# Changelog\n\n## [Unreleased]\n"


def test_the_changelog_has_the_version() -> None:
    """Also with the changelog as it is: only the section of the version may be missing before a release."""
    assert list(changelog_problems("0.2.0", f"{HEAD}\n## [0.2.0] - 2026-12-01\n\n- new\n")) == []
    (missing,) = changelog_problems("0.2.0", f"{HEAD}\n- new\n\n## [0.1.0] - 2026-11-01\n")
    assert "no section [0.2.0]" in missing
    undated, left = changelog_problems("0.2.0", f"{HEAD}\n- new\n\n## [0.2.0]\n\n- old\n")
    assert "no date" in undated and "still has entries" in left
    version = version_of((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = list(changelog_problems(version, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    assert re.fullmatch(r"\d+\.\d+\.\d+", version) and len(found) <= 1, found


def test_a_tag_is_of_one_commit(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "one")
    assert list(tree_problems("1.0.0", tmp_path)) == []
    git("tag", "v1.0.0")
    assert list(tree_problems("1.0.0", tmp_path)) == []
    git("commit", "-q", "--allow-empty", "-m", "two")
    (tmp_path / "new.txt").touch()
    changed, tagged = tree_problems("1.0.0", tmp_path)
    assert "not committed" in changed and "the tag v1.0.0 is of another commit" in tagged.replace("The", "the", 1)


def test_the_wheel_is_of_the_version(tmp_path: Path) -> None:
    assert list(wheel_problems("1.0.0", tmp_path)) == ["dist/ has no wheel, and not the one wheel of 1.0.0."]
    with zipfile.ZipFile(tmp_path / "gemma_tune-1.0.0-py3-none-any.whl", "w") as z:
        z.writestr("gemma_tune/recipes/sft.py", "")
    lacks = " ".join(wheel_problems("1.0.0", tmp_path))
    assert "lacks gemma_tune/sweep/table.py" in lacks and "lacks gemma_tune/recipes/sft.py" not in lacks
    assert len(list(wheel_problems("1.0.1", tmp_path))) == 1


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, each with its words."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_the_dockerfile_copies_what_is_there_and_what_is_needed() -> None:
    copied = {w for kind, said in instructions() if kind == "COPY" for w in said.split()[:-1] if not w.startswith("--")}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept
    folders = {folder.split("/")[0] for folder in PYPROJECT["tool"]["setuptools"]["package-dir"].values()}
    project = PYPROJECT["project"]
    assert copied >= {"gemma_tune", *folders, project["readme"], *project["license-files"], "pyproject.toml"}


def test_the_dockerfile_keeps_the_rules() -> None:
    """A pinned image with CUDA, the lock with its digests, no caches left, and a user without rights at the end."""
    found = instructions()
    (image,) = (said for kind, said in found if kind == "FROM")
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d\d\.04", image)
    runs = [said for kind, said in found if kind == "RUN"]
    assert any("--require-hashes --no-deps -r requirements.lock" in said for said in runs)
    assert any("-c constraints.txt torch" in said for said in runs)
    for said in (said for said in runs if "apt-get install" in said):
        assert "--no-install-recommends" in said and "rm -rf /var/lib/apt/lists/*" in said
    users = [said for kind, said in found if kind == "USER"]
    assert users and users[-1] == "tuner" and "root" not in users
    assert all("--chown=tuner:tuner" in said for kind, said in found if kind == "COPY")
    (entry,) = (said for kind, said in found if kind == "ENTRYPOINT")
    assert json.loads(entry) == ["python", "-m", "gemma_tune"]
    assert "has not been built" in (ROOT / "docs" / "installation.md").read_text(encoding="utf-8").replace("\n", " ")


def test_the_page_of_the_installation_has_every_extra() -> None:
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    extras = set(PYPROJECT["project"]["optional-dependencies"]) - {"dev"}
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == extras
    assert PYPROJECT["project"]["requires-python"].removeprefix(">=") in page


def test_the_index_names_every_page() -> None:
    docs = ROOT / "docs"
    named = set(re.findall(r"\]\(([\w./-]+)\)", (docs / "README.md").read_text(encoding="utf-8")))
    assert {page.name for page in docs.glob("*.md")} - named == {"README.md"}
    assert "docs/README.md" in (ROOT / "README.md").read_text(encoding="utf-8")
