"""What must not leave this machine: its paths, and keys. It is taken out of settings, and refused anywhere else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import get_token

from gemma_tune.errors import UserError
from gemma_tune.nested import leaves
from gemma_tune.run.existing import stored_config
from gemma_tune.run.paths import looks_local
from gemma_tune.sharing.card import CARD
from gemma_tune.sharing.lineage import hub_name
from gemma_tune.untrusted import read_object

_BASE = "base_model_name_or_path"
# Names of environment variables that hold keys: HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY, …
KEY_NAMES = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
HUB_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
SHORTEST_KEY, _SHORTEST_PATH = 8, 8  # characters: shorter ones occur by chance
# Of a file of weights only the head is text: names and metadata, in GGUF with the tokenizer
_HEAD = 64 << 20
# A tokenizer has words of all kinds, of which a path may be made
_WORDS = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class Secrets:
    """What is looked for in every file.

    Attributes:
        keys: Values of keys and tokens, by the name of what holds them.
        paths: Folders of this machine: the run's, those of its data and model, and the home.
    """

    keys: dict[str, str]
    paths: tuple[str, ...]


def of_this_machine(run: Path) -> Secrets:
    """What a run's files could hold of the machine and its user.

    Args:
        run: The run folder, whose config.yaml names files.
    """
    keys = {n: v for n, v in os.environ.items() if KEY_NAMES.search(n) and len(v) >= SHORTEST_KEY}
    if token := get_token():
        keys.setdefault("the stored token of the Hub", token)
    places = {str(run.absolute()), str(run.resolve()), str(Path.home()), str(Path.cwd())}
    for part in (run, *run.glob("*/config.yaml")):
        stored = stored_config(part if part.is_dir() else part.parent) or {}
        named = (value for _, value in leaves(stored) if isinstance(value, str) and os.path.isabs(value))
        places |= {folder for value in named for folder in (value, str(Path(value).parent))}
    return Secrets(keys, tuple(sorted(place for place in places if len(place) >= _SHORTEST_PATH)))


def check_private(files: Iterable[tuple[str, Path | bytes]], secrets: Secrets) -> None:
    """Looks for paths of this machine and for keys in what is to be sent.

    Raises:
        UserError: Something is found: the file, and what it is.
    """
    if problems := [problem for name, content in files for problem in _problems(name, content, secrets)]:
        raise UserError(*problems)


def _problems(name: str, content: Path | bytes, secrets: Secrets) -> Iterator[str]:
    if isinstance(content, Path):
        with content.open("rb") as file:
            content = file.read(_HEAD)
    for holder, key in secrets.keys.items():
        if any(form in content for form in _forms(key)):
            yield f"{name}: it holds the value of {holder}, so nothing is sent; take it out, and replace that key."
    if HUB_TOKEN.search(content):
        yield f"{name}: it holds a token of the Hub (hf_…), so nothing is sent; take it out, and replace that token."
    if name in _WORDS:
        return
    deep = 3 if name.endswith(".gguf") else 2  # its tokenizer has words such as /usr/local
    found = [path for path in secrets.paths if path.count("/") >= deep and any(f in content for f in _forms(path))]
    if found:
        way = "take it out" if name == CARD else "repeat the run with overwrite=true: it writes the file anew"
        yield f"{name}: it holds a path of this machine ({max(found, key=len)}), so nothing is sent; {way}."


def _forms(text: str) -> set[bytes]:
    """As it stands, and as JSON writes it."""
    return {text.encode("utf-8", "surrogateescape"), json.dumps(text)[1:-1].encode()}


def with_public_base(file: Path, base: str | None) -> bytes:
    """An adapter's configuration, in which its base has the name that others find it by.

    Args:
        file: adapter_config.json.
        base: The name on the Hub that the user gives; None: it is known from the adapter.

    Raises:
        UserError: The base is a folder of this machine, and has no name on the Hub.
    """
    stored = read_object(file)
    there = str(stored.get(_BASE))
    if base is None:
        found = hub_name(there)
        if found is None:
            raise UserError(
                f"push.base_model is not set, and {file.parent} was trained on the local folder {there}, which others "
                "don't have: name that model on the Hub, push.base_model=OWNER/NAME (for example "
                "google/gemma-3-270m-it), or push another artifact (push.artifacts=[merged])."
            )
        base = found[0]
    kept, _ = _without_paths({**stored, _BASE: base})
    return (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode()


def without_paths(file: Path) -> tuple[Path | bytes, list[str]]:
    """A file of settings without the keys that hold a path of the machine, and what is said of those left out.

    Returns:
        The file itself where nothing is left out.
    """
    if file.name in _WORDS:
        return file, []
    try:
        stored = read_object(file)
    except ValueError:  # no object: sent as it is, and looked through as all files
        return file, []
    kept, left_out = _without_paths(stored)
    if not left_out:
        return file, []
    said = [f"{file.name} is sent without {', '.join(left_out)}: a path of this machine"]
    return (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode(), said


def _without_paths(stored: dict[str, Any], above: str = "") -> tuple[dict[str, Any], list[str]]:
    """The settings without paths, at any depth, and the dotted keys of those left out."""
    kept, left_out = dict[str, Any](), list[str]()
    for key, value in stored.items():
        if isinstance(value, str) and _is_path(key, value):
            left_out.append(f"{above}{key}")
        elif isinstance(value, dict):
            kept[key], below = _without_paths(value, f"{above}{key}.")
            left_out += below
        else:
            kept[key] = value
    return kept, left_out


def _is_path(key: str, value: str) -> bool:
    if "\n" in value or not value:
        return False
    if key.endswith(("name_or_path", "_file", "_path")) and key != _BASE and "/" in value and looks_local(value):
        return True
    return (os.path.isabs(value) and value.count("/") > 1) or PureWindowsPath(value).is_absolute()
