"""Downloads a model from the Hub into its cache."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from gemma_tune.errors import UserError, first_line
from gemma_tune.models.estimate.memory import in_unit
from gemma_tune.models.estimate.size import published_size
from gemma_tune.models.hub import no_network, not_here
from gemma_tune.plan.known_models import options
from gemma_tune.run.paths import free_disk, is_bundled, looks_local
from gemma_tune.validation.suggest import did_you_mean

# No pickled weights, which are never read, and no GGUF files
_FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja", "README.md", "LICENSE*"]


def name_on_hub(key: str, name: str) -> str:
    """The name on the Hub of an option of `model`; any `owner/name` as it is.

    Raises:
        UserError: It is neither, or it is the embedded model.
    """
    if is_bundled(options().get(name, name)):
        raise UserError(f"{key}={name}: the embedded model is part of the package, and there is nothing to fetch.")
    if name in options():
        return options()[name]
    if looks_local(name):
        known = [option for option, hub in options().items() if "://" not in hub]
        tuned = [] if "pt" in name.lower() else [option for option in known if option.endswith("_it")]
        meant = did_you_mean(name, tuned) or did_you_mean(name, known)  # most mean the instruction-tuned one
        raise UserError(f"{key}={name}: neither an option of model nor owner/name.{meant}")
    return name


def fetch(name: str, revision: str | None) -> Path:
    """Downloads weights, configuration and tokenizer; what is there already is not downloaded again.

    Args:
        name: On the Hub.
        revision: Branch, tag or commit.

    Returns:
        The snapshot's folder.

    Raises:
        UserError: No network, no such model, no access, or no room.
    """
    said = f"models.fetch={name}"
    if why := no_network():
        raise not_here(said, why, f"hf download {name}", "models.inspect=path/to/folder")
    if size := published_size(name):
        needed = 2 * (size.parameters + size.tower_parameters) / 2**30
        cache = Path(HF_HUB_CACHE)
        if needed > (free := free_disk(cache) / 2**30):
            raise UserError(
                f"{said}: it has about {in_unit(needed)}, and {in_unit(free)} are free in {cache}; make room, or set "
                "HF_HOME to a folder on another disk."
            )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except GatedRepoError as error:
        raise UserError(
            f"{said}: accept the licence at https://huggingface.co/{name} and log in (`hf auth login`, or HF_TOKEN=…)."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{said}: the Hub has no such model.{did_you_mean(name, list(options().values()))}") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{said}: it has no revision {revision}; see models.revision.") from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"{said}: the download failed ({first_line(error)}); the same command goes on.") from error
