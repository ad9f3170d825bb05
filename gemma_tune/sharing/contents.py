"""What `recipe=push` sends: the files of a finished run's artifacts, as the run has checked them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gemma_tune.config import Config, PushConfig
from gemma_tune.config.methods import named_method
from gemma_tune.errors import UserError, did_you_mean, listed
from gemma_tune.run.existing import stored_config
from gemma_tune.run.manifest import file_digest
from gemma_tune.run.paths import ON_GRID, TUNED, folder_status, resolve
from gemma_tune.sharing.card import CARD, combined, with_base
from gemma_tune.sharing.private import Secrets, check_private, of_this_machine, with_public_base, without_paths
from gemma_tune.untrusted import read_object

# Which artifact is uploaded where none is named; any GGUF format stands for `gguf`
_FIRST = ("reward_model", "merged", "w4a16", "gguf", "mlx", "phone", "adapter")
# What the name of a repository ends with that is not the first one
_ENDS = {"adapter": "-LoRA", "gguf": "-GGUF", "mlx": "-MLX"}


@dataclass(frozen=True)
class SentFile:
    """A file of a repository.

    Attributes:
        name: Its name there.
        content: The file on this machine, or the bytes that are sent in its place.
    """

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Artifact:
    """An artifact of a run.

    Attributes:
        name: Its name in the run's result.
        run: The folder of the run, of stages that of the one that has made it.
        place: Its own folder.
    """

    name: str
    run: Path
    place: Path

    @property
    def kind(self) -> str:
        """`gguf` for every format of llama.cpp; else the name."""
        return "gguf" if self.name.startswith("gguf") else self.name


@dataclass(frozen=True)
class Repository:
    """A repository with all that is sent to it.

    Attributes:
        repo_id: owner/name.
        artifacts: What it holds.
        files: Every file, README.md included.
        card: The text of README.md.
        notes: What isn't sent, or not as it is in the run, a line each.
    """

    repo_id: str
    artifacts: Sequence[Artifact]
    files: Sequence[SentFile]
    card: str
    notes: Sequence[str] = field(default=())

    def lines(self, push: PushConfig) -> Iterator[str]:
        """What would be sent, for people."""
        seen = "private" if push.private else "public"
        names = ", ".join(artifact.name for artifact in self.artifacts)
        yield f"{self.repo_id} ({seen}, branch {push.revision or 'main'}): {names} of {self.artifacts[0].run}"
        for file in self.files:
            yield f"  {file.name}: {file.size:,} bytes"
        yield f"  {len(self.files)} files, {sum(file.size for file in self.files):,} bytes"
        yield from (f"  {note}" for note in self.notes)


def repositories(cfg: Config) -> list[Repository]:
    """Everything that is to be sent.

    Raises:
        UserError: No finished run, no such artifact, or a file that changed since the run or that must not be sent.
    """
    run = resolve(cfg.model.model_name_or_path)
    chosen = _chosen(_artifacts(run), cfg.push.artifacts, run)
    groups: dict[str, list[Artifact]] = {}
    for artifact in chosen:
        groups.setdefault(artifact.kind, []).append(artifact)
    secrets = of_this_machine(run)
    found = []
    for number, (kind, group) in enumerate(groups.items()):
        end = _ENDS.get(kind, f"-{kind}") if number else ""
        found.append(_repository(f"{cfg.push.repo_id}{end}", group, cfg.push, secrets))
    return found


def _result(run: Path) -> dict[str, Any]:
    """The result of a finished run.

    Raises:
        UserError: There is none.
    """
    said = f"model.model_name_or_path={run}"
    status = folder_status(run)
    if status is None:
        inside = next((p for p in run.parents if (p / "result.json").is_file()), None)
        hint = f": name the run, {inside}, and the artifact by push.artifacts" if inside else ""
        raise UserError(f"{said}: this is no run folder, and only what a run has checked is uploaded{hint}.")
    if status != "finished":
        raise UserError(
            f"{said}: this run is not finished (its status is {status}), so its files are not checked; nothing is "
            f"uploaded. `python -m gemma_tune rerun={run} output_dir={run}` goes on with it."
        )
    result = read_object(run / "result.json")
    lines = result.get("metrics", {}).get("verify", [])
    if failed := [line["name"] for line in lines if line["verdict"] == "fail"]:
        raise UserError(f"{said}: the check of its files failed ({listed(failed)}); nothing is uploaded.")
    return result


def _artifacts(run: Path) -> dict[str, Artifact]:
    """The artifacts of a run and, where it has stages, of these; the names of the last stage go first."""
    found: dict[str, Artifact] = {}
    for part in (run, run / ON_GRID, run / TUNED):
        if part != run and not (part / "result.json").is_file():
            continue
        for name, path in _result(part)["artifacts"].items():
            if (part / path).is_dir() and "/" not in name:
                found.setdefault(name, Artifact(name, part, part / path))
                found.setdefault(f"{part.name}/{name}", Artifact(name, part, part / path))
    return found


def _chosen(there: Mapping[str, Artifact], named: Sequence[str], run: Path) -> list[Artifact]:
    names = [name for name in there if "/" not in name]
    if not names:
        raise UserError(f"model.model_name_or_path={run}: this run has left nothing to upload (no adapter, no export).")
    if not named:
        return [
            next(there[name] for first in _FIRST for name in names if name == first or name.startswith(f"{first}_"))
        ]
    if unknown := [name for name in named if name not in there]:
        hint = did_you_mean(unknown[0], names)
        raise UserError(f"push.artifacts: {run} has no {unknown[0]}; it has {', '.join(names)}.{hint}")
    return [there[name] for name in named]


def _repository(repo_id: str, group: Sequence[Artifact], push: PushConfig, secrets: Secrets) -> Repository:
    files, notes, cards = dict[str, SentFile](), list[str](), list[str]()
    for artifact in group:
        own, said = _files(artifact, push)
        text = _card(artifact, push)
        for file in own:
            name = file.name
            if name in files:  # two GGUF files, each with a Modelfile, which its part of the card names
                name = f"{artifact.name}.{name}"
                text = re.sub(rf"(?<![\w.]){re.escape(file.name)}\b", name, text)
            files[name] = replace(file, name=name)
        notes += said
        cards.append(text)
    card = combined(cards)
    files[CARD] = SentFile(CARD, card.encode())
    check_private(((file.name, file.content) for file in files.values()), secrets)
    return Repository(repo_id, group, [files[name] for name in sorted(files)], card, notes)


def _card(artifact: Artifact, push: PushConfig) -> str:
    file = artifact.place / CARD
    if not file.is_file():
        raise UserError(
            f"{artifact.place}: it has no {CARD}: earlier versions wrote no model card. Repeat the run, or write one."
        )
    method = named_method(stored_config(artifact.run) or {})
    return with_base(file, artifact.name, push.base_model, trained=method is None or method.trains)


def _files(artifact: Artifact, push: PushConfig) -> tuple[list[SentFile], list[str]]:
    """The files that the manifest lists, each with the digest there, but for the card; and what is not sent as it is.

    Raises:
        UserError: A file is missing, or changed since the run checked it.
    """
    listed_files = _listed(artifact)
    own, notes = [], []
    for path, digest in listed_files.items():
        file = artifact.run / path
        name = file.relative_to(artifact.place).as_posix()
        if name == CARD:
            continue
        if not file.is_file():
            raise UserError(f"{file}: this file of the run is not there; put it back, or repeat the run.")
        if file_digest(file) != digest:
            raise UserError(
                f"{file}: this file has changed since the run checked it, so nothing is sent; put it back as it was, "
                "or repeat the run with overwrite=true."
            )
        content: Path | bytes = file
        if name == "adapter_config.json":
            content = with_public_base(file, push.base_model)
        elif file.suffix == ".json":
            content, left_out = without_paths(file)
            notes += left_out
        own.append(SentFile(name, content))
    there = {p.relative_to(artifact.run).as_posix() for p in artifact.place.rglob("*") if p.is_file()}
    card = (artifact.place / CARD).relative_to(artifact.run).as_posix()
    notes += [f"not sent: {name}, which the run has not written" for name in sorted(there - {*listed_files, card})]
    return own, notes


def _listed(artifact: Artifact) -> dict[str, str]:
    """Path in the run folder → digest of each file of an artifact, as the manifest lists them."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = read_object(artifact.run / "manifest.json")["artifacts"][artifact.name]
        return {str(path): str(digest) for path, digest in found.items()}
    raise UserError(f"{artifact.run / 'manifest.json'}: it does not list the files of {artifact.name}; repeat the run.")
