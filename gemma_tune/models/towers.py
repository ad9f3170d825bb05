"""The towers of a checkpoint: what turns images, sound and video into vectors of the language part's width.

They are the checkpoint's own class in Transformers, without its language model, in whose place stands what keeps the
inputs that it would get. So the language part, with whatever adapter or grid is on it, gets exactly those, and no line
of how a family places its features is written a second time.

"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import nn
from transformers.utils import logging

from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError, first_line
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.hub import only_local
from gemma_tune.models.image_masks import documents, image_masks, runs
from gemma_tune.models.source import Source
from gemma_tune.models.unwrap import language_part, stored_tensors

_NAME = "towers"  # of the attribute, and of the submodule while they are trained
_MASKED = ("sdpa", "eager")  # kernels that take a mask of any form


Media = Mapping[str, torch.Tensor]  # what the processors made, by the model's names: `pixel_values`, …


class _LanguageStand(nn.Module):  # type: ignore[misc]
    """Stands in the place of the whole model's language model, and keeps what that would be given."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        self._text = (text,)  # no submodule: its weights aren't the towers'
        self.given: dict[str, Any] = {}

    @property
    def embed_tokens(self) -> Any:
        return self._text[0].embed_tokens

    @property
    def embed_tokens_per_layer(self) -> Any:
        return self._text[0].embed_tokens_per_layer

    def get_input_embeddings(self) -> Any:
        return self.embed_tokens

    def get_per_layer_inputs(self, *args: Any) -> Any:
        return self._text[0].get_per_layer_inputs(*args)

    def forward(self, **given: Any) -> Any:
        self.given = given
        nothing = dict.fromkeys(("past_key_values", "hidden_states", "attentions", "shared_kv_states", "router_logits"))
        return SimpleNamespace(last_hidden_state=given["inputs_embeds"], **nothing)


class Towers(nn.Module):  # type: ignore[misc]
    """The towers and projectors of a checkpoint beside its language part.

    Args:
        whole: The checkpoint's class in Transformers, whose language model is of no use.
        config: Of the whole checkpoint.
        text: The language model that is used in its place, `language_part(model).model`.
    """

    def __init__(self, whole: Any, config: Any, text: Any) -> None:
        super().__init__()
        whole.config, whole.vocab_size = config, config.get_text_config().vocab_size
        whole.language_model = _LanguageStand(text)
        self.whole = whole.eval().requires_grad_(False)
        self.batch: Media | None = None
        self.trained: tuple[str, ...] = ()

    def place(self, text: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]] | None:
        """A pre-hook of the language model: its inputs with the media of `batch` in the place of their soft tokens."""
        batch = self.batch
        if batch is None:
            return None
        self.batch = None  # what is generated afterwards comes without them
        given = {**dict(zip(("input_ids", "attention_mask", "position_ids"), args, strict=False)), **given}
        ids = given.pop("input_ids")
        device = ids.device
        mask = self._mask(text.config, given, ids)
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        self.whole(
            input_ids=ids, attention_mask=mask, position_ids=given.get("position_ids"), use_cache=False, **inputs
        )
        kept = self.whole.language_model.given
        placed = {name: kept[name] for name in ("inputs_embeds", "per_layer_inputs") if kept.get(name) is not None}
        return (), {**given, **placed, "attention_mask": mask}

    def _mask(self, config: Any, given: Mapping[str, Any], ids: torch.Tensor) -> Any:
        sees = image_attention(config)
        if sees is None:
            return given.get("attention_mask")
        if config._attn_implementation not in _MASKED:
            raise UserError(
                f"model.attn_implementation={config._attn_implementation}: it has no place for the attention of images, "
                f"whose tokens see each other; choose one of {', '.join(_MASKED)}."
            )
        valid = given.get("attention_mask")
        if isinstance(valid, Mapping):  # as `generate` prepares it; its last row says which tokens are no padding
            valid = None if valid["full_attention"] is None else _valid(valid["full_attention"], ids)
        where = documents(ids, given.get("position_ids"), valid)
        blocks = runs(ids, _seen_tokens(self.whole.config))
        masks = image_masks(where, blocks, config.sliding_window, in_full_layers=sees == "all")
        return {name: _for_kernel(mask, config, self.whole.dtype) for name, mask in masks.items()}

    def stored(self) -> dict[str, torch.Tensor]:
        """The tensors of towers and projectors by their names in the whole model, buffers of the checkpoint too."""
        return dict(stored_tensors(self.whole))


