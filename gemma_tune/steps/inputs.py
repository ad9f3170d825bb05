"""What a run read, for its manifest: digests of files, commits and revisions of what came from the Hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gemma_tune.config import Config
from gemma_tune.config.path_keys import named_paths
from gemma_tune.evals.evaluation import files_of
from gemma_tune.models.source import Source
from gemma_tune.neighbours import with_neighbours
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import resolve


def note_inputs(
    cfg: Config, folder: RunFolder, source: Source | None, data: Iterable[Path], media: Iterable[str] = ()
) -> None:
    """Notes every input of a run in its manifest.

    Args:
        cfg: The configuration.
        folder: The run folder.
        source: The model; None where the run has none of its own.
        data: The files with rows.
        media: The images, sounds and videos that they name.
    """
    if source is not None:
        note_source(folder, source)
    if cfg.data.dataset_name:
        folder.note_inputs({cfg.data.dataset_name: f"revision {cfg.data.revision or 'main'}"})
    own = [resolve(path.name) for path in named_paths(cfg) if path.key in ("recipe_file", "train.loss")]
    folder.add_inputs(*(beside for file in own for beside in with_neighbours(file)), *files_of(cfg))
    if cfg.quant.checkpoint_file:
        folder.add_inputs(resolve(cfg.quant.checkpoint_file))
    folder.add_inputs(*data, hashed=not cfg.data.streaming, media=media)
    folder.check_inputs()


def note_source(folder: RunFolder, source: Source) -> None:
    """Notes the digests of a model's files, or the commit of one of the Hub."""
    if source.folder is None and source.gguf is None:
        folder.note_inputs({source.base: f"commit {source.commit}"})
    folder.add_inputs(*source.inputs)
