"""Installed packages, against what gemma_tune asks for and against the versions that it is tested with.

The tested versions are those of `constraints.txt`, which stands here as a link to the file at the top of a checkout;
the wheel holds its content. The wheel's metadata asks for the least versions only.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from gemma_tune.config import EngineConfig
from gemma_tune.doctor.findings import Finding, broken, limits, works
from gemma_tune.engines.vllm_server import find_vllm
from gemma_tune.errors import listed

_TESTED = Path(__file__).with_name("constraints.txt")
_EXTRAS = {
    "gguf": "llama.cpp, for int4 files and recipe=tune_to_int4",
    "mlx": "mlx-lm, for checking export.formats=[mlx]",
    "eval": "lm-evaluation-harness, for eval=lm_eval",
    "rl": "rewards of mathematics, languages and JSON",
    "serving": "recipe=serve of other weights than GGUF files",
    "audio": "sound in rows, and eval.evaluators=[wer]",
    "video": "video in rows",
    "trackers": "tracker=tensorboard, mlflow and trackio",
}


def tested_versions() -> dict[str, str]:
    """The version of each package that the tests ran with, by its normalised name."""
    lines = re.findall(r"^([\w.-]+)==(\S+)", _TESTED.read_text(encoding="utf-8"), re.MULTILINE)
    return {_normal(name): version for name, version in lines}


def needed() -> dict[str, list[Requirement]]:
    """What gemma_tune asks for on this machine: of every run under "", of an extra under its name.

    Raises:
        PackageNotFoundError: It isn't installed.
    """
    names = metadata.metadata("gemma_tune").get_all("Provides-Extra") or []
    return applying([Requirement(line) for line in metadata.requires("gemma_tune") or []], names)


def applying(wanted: Sequence[Requirement], extras: Sequence[str]) -> dict[str, list[Requirement]]:
    """The requirements whose markers (`sys_platform == "linux"`, `extra == "rl"`) hold here, as `needed` gives them."""

    def applies(one: Requirement, extra: str) -> bool:
        return one.marker is None or one.marker.evaluate({"extra": extra})

    found = {"": [one for one in wanted if applies(one, "")]}
    return found | {name: [one for one in wanted if not applies(one, "") and applies(one, name)] for name in extras}


def packages() -> Iterator[Finding]:
    """One line for what every run needs, and one for each extra."""
    try:
        tested, everything = tested_versions(), needed()
    except metadata.PackageNotFoundError:
        folder = Path(__file__).parents[2]
        said = "gemma_tune isn't installed, so it isn't known which packages it needs"
        yield limits("packages", said, f"pip install -e {shlex.quote(str(folder))}")
        return
    core = everything[""]
    if wrong := list(_wrong(core)):
        names = " ".join(f"'{name}{specifier}'" for name, specifier, _ in wrong)
        yield broken("packages", listed(said for *_, said in wrong), f"pip install {names}")
    else:
        yield _compared("packages", core, tested)
    for extra, meaning in _EXTRAS.items():
        if wrong := list(_wrong(everything.get(extra, []))):
            said = f"{listed(said for *_, said in wrong)}: {meaning}"
            yield limits(f"[{extra}]", said, f"Where you need it: pip install 'gemma_tune[{extra}]'")
        else:
            yield _compared(f"[{extra}]", everything.get(extra, []), tested)


def engines() -> Iterator[Finding]:
    """Engines that serve what was exported, and that no recipe needs."""
    found = {"vLLM": find_vllm(EngineConfig(), look=True), "Ollama": shutil.which("ollama")}
    ways = {
        "vLLM": "install it in an environment of its own (make setup-vllm for a CPU), and name it: engine.vllm=…",
        "Ollama": "https://ollama.com/download",
    }
    for name, place in found.items():
        if place:
            yield works(name, str(place))
        else:
            yield limits(name, "not installed; only needed to serve models with it", ways[name])


def _wrong(wanted: list[Requirement]) -> Iterator[tuple[str, str, str]]:
    """Name, specifier, and what is wrong, of each package that is missing or too old."""
    for one in wanted:
        version = _version(one.name)
        if version is None:
            yield one.name, str(one.specifier), f"{one.name} is not installed"
        elif not one.specifier.contains(version, prereleases=True):
            yield one.name, str(one.specifier), f"{one.name} {version} is not {one.specifier}"


def _compared(name: str, wanted: list[Requirement], tested: dict[str, str]) -> Finding:
    """Whether installed versions are those that the tests ran with; newer ones mostly work."""
    found = {one.name: str(_version(one.name)) for one in wanted}
    other = [
        f"{package} {version} ({tested[_normal(package)]})"
        for package, version in found.items()
        if _normal(package) in tested and not _same(version, tested[_normal(package)])
    ]
    if other:
        return limits(
            name,
            f"not the versions that gemma_tune is tested with: {listed(other)}",
            f"If something fails: pip install -c {_TESTED} gemma_tune",
        )
    some = ", ".join(f"{package} {version}" for package, version in list(found.items())[:4])
    return works(name, f"{len(found)}, as tested: {some}{' …' if len(found) > 4 else ''}")


def _same(version: str, tested: str) -> bool:
    """Whether two versions are one, whatever build (`2.13.0+cpu`) they are of."""
    try:
        return Version(version).public == Version(tested).public
    except InvalidVersion:
        return version == tested


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
