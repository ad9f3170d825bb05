"""Loads the tokenizer and the model, ready to be trained and to stop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Gemma3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from gemma_tune.chat import STOP_TOKEN, served_template
from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models import four_bit
from gemma_tune.models.family import FAMILIES, Shape
from gemma_tune.models.source import Source


def _not_loadable(source: Source, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    help_line = "give a local folder"
    if source.folder is None:
        help_line = (
            f"check the name, accept the licence at https://huggingface.co/{source.base} and log in "
            "(`hf auth login`), or give a local folder"
        )
    return UserError(f"model.model_name_or_path={source.base}: it can't be loaded ({reason}); {help_line}.")


def load_config(source: Source) -> Any:
    """The model's config.json as Transformers reads it.

    Raises:
        UserError: Not found, no access, or no Gemma that we know.
    """
    try:
        config = AutoConfig.from_pretrained(source.base, revision=source.revision)
    except (OSError, ValueError) as error:
        raise _not_loadable(source, error) from error
    if config.model_type not in FAMILIES:
        raise UserError(
            f"model.model_name_or_path={source.base}: its model_type is {config.model_type}; "
            f"known are {', '.join(FAMILIES)}."
        )
    return config


def key_mapping_of(source: Source) -> dict[str, str] | None:
    """How the checkpoint's keys are renamed for the language part, or None where they are its own."""
    return FAMILIES[load_config(source).model_type].key_mapping


def shape_of(config: Any) -> Shape:
    """The sizes of the language part."""
    text = config.get_text_config()
    return Shape(**{name: getattr(text, name) for name in Shape.__dataclass_fields__})


def load_tokenizer(source: Source) -> PreTrainedTokenizerFast:
    """The tokenizer, with our chat template and padding on the right.

    Raises:
        UserError: Not found, or without Gemma's turn tokens.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.tokenizer, revision=source.revision)
    except (OSError, ValueError) as error:
        raise _not_loadable(source, error) from error
    vocabulary = tokenizer.get_vocab()
    missing = [t for t in ("<start_of_turn>", STOP_TOKEN, "<bos>", "<eos>", "<pad>") if t not in vocabulary]
    if missing:
        raise UserError(f"model.model_name_or_path={source.base}: its tokenizer lacks {', '.join(missing)}.")
    # The published template drops tools, and pretrained checkpoints have none: ours is saved with every model.
    tokenizer.chat_template = served_template()
    tokenizer.pad_token = "<pad>"
    tokenizer.padding_side = "right"
    return tokenizer


def pick_device(model: ModelConfig) -> torch.device:
    """The device of `model.device`."""
    if model.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(model.device)


def stop_token_ids(tokenizer: Any) -> list[int]:
    """The ids that end an answer: `<eos>`, and `<end_of_turn>`, which is what chats are trained to end with."""
    return [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(STOP_TOKEN)]


def _quantization(model: ModelConfig) -> BitsAndBytesConfig | None:
    if not model.load_in_4bit:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=model.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=getattr(torch, str(model.bnb_4bit_compute_dtype or model.dtype)),
    )


def load_base(model: ModelConfig, source: Source, tokenizer: Any) -> PreTrainedModel:
    """The base model on its device, in its dtype, 4-bit where asked for, with a generation config that stops.

    Raises:
        UserError: Not loadable, or weights missing in the files.
    """
    config = load_config(source)
    kwargs: dict[str, Any] = {
        "dtype": getattr(torch, str(model.dtype)),
        "attn_implementation": model.attn_implementation or "sdpa",
        "revision": source.revision,
        "quantization_config": _quantization(model),
        "device_map": {"": str(pick_device(model))},
        "output_loading_info": True,
    }
    auto: Any = AutoModelForCausalLM
    family = FAMILIES[config.model_type]
    if family.key_mapping:
        auto = Gemma3ForCausalLM
        kwargs |= {"config": config.get_text_config(), "key_mapping": family.key_mapping}
    try:
        loaded, info = auto.from_pretrained(source.base, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _not_loadable(source, error) from error
    if info["missing_keys"]:
        some = sorted(info["missing_keys"])[:3]
        raise UserError(
            f"model.model_name_or_path={source.base}: {len(info['missing_keys'])} weights are missing in the files "
            f"(for example {', '.join(some)}); they would be random. Fetch the checkpoint again."
        )
    check_vocabulary(loaded, [*stop_token_ids(tokenizer), tokenizer.bos_token_id, tokenizer.pad_token_id])
    four_bit.keep_layout(loaded)
    set_stop_tokens(loaded, tokenizer)
    return loaded


def check_vocabulary(model: Any, ids: Iterable[int]) -> None:
    """Raises UserError for an id that the embedding has no row for.

    The tokenizer as a whole may be larger: those of the 270M and 1B carry image tokens that these models lack.
    """
    rows, highest = model.get_input_embeddings().num_embeddings, max(ids)
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