def _valid(mask: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    seen = mask[:, 0, -1, -ids.shape[1] :]
    return seen if seen.dtype == torch.bool else seen >= 0


def _seen_tokens(config: Any) -> list[int]:
    """Ids of the soft tokens of images and videos, which see each other; those of sounds don't."""
    return [i for n in ("image_token_id", "video_token_id") if (i := getattr(config, n, None)) is not None]


def _for_kernel(mask: torch.Tensor, config: Any, dtype: torch.dtype) -> torch.Tensor:
    """A mask as the kernel takes it: what is seen for SDPA, and for eager attention what is added to the scores."""
    if config._attn_implementation == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def image_attention(config: Any) -> str | None:
    """In which layers the tokens of an image see each other: `all`, `sliding`, or None: causal everywhere.

    Args:
        config: Of the language part.
    """
    if config.model_type.startswith("gemma3_"):
        return "all"
    return "sliding" if getattr(config, "use_bidirectional_attention", None) == "vision" else None


def load_towers(model: ModelConfig, source: Source, config: Any, language: Any) -> Towers:
    """The towers of a checkpoint for its loaded language part; see `towers_of`.

    Args:
        model: What is asked for.
        source: Where it is.
        config: Of the whole checkpoint, as `load_config` gives it.
        language: The loaded language part.

    Raises:
        UserError: They can't be loaded, or their weights are missing in the files or have another shape.
    """
    family = FAMILIES[config.model_type]
    cls: Any = getattr(transformers, str(family.whole_class))
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # that weights of the language model are left out is meant
    logging.disable_progress_bar()
    try:
        loaded, info = cls.from_pretrained(
            source.base,
            config=_without_language(config),
            dtype=getattr(torch, str(model.dtype)),
            revision=source.revision,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, where they are the towers'
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=only_local(source.base),
        )
    except (OSError, ValueError, RuntimeError, ImportError, TypeError, AttributeError, LookupError) as error:
        raise UserError(
            f"model.model_name_or_path={source.base}: its towers can't be loaded ({first_line(error)})."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    lost = [n for n in (*info["missing_keys"], *(k for k, *_ in info["mismatched_keys"])) if family.is_tower(n)]
    if lost:
        raise UserError(
            f"model.model_name_or_path={source.base}: {len(lost)} weights of its towers are missing in the files or "
            f"have another shape (for example {min(lost)}); they would be random. Fetch the checkpoint again."
        )
    text = language_part(language).model
    towers = Towers(loaded.model, config, text)
    towers.whole.to(text.embed_tokens.weight.device)
    text.register_forward_pre_hook(towers.place, with_kwargs=True)
    vars(language_part(language))[_NAME] = towers  # no submodule: they aren't trained, and exports copy them
    return towers


def _without_language(config: Any) -> Any:
    """The configuration with a language model of no layer and no vocabulary to speak of."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    text.num_hidden_layers, text.layer_types = 0, []
    text.vocab_size = (text.pad_token_id or 0) + 1
    if hasattr(text, "num_kv_shared_layers"):
        text.num_kv_shared_layers = 0
    if hasattr(text, "vocab_size_per_layer_input"):
        text.vocab_size_per_layer_input = text.vocab_size
    return small


def towers_of(model: Any) -> Towers | None:
    """The towers beside a model, or None where none were loaded."""
    found: Towers | None = getattr(language_part(model), _NAME, None)
    return found


@contextlib.contextmanager
def seeing(model: Any, batch: Media | None) -> Iterator[None]:
    """Within it, the model's next forward pass has these media; None: it has none."""
    towers = towers_of(model)
    if towers is not None:
        towers.batch = batch
    elif batch is not None:
        raise RuntimeError("a batch has media, and no towers were loaded")
    try:
        yield
    finally:
        if towers is not None:
            towers.batch = None


def published_names(towers: Towers, checkpoint: CheckpointFiles) -> dict[str, str]:
    """The name in the files of each tensor of the towers, by its name in memory, where Transformers renames some.

    It is the one with the same numbers, and of several such (norms of ones) that whose name ends alike.

    Args:
        towers: As they were loaded, not trained yet.
        checkpoint: Where from.

    Raises:
        RuntimeError: A tensor is in no file.
    """
    left = {n: n.split(".")[::-1] for n in checkpoint.files if checkpoint.family.is_tower(n)}
    found = {}
    for name, tensor in towers.stored().items():
        parts = name.split(".")[::-1]
        for own in sorted(left, key=lambda n: _alike(parts, left[n]), reverse=True):
            stored = checkpoint.read(own)
            if stored.shape == tensor.shape and torch.equal(stored.to(tensor.dtype), tensor.cpu()):
                found[name] = own
                del left[own]
                break
        else:
            raise RuntimeError(f"{checkpoint.folder}: no file holds the tensor {name} of the towers")
    return found


def _alike(parts: list[str], others: list[str]) -> int:
    """How many parts at the end of two names are the same."""
    return next(
        (i for i, (a, b) in enumerate(zip(parts, others, strict=False)) if a != b), min(len(parts), len(others))
    )
