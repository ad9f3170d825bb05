"""What `model.model_name_or_path` names: a checkpoint, an adapter on one, or a run folder of ours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.paths import resolve


@dataclass(frozen=True)
class Source:
    """Where the weights and the tokenizer come from.

    Attributes:
        base: Model folder, or a name on the Hub.
        revision: Revision on the Hub.
        adapter: PEFT adapter folder to continue from.
        tokenizer: Folder or name of the tokenizer.
    """

    base: str
    revision: str | None
    adapter: Path | None
    tokenizer: str

    @property
    def folder(self) -> Path | None:
        """The base as a local folder, or None where it is on the Hub."""
        return Path(self.base) if Path(self.base).is_dir() else None


def find_source(model: ModelConfig) -> Source:
    """Looks at what the name means.

    Raises:
        UserError: A folder without weights or tokenizer, a run folder without a trained model, or an adapter whose
            base isn't there.
    """
    name = model.model_name_or_path
    path = resolve(name)
    if not path.is_dir():
        return Source(name, model.revision, None, name)
    if (path / "result.json").is_file() and (path / "manifest.json").is_file():
        if (path / "adapter" / "adapter_config.json").is_file():
            path = path / "adapter"
        elif (path / "export" / "merged" / "config.json").is_file():
            path = path / "export" / "merged"
        else:
            raise UserError(f"model.model_name_or_path={name}: this run folder has no adapter/ and no export/merged/.")
    if (path / "adapter_config.json").is_file():
        try:
            stored = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(
                f"model.model_name_or_path={name}: {path / 'adapter_config.json'} is not JSON ({error})."
            ) from error
        base = stored.get("base_model_name_or_path") or ""
        if not Path(base).is_dir() and (not base or base.startswith(("/", "."))):
            raise UserError(
                f"model.model_name_or_path={name}: the adapter's base, {base or 'not named'}, is not there; put it "
                f"back, or mend base_model_name_or_path in {path / 'adapter_config.json'}."
            )
        own = (path / "tokenizer.json").is_file()
        return Source(base, stored.get("revision") or model.revision, path, str(path) if own else base)
    if not (path / "config.json").is_file():
        raise UserError(f"model.model_name_or_path={name}: this folder has no config.json; name a model's folder.")
    if not [*path.glob("*.safetensors"), *path.glob("pytorch_model*.bin")]:
        raise UserError(f"model.model_name_or_path={name}: this folder has no weights (*.safetensors).")
    if not any((path / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        raise UserError(
            f"model.model_name_or_path={name}: this folder has no tokenizer (tokenizer.json); copy it and "
            "tokenizer_config.json from the published checkpoint."
        )
    return Source(str(path), None, None, str(path))
