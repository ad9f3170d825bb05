"""What lies in a folder that is to be a model or an adapter; another one is refused with the folder that was meant.

Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemma_tune.errors import UserError
from gemma_tune.run.paths import gguf_models
from gemma_tune.untrusted import MIB, read_object

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
TOWERS_FILE = "towers.safetensors"  # what is trained of the towers, beside an adapter
# Weights as torch.save writes them, with pickle
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Formats of `export.formats` that are a folder with a model and its tokenizer
EXPORTED = ("merged", "w4a16", "w4a16_transformers", "mlx", "phone")
# The format, and the folder in a run's `export/`, of an adapter with that of each expert by itself
ADAPTER_VLLM = "adapter_vllm"
_NAMED = 3  # of many folders


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer can be loaded from this folder."""
    return any((folder / file).is_file() for file in TOKENIZER_FILES[:2])


def not_loaded(exported: Path) -> str | None:
    """Why no engine of ours loads a folder in a run's `export/`; None where Transformers does."""
    if exported.name == "mlx":
        return "recipes have no engine for it; its weights are those of the other int4 files."
    if exported.name == ADAPTER_VLLM:
        return "PEFT has no place for adapters of single experts, as vLLM reads them; the adapter has the same numbers."
    if exported.name == "w4a16" and _has_experts(exported):
        return (
            "Transformers has no place for the codes of single experts, as vLLM reads them; w4a16_transformers holds "
            "the same numbers."
        )
    return None


def _has_experts(folder: Path) -> bool:
    try:
        config = read_object(folder / "config.json")
    except (OSError, ValueError):
        return False
    text = config.get("text_config", config)
    return isinstance(text, dict) and bool(text.get("enable_moe_block"))


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """PEFT's adapter_config.json.

    Raises:
        UserError: It can't be read, or is no object.
    """
    try:
        return read_object(folder / ADAPTER_CONFIG, MIB)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {ADAPTER_CONFIG} can't be read ({error}); save the adapter again.") from error


def check_adapter_weights(said: str, folder: Path) -> None:
    """Raises UserError where the weights of an adapter aren't there, or only in a form that is never opened."""
    if (folder / ADAPTER_WEIGHTS).is_file():
        return
    if (folder / "adapter_model.bin").is_file():
        way = "PEFT: AutoPeftModelForCausalLM", ", safe_serialization=True"
        raise _pickled(said, "adapter_model.bin", folder, *way)
    raise UserError(f"{said}: {folder} has {ADAPTER_CONFIG}, but no {ADAPTER_WEIGHTS}; copy it there.")


def check_model_folder(said: str, folder: Path, tokenizer: bool) -> None:
    """Raises UserError for a folder without a model's configuration, weights and, where asked for, tokenizer.

    Args:
        said: Where the folder was named, for the message.
        folder: The folder.
        tokenizer: Whether the tokenizer must be in it, too.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{said}: {_meant_instead(folder)}")
    if not any(folder.glob("*.safetensors")):
        pickled = next(iter(sorted(p for kind in PICKLED for p in folder.glob(kind))), None)
        if pickled is None:
            raise UserError(f"{said}: this folder has no weights (*.safetensors).")
        raise _pickled(said, pickled.name, folder, "Transformers: AutoModelForCausalLM")
    if tokenizer and not has_tokenizer(folder):
        raise UserError(
            f"{said}: this folder has no tokenizer (tokenizer.json); copy it and tokenizer_config.json from the "
            "published checkpoint."
        )


def _pickled(said: str, name: str, folder: Path, loader: str, option: str = "") -> UserError:
    return UserError(
        f"{said}: its weights are in {name}, which isn't read: such a file can run any program when it is opened. If "
        f"you trust it, write it as safetensors with {loader}.from_pretrained('{folder}').save_pretrained("
        f"'{folder}'{option})."
    )


def _meant_instead(folder: Path) -> str:
    """What a folder without config.json is, and which one to name."""
    for place in (folder, folder.parent):
        if (place / "snapshots").is_dir() and (snapshot := _snapshot(place)):
            return f"this is the Hub's cache of a model, which lies in a folder inside it: name {snapshot}."
    cached = [s for place in (folder, folder / "hub") for s in map(_snapshot, sorted(place.glob("models--*"))) if s]
    if cached:
        return f"this is the Hub's cache of {_count(cached)}: name the one that is meant, as {_some(cached)}."
    if (folder / ADAPTER_CONFIG).is_file():
        return f"this folder holds an adapter, and no model: merge it with its own base first, or name {folder} itself."
    if (folder / ADAPTER_WEIGHTS).is_file():
        return f"this folder has an adapter's weights, but no {ADAPTER_CONFIG}; copy it from where they were saved."
    for name, kind in ((ADAPTER_CONFIG, "an adapter"), ("config.json", "a model")):
        if below := sorted(file.parent for file in folder.glob(f"*/{name}")):
            return f"this folder has no config.json; one below it holds {kind}: name {_some(below)}."
    if ggufs := gguf_models(folder):
        return f"this folder has no config.json, but a GGUF file: name {_some(ggufs)}."
    return "this folder has no config.json; name a model's folder."


def _count(models: list[Path]) -> str:
    return f"{len(models)} models" if len(models) > 1 else "a model"


def _some(paths: list[Path]) -> str:
    more = f" (and {len(paths) - _NAMED} more)" if len(paths) > _NAMED else ""
    return " or ".join(map(str, paths[:_NAMED])) + more


def _snapshot(repository: Path) -> Path | None:
    """The snapshot in a repository of the Hub's cache that `main` stands for, else the one that came last."""
    found = [file.parent for file in repository.glob("snapshots/*/config.json")]
    main = repository / "refs" / "main"
    current = repository / "snapshots" / main.read_text(encoding="utf-8").strip() if main.is_file() else None
    return current if current in found else max(found, key=lambda f: f.stat().st_mtime, default=None)
