"""From which checkpoint a model was made, over all the runs in between."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gemma_tune.errors import UserError
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.folders import ADAPTER_CONFIG, ADAPTER_VLLM, read_adapter_config
from gemma_tune.models.hub import is_of_hub
from gemma_tune.models.published import published
from gemma_tune.run.existing import run_of, stored_config
from gemma_tune.run.inputs import stored_inputs
from gemma_tune.run.paths import is_bundled, resolve

# A snapshot in the Hub's cache: models--google--gemma-3-1b-it/snapshots/<commit>
_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)")
_MOST = 50  # runs, one on the other


@dataclass(frozen=True)
class Lineage:
    """The checkpoint that a model began with.

    Attributes:
        base: Its name on the Hub; None where it is not known.
        commit: Its commit there, or None.
        place: The name of its folder, without those above it, where it has no name on the Hub.
        runs: The recipes of the runs in between, the first one first.
        bundled: Whether it is the embedded model.
    """

    base: str | None
    commit: str | None
    place: str
    runs: tuple[str, ...] = ()
    bundled: bool = False

    @property
    def licence(self) -> str | None:
        """The Hub's id of the licence under which the base is published; None where that isn't known."""
        return "apache-2.0" if self.bundled else licence_of_base(self.base)

    def said(self) -> str:
        """The base for people."""
        if self.base is None:
            return "gemma_tune's embedded model" if self.bundled else f"the local folder {self.place}"
        return f"{self.base}, commit {self.commit}" if self.commit else self.base


def licence_of_base(name: str | None) -> str | None:
    """The Hub's id of the licence of one of Google's checkpoints, by its name there; None for any other model."""
    entry = published(name) if name else None
    return FAMILIES[entry.model_type].licence.lower() if entry else None


def hub_name(name: str) -> tuple[str, str | None] | None:
    """Name and commit on the Hub of a model that is named so, or by its snapshot in the Hub's cache; else None."""
    if is_of_hub(name):
        return name, None
    found = _SNAPSHOT.search(resolve(name).absolute().as_posix())
    return (f"{found[1]}/{found[2]}", found[3]) if found else None


def lineage(name: str, inputs: Mapping[str, str]) -> Lineage:
    """Follows a model back to the checkpoint that its first run began with.

    Args:
        name: What the run was given as its model.
        inputs: The run's inputs, as its manifest lists them.
    """
    runs: list[str] = []
    for _ in range(_MOST):
        if found := hub_name(name):
            commit = found[1] or inputs.get(name, "").removeprefix("commit ")
            return Lineage(found[0], commit if commit != "None" else None, found[0], tuple(runs))
        try:
            before, inputs = _before(name, runs, inputs)
        except UserError:
            break
        if before is None or before == name:
            break
        name = before
    return Lineage(None, None, resolve(name).name, tuple(runs), is_bundled(name))


def _before(name: str, runs: list[str], inputs: Mapping[str, str]) -> tuple[str | None, Mapping[str, str]]:
    """What a run's or an adapter's model was made from, and the inputs of that run; None for a checkpoint."""
    if run := run_of(name):
        stored = stored_config(run)
        runs.insert(0, str(stored.get("recipe")))
        return str(stored["model"]["model_name_or_path"]), stored_inputs(run / "manifest.json")
    if (resolve(name) / ADAPTER_CONFIG).is_file():
        base = read_adapter_config(resolve(name)).get("base_model_name_or_path")
        return (base if isinstance(base, str) and base else None), inputs
    return None, inputs


def base_of(adapter: Path, inputs: Mapping[str, str]) -> tuple[str, str | None] | None:
    """Name and commit on the Hub of the very model that an adapter fits; None where it has no name there."""
    base = read_adapter_config(adapter).get("base_model_name_or_path")
    if not isinstance(base, str) or not (found := hub_name(base)):
        return None
    commit = found[1] or inputs.get(base, "").removeprefix("commit ")
    return found[0], commit if commit and commit != "None" else None


def relation(name: str, trained: bool) -> str:
    """`base_model_relation` of an artifact: how it stands to the base that it was made from."""
    if name in ("adapter", ADAPTER_VLLM) or name.endswith("lora"):
        return "adapter"
    sixteen = name in ("merged", "reward_model") or name.endswith(("f32", "f16"))
    return "finetune" if sixteen and trained else "quantized"
