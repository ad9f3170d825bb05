"""What is known of a model before a file of it is read or fetched: what its family can't do. Imports no torch."""

from __future__ import annotations

from gemma_tune.config import Config, ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models.family import FAMILIES, Family
from gemma_tune.models.hub import is_of_hub
from gemma_tune.models.published import published
from gemma_tune.models.source import find_source
from gemma_tune.run.read_once import read_json


def known_family(model: ModelConfig) -> Family | None:
    """The family of a published checkpoint by its name, of a local one by its config.json; None where neither says."""
    try:
        source = find_source(model)
        if is_of_hub(source.base):
            found = published(source.base)
            return FAMILIES[found.model_type] if found else None
        return FAMILIES.get(read_json(source.folder / "config.json")["model_type"]) if source.folder else None
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None  # said where the model is loaded


def no_classifier(family: Family) -> str:
    """What to say to a reward model of a family that has no classifier in Transformers."""
    known = dict.fromkeys(f.name for f in FAMILIES.values() if f.classifier_class)
    return (
        f"Transformers has no class for sequence classification of {family.name}; reward models can be made of "
        f"{', '.join(known)}."
    )


def cannot(cfg: Config, family: Family) -> str | None:
    """What a family can't do with this recipe, as the end of a sentence; None where it can."""
    if cfg.traits.classifies and family.classifier_class is None:
        return no_classifier(family)
    return None


def check_known(cfg: Config) -> None:
    """Raises UserError for what the model's family can't do with this recipe, before the Hub or a weight is asked."""
    if not cfg.traits.classifies or (family := known_family(cfg.model)) is None:
        return
    if why := cannot(cfg, family):
        raise UserError(f"model.model_name_or_path={cfg.model.model_name_or_path}: {why}")
