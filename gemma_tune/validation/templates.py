"""What `model.chat_template` names: a chat format of ours, or a file that can be read."""

from __future__ import annotations

import json
from collections.abc import Iterator

from gemma_tune.config.model import CHAT_FORMS, is_template_file
from gemma_tune.errors import shortened
from gemma_tune.run.paths import resolve
from gemma_tune.untrusted import MIB, read_bytes
from gemma_tune.validation.suggest import did_you_mean, missing_path

_KEY = "model.chat_template"
_IN_MODELS = "chat_template.jinja"  # the template's file in a checkpoint's folder
_SUFFIXES = (".jinja", ".jinja2", ".j2", ".txt", ".json")


def template_problems(name: str | None) -> Iterator[str]:
    """What is wrong with the name or the file; what it holds is examined with the tokenizer (`models`)."""
    if name is None or not is_template_file(name):
        return
    file, said = resolve(name), f"{_KEY}={shortened(name)}"
    if not file.exists() and "/" not in name and not name.lower().endswith(_SUFFIXES):
        yield (
            f"{said}: there is no chat template of this name.{did_you_mean(name, CHAT_FORMS)} Known are "
            f"{', '.join(CHAT_FORMS)}; a template of your own is named by its file: {_KEY}=path/to/mine.jinja."
        )
    elif file.is_dir():
        inside = f"{name.rstrip('/')}/{_IN_MODELS}" if (file / _IN_MODELS).is_file() else "path/to/mine.jinja"
        yield f"{said}: this is a folder; name the file with the template: {_KEY}={inside}."
    elif not file.is_file():
        yield missing_path(_KEY, name, "file")
    else:
        yield from _content_problems(said, name)


def _content_problems(said: str, name: str) -> Iterator[str]:
    try:
        text = read_bytes(resolve(name), MIB).decode("utf-8")
    except OSError as error:
        yield f"{said}: the file can't be read ({error.strerror})."
    except UnicodeDecodeError:
        yield f"{said}: this is no text in UTF-8; name a file with a Jinja template."
    except ValueError as error:  # too large
        yield f"{said}: {error}, and no chat template is so long; name a file with a Jinja template."
    else:
        if _is_json(text):
            yield f"{said}: this is JSON; write the text of its chat_template into a file of its own (mine.jinja)."


def _is_json(text: str) -> bool:
    """Whether a text is a JSON object or list, as tokenizer_config.json; a template's braces make none."""
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False
