"""What `model.model_name_or_path` names: a checkpoint, an adapter on one, a run folder of ours, or a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gemma_tune.config import ModelConfig
from gemma_tune.config.model import is_gguf
from gemma_tune.errors import UserError
from gemma_tune.media.stored import PROCESSOR_FILES
from gemma_tune.models.folders import (
    ADAPTER_CONFIG,
    EXPORTED,
    TOKENIZER_FILES,
    check_adapter_weights,
    check_model_folder,
    has_tokenizer,
    not_loaded,
    read_adapter_config,
)
from gemma_tune.models.hub import is_in_cache
from gemma_tune.run.checkpoints import checkpoints
from gemma_tune.run.existing import image_attention_of, images_kwargs_of
from gemma_tune.run.paths import ON_GRID, PLAN, folder_status, gguf_models, looks_local, resolve
from gemma_tune.validation.suggest import missing_path

# Where a run keeps a tokenizer
_IN_RUNS = ("adapter", *(f"export/{name}" for name in EXPORTED))


@dataclass(frozen=True)
class Source:
    """Where the weights and the tokenizer come from.

    Attributes:
        base: Model folder, a name on the Hub, or a GGUF file.
        revision: Revision on the Hub.
        adapter: PEFT adapter folder to continue from; on a GGUF file, a GGUF LoRA file.
        tokenizer: Folder or name of the tokenizer.
        added_tokens: New tokens that a run adds to both.
        remark: Why these weights are used, where they are other ones than a user may expect; to be printed.
        images_kwargs: `model.images_kwargs` as pairs; of a run, its own below what is asked for.
        image_attention: `model.image_attention`, or that of the run; None: as config.json says.
    """

    base: str
    revision: str | None
    adapter: Path | None
    tokenizer: str
    added_tokens: tuple[str, ...] = ()
    remark: str | None = None
    images_kwargs: tuple[tuple[str, Any], ...] = ()
    image_attention: str | None = None

    @property
    def folder(self) -> Path | None:
        """The base as a local folder, or None where it is on the Hub."""
        return Path(self.base) if Path(self.base).is_dir() else None

    @property
    def gguf(self) -> Path | None:
        """The base as a GGUF file, or None where it is a checkpoint."""
        return Path(self.base) if is_gguf(self.base) else None

    @property
    def commit(self) -> str | None:
        """The commit of a checkpoint of the Hub, as its snapshot in the cache is named; None where it isn't there."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.base, "config.json", revision=self.revision)
        return Path(found).parent.name if isinstance(found, str) else None

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder of the tokenizer's files: a local one, or the cache's of the Hub; None where they aren't here."""
        from huggingface_hub import try_to_load_from_cache

        if Path(self.tokenizer).is_dir():
            return Path(self.tokenizer)
        revision = self.revision if self.tokenizer == self.base else None
        try:
            found = try_to_load_from_cache(self.tokenizer, "tokenizer.json", revision=revision)
        except ValueError:  # no name that the Hub could have: a GGUF file
            return None
        return Path(found).parent if isinstance(found, str) else None

    @property
    def inputs(self) -> list[Path]:
        """The local files and folders that are read: weights, adapter, and tokenizer files from elsewhere."""
        found = [path for path in (self.gguf, self.folder, self.adapter) if path]
        tokenizer = Path(self.tokenizer)
        if tokenizer.is_dir() and tokenizer not in found:
            found += [tokenizer / file for file in TOKENIZER_FILES if (tokenizer / file).is_file()]
        return found


def find_source(model: ModelConfig, continues: bool = False) -> Source:
    """Finds the weights and the tokenizer behind `model.model_name_or_path`.

    Of a run folder this is the adapter on its base. Where that base is not on this machine, as in a folder that was
    copied from another one, it is the merged weights that the run has exported, with a remark.

    Args:
        model: What is asked for.
        continues: Whether a run's adapter is trained on with, which only works on its own base.

    Raises:
        UserError: A folder without weights or tokenizer, a run folder without a trained model, or an adapter whose
            base isn't there.
    """
    other = model.tokenizer_name_or_path
    if other is not None and resolve(other).is_dir():
        found = _tokenizer_in(resolve(other))
        if found is None:
            raise UserError(
                f"model.tokenizer_name_or_path={other}: this folder has no tokenizer (tokenizer.json); name another."
            )
        other = str(found)
    if in_gguf := is_gguf(model.model_name_or_path):
        source = _source_of_gguf(model.model_name_or_path, other)
    else:
        source = _source_of_weights(model, other is None, continues)
    name = model.model_name_or_path if _may_see(source) else ""  # of a run: it sees as it has learned
    images = {**(images_kwargs_of(name) if name else {}), **model.images_kwargs}
    source = replace(source, images_kwargs=tuple(sorted(images.items())))
    if in_gguf:
        return source
    attention = model.image_attention or (image_attention_of(name) if name else None)
    source = replace(source, added_tokens=tuple(model.added_tokens), image_attention=attention)
    return source if other is None else replace(source, tokenizer=other)


def _may_see(source: Source) -> bool:
    """Whether a source has a processor of images, as far as its folder says."""
    return source.folder is None or any((source.folder / file).is_file() for file in PROCESSOR_FILES)


