"""The processor of images, sounds and videos of a checkpoint, or why it has none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from gemma_tune.errors import UserError
from gemma_tune.media.families import MARKS, checked_images_kwargs
from gemma_tune.media.processor import MediaProcessor
from gemma_tune.media.stored import PROCESSOR_FILES
from gemma_tune.models.folders import ADAPTER_CONFIG, read_adapter_config
from gemma_tune.models.hub import is_in_cache, only_local
from gemma_tune.models.source import Source

# Where config.json says that there is a tower, and which token its features replace
_TOWERS = {"image": "vision_config", "audio": "audio_config", "video": "vision_config"}


def media_of(source: Source, config: Any, tokenizer: Any) -> tuple[MediaProcessor | None, str]:
    """The media processor of a checkpoint with towers, or None, and why there is none.

    Args:
        source: The model.
        config: Its configuration; of a GGUF file that of `checkpoint_of`, or None.
        tokenizer: Its tokenizer.

    Raises:
        UserError: `model.images_kwargs` doesn't fit the family.
    """
    given = dict(source.images_kwargs)
    if config is None:
        return None, (
            f"{source.base} is a GGUF file, and {source.tokenizer}, where its tokenizer is, has no processor of media "
            f"({PROCESSOR_FILES[0]}); name the folder of the checkpoint that it was made from: "
            "model.tokenizer_name_or_path=FOLDER"
        )
    if config.model_type not in MARKS:
        why = f"this checkpoint has no towers: {source.base} reads text only"
        if given and source.gguf is None:
            raise UserError(f"model.images_kwargs: {why}.")
        return None, why
    given = checked_images_kwargs(config.model_type, given)
    if source.gguf is not None:
        source = checkpoint_of(source) or source
    folder = source.folder
    if folder is not None and not any((folder / name).is_file() for name in PROCESSOR_FILES):
        return (
            None,
            f"{PROCESSOR_FILES[0]} is missing beside {folder / 'config.json'}; copy it from the published checkpoint",
        )
    ids, why = _soft_ids(config, tokenizer)
    if not ids:
        return None, why
    where = partial(_folder_here, folder) if folder else partial(_folder_of_hub, source.base, source.revision)
    return MediaProcessor(config.model_type, ids, where, given), ""


def checkpoint_of(source: Source) -> Source | None:
    """The checkpoint whose tokenizer a GGUF file has, and with it the processor of media; None where it isn't here.

    Beside an adapter, as in the folder of a run, it is the adapter's base.
    """
    name, revision = source.tokenizer, None
    if (Path(name) / ADAPTER_CONFIG).is_file():
        stored = read_adapter_config(Path(name))
        name, revision = str(stored.get("base_model_name_or_path")), stored.get("revision")
    if Path(name).is_dir():
        there = (Path(name) / "config.json").is_file() and any(
            (Path(name) / file).is_file() for file in PROCESSOR_FILES
        )
    else:
        there = not Path(name).is_absolute() and is_in_cache(name, revision)
    return Source(name, revision, None, name) if there else None


def _soft_ids(config: Any, tokenizer: Any) -> tuple[dict[str, int], str]:
    """The soft token's id for each kind of medium that has a tower, and what the tokenizer lacks for the others."""
    found, why = {}, "config.json names no towers"
    vocabulary = tokenizer.get_vocab()
    for kind, marks in MARKS[config.model_type].items():
        if getattr(config, _TOWERS[kind], None) is None:
            continue
        written = [piece.strip() for piece in (marks.before, marks.soft, marks.after)]
        if missing := [token for token in written if token not in vocabulary]:
            why = f"its tokenizer lacks {', '.join(missing)}; copy its files from the published checkpoint"
            continue
        named = getattr(config, f"{kind}_token_id", None)
        if named is not None and named != vocabulary[marks.soft]:
            why = (
                f"{marks.soft} has the id {vocabulary[marks.soft]} in its tokenizer, and {named} in config.json "
                f"({kind}_token_id): one of the two files is another model's"
            )
            continue
        found[kind] = vocabulary[marks.soft]
    return found, why


def _folder_here(folder: Path) -> Path:
    return folder


def _folder_of_hub(name: str, revision: str | None) -> Path:
    """The snapshot with the processor's files, fetched where they aren't here yet."""
    found = None
    for file in PROCESSOR_FILES:
        try:
            path = cached_file(
                name, file, revision=revision, local_files_only=only_local(name),
                _raise_exceptions_for_missing_entries=False,
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"model.model_name_or_path={name}: {file} can't be fetched ({error}).") from error
        found = found or path
    if found is None:
        raise UserError(
            f"model.model_name_or_path={name}: it has no {' and no '.join(PROCESSOR_FILES)}: no processor of media."
        )
    return Path(str(found)).parent


def media_inputs(tokenizer: Any, rows: Sequence[Any]) -> dict[str, Any]:
    """What the towers take of the media of some rows, by the model's names; empty where they have none.

    Args:
        tokenizer: The tokenizer; its `media` is the processor.
        rows: Rows or prompts, in the order in which they stand in the batch.

    Raises:
        UnusableMedium: A file can't be used, or isn't what it was when its tokens were counted.
    """
    media = [medium for row in rows for medium in getattr(row, "media", ())]
    return dict(tokenizer.media.pixel_inputs(media)) if media else {}
