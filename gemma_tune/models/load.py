"""Loads the configuration and the tokenizer, and says what ends an answer."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import cached_file

from gemma_tune.chat import UnknownTemplate, form_of, response_template
from gemma_tune.config.model import is_template_file
from gemma_tune.errors import UserError, first_line, shortened
from gemma_tune.models.adapters.token_rows import add_tokens
from gemma_tune.models.chat_template import template_of
from gemma_tune.models.family import FAMILIES, Family
from gemma_tune.models.foreign import check_bounds, checked_tokenizer, read_config
from gemma_tune.models.gguf_header import read_gguf_header
from gemma_tune.models.hub import only_local
from gemma_tune.models.not_loadable import not_loadable
from gemma_tune.models.source import Source
from gemma_tune.models.towers.image_attention import set_image_attention
from gemma_tune.models.towers.image_packages import no_timm
from gemma_tune.models.towers.media import checkpoint_of, media_of


@cache
def _hub_folder(name: str, revision: str | None) -> Path:
    """Where the Hub's config.json lies on this machine, fetched where it isn't there yet."""
    return Path(str(cached_file(name, "config.json", revision=revision, local_files_only=only_local(name)))).parent


def _config_of_folder(source: Source, folder: Path) -> Any:
    """As `AutoConfig.from_pretrained` gives it, which would open the file at every call."""
    check_bounds(f"model.model_name_or_path={source.base}", folder)
    stored = _without_nameless_quantization(read_config(folder))
    _check_family(source, stored["model_type"])  # AutoConfig answers an unknown one with a list of all that it knows
    try:
        return AutoConfig.for_model(**stored | {"name_or_path": source.base})
    except ModuleNotFoundError as error:  # Transformers imports timm with Gemma 3n's classes where it is installed
        raise UserError(
            f"model.model_name_or_path={source.base}: Transformers can't import its classes; {no_timm() or error}"
        ) from error
    except Exception as error:  # values of any type fail the classes of Transformers in any way
        raise ValueError(f"config.json: {first_line(error)}") from error


def _without_nameless_quantization(stored: dict[str, Any]) -> dict[str, Any]:
    """A config.json without a `quantization_config` that names no method: the weights are plain numbers.

    Google's QAT checkpoints say so how their numbers came to be, and Transformers refuses to load them.
    """
    found = {k: _without_nameless_quantization(v) if isinstance(v, dict) else v for k, v in stored.items()}
    quantization = stored.get("quantization_config")
    if isinstance(quantization, dict) and not quantization.get("quant_method"):
        del found["quantization_config"]
    return found


def _check_family(source: Source, model_type: str) -> None:
    if model_type not in FAMILIES:
        raise UserError(
            f"model.model_name_or_path={source.base}: its model_type is {shortened(model_type)}; known are "
            f"{', '.join(FAMILIES)}."
        )


def load_config(source: Source) -> Any:
    """The model's config.json as Transformers reads it, each time an object of its own.

    The file is opened once in a process, however often it is asked for (`read_once`), unless it changes.

    Raises:
        UserError: Not found, no access, no Gemma that we know, or one that `model.image_attention` is no choice of.
    """
    try:
        config = _config_of_folder(source, source.folder or _hub_folder(source.base, source.revision))
    except (OSError, ValueError) as error:
        raise not_loadable(source, error) from error
    set_image_attention(config, source.image_attention, source.base)
    return config


def family_of(source: Source) -> Family:
    """The family of a checkpoint, by its config.json, or of a GGUF file, by its header.

    Raises:
        UserError: As `load_config`, or it is no GGUF file.
    """
    if source.gguf is None:
        return FAMILIES[load_config(source).model_type]
    architecture = read_gguf_header(source.gguf).architecture
    family = FAMILIES.get(f"{architecture}_text", FAMILIES.get(architecture))
    if family is None:
        raise UserError(f"model.model_name_or_path={source.base}: its architecture is {architecture}, no Gemma's.")
    return family


def load_tokenizer(source: Source, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer, with the chat template that its model will be trained with and saved with.

    Its `media` is the processor of images, sounds and videos, or None, and `no_media` says why.

    Args:
        source: The model.
        chat_template: Name of a form or of a file (`model.chat_template`), or None to recognise the checkpoint's own
            template.

    Raises:
        UserError: Not found, of another family, or with a template that we don't know.
    """
    family = family_of(source)
    beside = source.tokenizer in (source.base, str(source.adapter))
    said = f"model.model_name_or_path={source.base}" if beside else f"model.tokenizer_name_or_path={source.tokenizer}"
    own = source.tokenizer == source.base
    revision, config = (source.revision, load_config(source)) if own else (None, None)
    if Path(source.tokenizer).is_dir():
        check_bounds(said, Path(source.tokenizer))
    try:
        tokenizer = checked_tokenizer(
            AutoTokenizer.from_pretrained(
                source.tokenizer,
                revision=revision,
                config=config,
                trust_remote_code=False,
                local_files_only=only_local(source.tokenizer),
            )
        )
    except Exception as error:  # foreign files fail the tokenizers in any way
        if beside:
            raise not_loadable(source, error) from error
        raise UserError(f"{said}: no tokenizer can be loaded from it ({first_line(error)}).") from error
    add_tokens(tokenizer, source.added_tokens)
    try:
        tokenizer.chat_template = template_of(tokenizer.chat_template, chat_template, family.form)
        form = form_of(tokenizer)
        tokenizer.response_template = response_template(form) or getattr(tokenizer, "response_template", None)
    except UnknownTemplate as error:
        named = is_template_file(chat_template)
        raise UserError(f"{f'model.chat_template={chat_template}' if named else said}: {error}") from error
    missing = [t for t in (*form.needed_tokens, "<bos>", "<eos>", "<pad>") if t not in tokenizer.get_vocab()]
    if missing:
        raise UserError(
            f"{said}: its tokenizer lacks {', '.join(missing)}, which chats in the "
            f"form {form.name} are made of: it is another family's; copy its files from the published checkpoint."
        )
    tokenizer.pad_token = "<pad>"
    tokenizer.padding_side = "right"
    config = load_config(source) if source.gguf is None else _config_of_gguf(source)
    tokenizer.media, tokenizer.no_media = media_of(source, config, tokenizer)
    return tokenizer