def _tokenizer_in(folder: Path) -> Path | None:
    """This folder, or in a run folder one inside it, if it holds a tokenizer; else None."""
    runs = _IN_RUNS if (folder / "manifest.json").is_file() else ()
    places = [folder, *(folder / name for name in runs)]
    return next((p for p in places if has_tokenizer(p)), None)


def _source_of_gguf(name: str, tokenizer: str | None) -> Source:
    file = resolve(name)
    if not file.is_file():
        raise UserError(missing_path("model.model_name_or_path", name, "file"))
    if tokenizer is None:  # a run has it as export/gguf/NAME.gguf
        places = [file.absolute().parent, *file.absolute().parents[2:3]]
        found = next((place for place in map(_tokenizer_in, places) if place), None)
        if found is None:
            raise UserError(
                f"model.model_name_or_path={name}: there is no tokenizer beside this file (tokenizer.json); name the "
                "folder of the checkpoint that it was made from: model.tokenizer_name_or_path=FOLDER."
            )
        tokenizer = str(found)
    return Source(str(file), None, None, tokenizer)


def _source_of_weights(model: ModelConfig, tokenizer_beside: bool, continues: bool) -> Source:
    name = model.model_name_or_path
    path, remark = resolve(name), None
    if not path.is_dir():
        return Source(name, model.revision, None, name)
    if (path / ON_GRID / PLAN).is_file():
        path = path / ON_GRID
    if (path / "result.json").is_file() and (path / "manifest.json").is_file():
        on_grid = (path / PLAN).is_file()
        if on_grid and not (path / "export" / "merged" / "config.json").is_file():
            raise UserError(
                f"model.model_name_or_path={name}: the weights of this run are quantized to int4, which its adapter "
                f"alone does not store.{_what_is_there(path)}"
            )
        if not on_grid and (path / "adapter" / "adapter_config.json").is_file():
            whole = path / "export" / "merged"
            base = None if continues else _base_that_is_not_here(path / "adapter", whole)
            path = path / "adapter" if base is None else whole
            remark = base and f"{name}: the adapter's base, {base}, is not on this machine; {whole} is used."
        elif (path / "export" / "merged" / "config.json").is_file():
            path = path / "export" / "merged"
        else:
            raise UserError(
                f"model.model_name_or_path={name}: this run folder has no adapter/ and no export/merged/."
                f"{_what_is_there(path)}"
            )
    said = f"model.model_name_or_path={name}"
    if (path / ADAPTER_CONFIG).is_file():
        return _source_of_adapter(said, path, model.revision, tokenizer_beside)
    check_model_folder(said, path, tokenizer_beside)
    return Source(str(path), None, None, str(path), remark=remark)


def _base_that_is_not_here(adapter: Path, merged: Path) -> str | None:
    """The base of a run's adapter, where it is not on this machine and the run's merged weights are; else None."""
    if not (merged / "config.json").is_file():
        return None
    stored = read_adapter_config(adapter)
    base = stored.get("base_model_name_or_path")
    if not isinstance(base, str) or not base or Path(base).is_dir():
        return None
    if looks_local(base):
        return base
    return None if is_in_cache(base, stored.get("revision")) else base


def _what_is_there(run: Path) -> str:
    """What a run folder without a whole model holds, each with the recipes that take it; or how it gets one."""
    found = [f"recipe=chat, serve and evaluate take {file}" for file in gguf_models(run, "export/*/*.gguf")]
    for folder in (run / "export" / name for name in EXPORTED):
        if (folder / "config.json").is_file() and not not_loaded(folder):
            found.append(f"recipe=chat, evaluate and compare take {folder}")
    kept = [] if (run / PLAN).is_file() else checkpoints(run / "checkpoints")  # on a grid: an adapter alone
    if kept:
        found.append(f"its last checkpoint is a model, too: {kept[-1]}")
    there = f" Name what it holds: {'; '.join(found)}." if found else ""
    status = folder_status(run)
    if status == "finished":
        return there or " It has measured or compared, and holds no weights: name the model that it was given."
    if status == "running":
        return f" The run has not finished: it is still running; wait for its end.{there}"
    return (
        f" The run has not finished (its status is {status or 'unknown'}); `python -m gemma_tune rerun={run} "
        f"output_dir={run}` goes on with it.{there}"
    )


def _source_of_adapter(said: str, path: Path, revision: str | None, tokenizer_beside: bool) -> Source:
    stored = read_adapter_config(path)
    base = stored.get("base_model_name_or_path")
    where = f"base_model_name_or_path in {path / ADAPTER_CONFIG}"
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{said}: {where} doesn't say what the adapter was trained on ({base!r}); write its folder or its name on "
            "the Hub there."
        )
    own = has_tokenizer(path)
    if Path(base).is_dir():
        check_model_folder(f"{said}: {where}={base}", Path(base), tokenizer_beside and not own)
    elif looks_local(base):
        merged = path.parent / "export" / "merged"
        whole = f" The run's merged weights need no base: name {merged}." if (merged / "config.json").is_file() else ""
        raise UserError(f"{said}: the adapter's base, {base}, is not there; put it back, or fix {where}.{whole}")
    check_adapter_weights(said, path)
    return Source(base, stored.get("revision") or revision, path, str(path) if own else base)
