"""Whether the Hugging Face Hub can be asked: one question with a short time-out. Imports no torch.

Libraries ask five times, longer and longer apart, for every file. So the first question is ours, and where nobody
answers, nothing else is asked.
"""

from __future__ import annotations

import os
import sys
import threading
import urllib.error
import urllib.request
from functools import cache

from gemma_tune.config import Config, ModelConfig
from gemma_tune.config.model import is_gguf
from gemma_tune.config.path_keys import named_paths
from gemma_tune.errors import UserError
from gemma_tune.run.paths import looks_local, resolve

_SECONDS = 5.0
_TRUE = ("1", "ON", "YES", "TRUE")
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def endpoint() -> str:
    """Address of the Hub: HF_ENDPOINT, or huggingface.co."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


@cache
def no_network() -> str | None:
    """Why the Hub can't be asked, as the end of a sentence; None where it answers, whatever it says.

    It is asked once in a process.
    """
    for name in _OFFLINE_VARIABLES:
        if os.environ.get(name, "").upper() in _TRUE:
            return f"{name}={os.environ[name]} says so"
    return _unreachable(endpoint())


def _unreachable(address: str) -> str | None:
    found: list[str | None] = []

    def ask() -> None:
        asked = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "gemma_tune"})
        try:
            with urllib.request.urlopen(asked, timeout=_SECONDS):
                found.append(None)
        except urllib.error.HTTPError:  # an answer, too
            found.append(None)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            found.append(None if "CERTIFICATE" in str(reason).upper() else f"{address}: {_words(reason)}")

    # In a thread: the time-out of a socket doesn't end the look-up of a name
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS + 1)
    return found[0] if found else f"{address} doesn't answer within {_SECONDS:g} seconds"


def _words(reason: object) -> str:
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return text[0].lower() + text[1:]


def is_of_hub(name: str) -> bool:
    """Whether a model's name means one on the Hub."""
    return not (looks_local(name) or is_gguf(name))


def asks_hub(cfg: Config) -> bool:
    """Whether anything that the configuration names may have to come from the Hub."""
    named = [path for path in named_paths(cfg) if path.kind in ("model", "dataset")]
    return any(is_of_hub(p.name) if p.kind == "model" else not resolve(p.name).is_dir() for p in named)


def only_local(name: str) -> bool:
    """`local_files_only` for a model of this name: True where it is one of the Hub, and that can't be asked."""
    return is_of_hub(name) and no_network() is not None


def set_offline_mode(cfg: Config) -> None:
    """Where something may have to come from a Hub that can't be asked, libraries take what is in the cache.

    They read HF_HUB_OFFLINE when they are imported, so this is for the begin of a process. `no_network` has its answer
    by then, and keeps it.
    """
    if asks_hub(cfg):
        _set_offline_mode()


def _set_offline_mode() -> None:
    if "huggingface_hub" not in sys.modules and no_network():
        os.environ["HF_HUB_OFFLINE"] = "1"


def is_in_cache(name: str, revision: str | None) -> bool:
    """Whether a checkpoint of the Hub is in the cache of this machine, by its config.json."""
    _set_offline_mode()  # before the import
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)


def check_can_be_had(model: ModelConfig) -> None:
    """Raises UserError for a checkpoint of the Hub of which nothing is on this machine, where there is no network."""
    name = model.model_name_or_path
    if not is_in_cache(name, model.revision) and (why := no_network()):
        raise model_not_here(name, why)


def model_not_here(name: str, why: str) -> UserError:
    """`not_here` for `model.model_name_or_path`."""
    key = "model.model_name_or_path"
    return not_here(f"{key}={name}", why, f"hf download {name}", f"{key}=path/to/folder")


def not_here(said: str, why: str, command: str, key: str) -> UserError:
    """The answer that something of the Hub isn't on this machine and can't be fetched.

    Args:
        said: Where it was named: `model.model_name_or_path=google/gemma-3-1b-it`.
        why: As `no_network` says it.
        command: Fetches it on another machine.
        key: The key that takes a local folder or file instead.
    """
    return UserError(
        f"no network: {said}: it isn't (or not all of it) on this machine, and the Hub can't be asked ({why}). On a "
        f"machine with a network run `{command}` and copy the Hub's cache (~/.cache/huggingface/hub, or HF_HOME/hub) "
        f"here, or name what is here already: {key}."
    )
