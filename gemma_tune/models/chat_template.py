"""The chat template of a model: its own, one of ours by name, or a file of the user's (`model.chat_template`)."""

from __future__ import annotations

from pathlib import Path

from gemma_tune.chat import (
    UnknownTemplate,
    is_saved,
    own_form,
    recognise_template,
    saved,
    served_template,
    syntax_problems,
    translates,
    vocabulary_in,
)
from gemma_tune.config import ModelConfig
from gemma_tune.config.model import is_template_file
from gemma_tune.errors import UserError
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import resolve
from gemma_tune.untrusted import MIB, read_bytes


def template_of(stored: str | dict[str, str] | None, named: str | None, family: str) -> str:
    """The template that a model is trained, served and saved with.

    Args:
        stored: The template beside the tokenizer, perhaps several by name, or None.
        named: `model.chat_template`.
        family: The chat format of the model's family.

    Raises:
        UnknownTemplate: The stored one is none that we know.
    """
    if named is not None and is_template_file(named):
        return saved(_read(named))
    if named is not None:
        return served_template(named)
    if isinstance(stored, str) and (is_saved(stored) or translates(stored)):
        return stored
    return served_template(recognise_template(stored, family))


def check_template(model: ModelConfig) -> None:
    """Examines a template of the user's own, without torch, with the tokenizer's files where they are here.

    Raises:
        UserError: Every reason why it can't be used.
    """
    name = model.chat_template
    if name is None or not is_template_file(name):
        return
    source, folder = _read(name), find_source(model).tokenizer_folder
    problems = list(syntax_problems(source))
    vocabulary = vocabulary_in(folder, model.added_tokens) if folder and not problems else None
    if vocabulary is not None:
        try:
            own_form(saved(source), vocabulary)
        except UnknownTemplate as error:
            problems = [str(error)]
    if problems:
        raise UserError(f"model.chat_template={name}: {' '.join(problems)}")


def translates_in(folder: Path | None) -> bool:
    """Whether the chat template beside a tokenizer reads the two languages of a message, as TranslateGemma's does."""
    files = [folder / name for name in ("chat_template.jinja", "tokenizer_config.json")] if folder else []
    return any(translates(read_bytes(f, 64 * MIB).decode("utf-8", "replace")) for f in files if f.is_file())


def _read(name: str) -> str:
    return read_bytes(resolve(name), MIB).decode("utf-8").replace("\r\n", "\n")