def _config_of_gguf(source: Source) -> Any:
    """That of the checkpoint that a GGUF file was made from, for its media; None where it isn't here."""
    try:
        checkpoint = checkpoint_of(source)
        return checkpoint and load_config(checkpoint)
    except UserError:  # text needs none of it
        return None


def stop_token_ids(tokenizer: Any) -> list[int]:
    """The ids that end an answer: `<eos>`, and the token that chats are trained to end with (`<end_of_turn>`, …)."""
    return [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(form_of(tokenizer).stop_tokens)]


def check_vocabulary(model: Any, ids: Iterable[int]) -> None:
    """Raises UserError for an id that the embedding has no row for.

    The tokenizer as a whole may be larger: those of the 270M and 1B carry image tokens that these models lack.
    """
    check_rows(model.get_input_embeddings().weight.shape[0], ids)


def check_rows(rows: int, ids: Iterable[int]) -> None:
    """The same by the embedding's number of rows."""
    highest = max(ids)
    if highest >= rows:
        raise UserError(
            f"model.model_name_or_path: the rows hold token id {highest}, and the embedding has only {rows} rows; "
            "the tokenizer is another model's, or the text holds image tokens."
        )


def set_stop_tokens(model: Any, tokenizer: Any) -> None:
    """Makes `generate` stop where a chat's answer ends; saved with the model as generation_config.json."""
    model.generation_config.eos_token_id = stop_token_ids(tokenizer)
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
