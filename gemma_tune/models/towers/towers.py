"""The towers of a checkpoint: what turns images, sound and video into vectors of the language part's width.

They are the checkpoint's own class in Transformers, without its language model, in whose place stands what keeps the
inputs that it would get. So the language part, with whatever adapter or grid is on it, gets exactly those, and no line
of how a family places its features is written a second time.

"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from gemma_tune.errors import UserError
from gemma_tune.models.family import BY_DOCUMENT
from gemma_tune.models.kernels.documents import document_numbers
from gemma_tune.models.towers.image_attention import image_attention
from gemma_tune.models.towers.image_cache import IMAGES, ImageCache, features_of
from gemma_tune.models.towers.image_masks import image_masks, runs
from gemma_tune.models.unwrap import language_part, plain_name, stored_tensors

_NAME, _OPEN = "towers", "open_towers"  # names of attributes; the first one's is a submodule while they are trained
_MASKED = ("sdpa", BY_DOCUMENT, "eager")  # kernels that take a mask of any form


Media = Mapping[str, Any]  # what the processors made, by the model's names: `pixel_values`, …


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

    Attributes:
        names: The names in the checkpoint's files of those tensors that aren't the checkpoint's: they are trained, or
            were; by their names in memory. Layers with adapters are not among them.
        published: Those of all tensors, where they were looked up.
        cache: What they have made of images already, where they are frozen and images come several times.
    """

    def __init__(self, whole: Any, config: Any, text: Any) -> None:
        super().__init__()
        whole.config, whole.vocab_size = config, config.get_text_config().vocab_size
        whole.language_model = _LanguageStand(text)
        self.whole = whole.eval().requires_grad_(False)
        self.batch: Media | None = None
        self.passes = 0  # forward passes that `batch` is still for
        self.names: dict[str, str] = {}
        self.published: dict[str, str] | None = None
        self.cache: ImageCache | None = None

    def place(self, text: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]] | None:
        """A pre-hook of the language model: its inputs with the media of `batch` in the place of their soft tokens."""
        batch = self.batch
        if batch is None:
            return None
        self.passes -= 1
        if self.passes <= 0:
            self.batch = None  # what is generated afterwards comes without them
        given = {**dict(zip(("input_ids", "attention_mask", "position_ids"), args, strict=False)), **given}
        ids = given.pop("input_ids")
        device = ids.device
        mask = self._mask(text.config, given, ids)
        inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != IMAGES}
        if IMAGES in batch:
            assert self.cache is not None
            features = features_of(self.whole, batch[IMAGES], self.cache, device)
            inputs["mm_encoder_outputs"] = {"image": SimpleNamespace(pooler_output=features)}
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
            kernels = ", ".join(_MASKED)
            raise UserError(
                f"model.attn_implementation={config._attn_implementation}: it has no place for the attention of "
                f"images, whose tokens see each other; choose one of {kernels}."
            )
        valid = given.get("attention_mask")
        if isinstance(valid, Mapping):  # as `generate` prepares it; its last row says which tokens are no padding
            valid = None if valid["full_attention"] is None else _valid(valid["full_attention"], ids)
        dtype = self.whole.language_model.embed_tokens.weight.dtype
        where = document_numbers(given.get("position_ids"), valid, ids.shape, ids.device)
        blocks = runs(ids, _seen_tokens(self.whole.config))
        masks = image_masks(where, blocks, config.sliding_window, sees)
        return {name: _for_kernel(mask, config, dtype) for name, mask in masks.items()}

    def stored(self) -> dict[str, torch.Tensor]:
        """The tensors of towers and projectors by their names in the whole model, buffers of the checkpoint too.

        Those of adapters aren't among them; the tensors of the layers that these are on have their plain names.
        """
        return {plain_name(name): t for name, t in stored_tensors(self.whole) if ".lora_" not in name}


def _valid(mask: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    seen = mask[:, 0, -1, -ids.shape[1] :]
    return seen if seen.dtype == torch.bool else seen >= 0


def _seen_tokens(config: Any) -> list[int]:
    """Ids of the soft tokens of images and videos, which see each other; those of sounds don't."""
    return [i for n in ("image_token_id", "video_token_id") if (i := getattr(config, n, None)) is not None]


def _for_kernel(mask: torch.Tensor, config: Any, dtype: torch.dtype) -> torch.Tensor:
    """A mask as the kernel takes it: what is seen for SDPA, and for eager attention what is added to the scores."""
    if config._attn_implementation != "eager":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def remember_towers(language: Any, load: Callable[[Any], Towers]) -> None:
    """Towers are loaded when a forward pass has media for the first time: text needs none.

    Args:
        language: The language part.
        load: Gives the towers of a language part.
    """
    vars(language)[_OPEN] = load


def open_towers(model: Any) -> Towers:
    """The towers beside a model, loaded now where they aren't yet, so that its forward passes can have media.

    Args:
        model: The model, or a PeftModel around it.

    Raises:
        UserError: They can't be loaded.
        RuntimeError: The model was loaded without towers beside it.
    """
    language = language_part(model)
    if (there := towers_of(language)) is not None:
        return there
    if _OPEN not in vars(language):
        raise RuntimeError("media are given to a model that was loaded without its towers")
    towers: Towers = vars(language)[_OPEN](language)
    towers.whole.to(language.get_input_embeddings().weight.device)
    language.model.register_forward_pre_hook(towers.place, with_kwargs=True)
    vars(language)[_NAME] = towers  # no submodule: exports copy the towers from the checkpoint
    return towers


def towers_of(model: Any) -> Towers | None:
    """The towers beside a model, or None where none were loaded yet."""
    found: Towers | None = getattr(language_part(model), _NAME, None)
    return found


def cache_of(model: Any) -> ImageCache | None:
    """The cache of features of images beside a model, or None where there is none."""
    towers = towers_of(model)
    return towers.cache if towers else None


@contextlib.contextmanager
def seeing(
    model: Any, media: Media | None, ids: torch.Tensor | None = None, passes: int = 1
) -> Iterator[dict[str, torch.Tensor]]:
    """Within it, the model's next forward pass has these media.

    Args:
        model: The language part, or a PeftModel around it, or the checkpoint's whole class.
        media: What the processors made of them, in the order of their soft tokens; empty or None: there are none.
        ids: The token ids, [B, S], of which the whole class needs to be told which are soft tokens.
        passes: How many forward passes have them, one after the other.

    Yields:
        What the forward pass must be called with besides: of the whole class its own arguments, else nothing.
    """
    if not media:
        yield {}
        return
    if hasattr(model, "model") and hasattr(model.model, "language_model"):
        assert ids is not None
        yield {name: tensor.to(ids.device) for name, tensor in media.items()} | _types(model.config, ids)
        return
    towers = open_towers(model)
    towers.batch, towers.passes = media, passes
    try:
        yield {}
        if towers.batch is not None:
            raise RuntimeError(f"{towers.passes} of {passes} forward passes that should have had media weren't made")
    finally:
        towers.batch = None


def _types(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each token is, as the family's processor says it: without it images have causal attention, unsaid."""
    types = torch.zeros_like(ids)
    for number, kind in enumerate(("image", "video", "audio"), 1):
        token = getattr(config, f"{kind}_token_id", None)
        types = types if token is None else torch.where(ids == token, number, types)
    gemma3 = config.model_type in ("gemma3", "gemma3n")
    return {"token_type_ids": (types == 1).long()} if gemma3 else {"mm_token_type_ids": types}
