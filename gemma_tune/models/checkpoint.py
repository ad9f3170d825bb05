"""The files of a checkpoint: the tensors in them, and their names in the language part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open

from gemma_tune.errors import UserError
from gemma_tune.models.family import Family
from gemma_tune.models.source import Source


@dataclass(frozen=True)
class CheckpointFiles:
    """A model's folder, here or in the Hub's cache.

    Attributes:
        folder: Where its files lie.
        family: Whose names they have.
        hub: Its name on the Hub, or None for a local folder.
    """

    folder: Path
    family: Family
    hub: str | None = None

    @classmethod
    def of(cls, source: Source, family: Family) -> CheckpointFiles:
        """The checkpoint that a source names; one of the Hub must have been downloaded."""
        if source.folder is not None:
            return cls(source.folder, family)
        folder = snapshot_download(source.base, revision=source.revision, local_files_only=True)
        return cls(Path(folder), family, source.base)

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file of each tensor, by the tensor's name there; empty where there are no safetensors files.

        Raises:
            UserError: A file that is shorter or longer than its header says, or has none.
        """
        found = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(file, framework="numpy") as stored:  # torch's would map the file as memory of its own
                    found.update(dict.fromkeys(stored.keys(), file))
            except SafetensorError as error:
                raise UserError(
                    f"{file}: this file of {file.stat().st_size:,} bytes is cut off, or no safetensors file ({error}); "
                    "fetch it again (with Git: `git lfs pull`)."
                ) from error
        return found

    @cached_property
    def language(self) -> dict[str, str]:
        """The name in the language part of each tensor that belongs to no tower, by its name in the files."""
        return {n: self.family.language_name(n) for n in self.files if not self.family.is_tower(n)}

    def beside(self, name: str) -> Path | None:
        """A file beside the weights, fetched where the checkpoint is on the Hub; None without one of this name."""
        if self.hub is not None and not (self.folder / name).is_file():
            try:
                return Path(hf_hub_download(self.hub, name, revision=self.folder.name))
            except (EntryNotFoundError, OfflineModeIsEnabled):
                return None
        return self.folder / name if (self.folder / name).is_file() else None

    def read(self, name: str) -> torch.Tensor:
        """One tensor by its name in the files, on the CPU, as it is stored."""
        with safe_open(self.files[name], framework="pt") as stored:
            return stored.get_tensor(name)
