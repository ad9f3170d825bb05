"""What differs between the Gemma families. Imports no torch.

A new family is a `Family` here, its chat form (chat/forms.py, chat/recognise.py, a file in chat/templates/), the sizes
of its published checkpoints (models/published.json), a YAML for each in configs/model/, and, for int4 files, its GGUF
metadata (export/gguf_metadata.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# The published checkpoints are 640 wide and more; narrower models are trained in other ways by default.
NARROW = 512
# Our attention without masks of whole rows (models/kernels/document_attention.py); where it isn't trained, SDPA
BY_DOCUMENT = "by_document"
_KERNELS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")

_ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# The language part's names in a checkpoint that has towers for images or audio, and where it is loaded alone. The
# first is the form in which Gemma 3 is published.
_LANGUAGE_PART = {
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.": "",
}
_TOWERS = (
    "vision_tower.", "audio_tower.", "multi_modal_projector.", "embed_vision.", "embed_audio.",
    "vision_embedder.",  # as Gemma 4 12B is published; Transformers renames it
)  # fmt: skip


def language_name(name: str) -> str:
    """A layer's or tensor's name in the language part, from its name in the whole model; a tower's stays as it is."""
    for pattern, replacement in _LANGUAGE_PART.items():
        name = re.sub(pattern, replacement, name)
    return name


@dataclass(frozen=True)
class Family:
    """The properties of a family that other modules need.

    Sizes, softcaps, layer types, and how many layers share keys and values are read from config.json.

    Attributes:
        name: For messages.
        form: Chat form of checkpoints that have no template of their own (the pretrained ones).
        language_class: Transformers' class of the language part, which is what we train.
        layer_class: That of its decoder layers, each of which is a group of weights under FSDP2.
        classifier_class: Transformers' class of the language part under a head for sequence classification, or None.
        has_towers: Whether the checkpoint holds towers for images or audio around the language part. They are not
            loaded for text alone; an export gets them from the checkpoint, to the bit.
        whole_class: Transformers' class of a checkpoint with towers, without its head, or None.
        linear_layers: Last names of the linear layers that adapters and 4-bit weights reach. Others are small (router,
            per-layer gates) or read by name in the forward pass (AltUp's coefficients), and stay as they are.
        norm_adds_one: Whether RMSNorm computes `(1 + w)·x` (Gemma 1 to 3) or `w·x` (3n and 4).
        tied: Names of tensors that are one matrix.
        attention: Attention kernels of Transformers that compute it, the default first. SDPA has no place for the
            softcap of Gemma 2's attention.
        gguf: llama.cpp's name of the architecture.
        gguf_tokenizer: llama.cpp's name of the kind of tokenizer.
        experts: Where fused 3-D expert tensors stand, as a last name of their module, or None.
        sixteen_bit: Last names of layers that int4 files hold in 16 bit: low-rank and per-layer gates and projections.
        float32: Last names of small matrices that int4 files hold in float32, because routing depends on them.
    """

    name: str
    form: str
    language_class: str
    layer_class: str
    classifier_class: str | None = None
    has_towers: bool = False
    whole_class: str | None = None
    linear_layers: tuple[str, ...] = _ATTENTION_AND_MLP
    norm_adds_one: bool = True
    tied: tuple[str, str] = ("model.embed_tokens.weight", "lm_head.weight")
    attention: tuple[str, ...] = (
        "sdpa",
        BY_DOCUMENT,
        "eager",
        "flash_attention_2",
        "flash_attention_3",
        "flex_attention",
    )
    gguf: str = "gemma3"
    gguf_tokenizer: str = "llama"
    experts: str | None = None
    sixteen_bit: tuple[str, ...] = ()
    float32: tuple[str, ...] = ()

    @property
    def licence(self) -> str:
        """Under which terms Google publishes the family: Gemma's own, to be accepted on the Hub, or Apache-2.0."""
        return "Apache-2.0" if self.form == "gemma4" else "Gemma"

    @property
    def key_mapping(self) -> dict[str, str] | None:
        """How a checkpoint's names are changed for the language part (regular expressions), or None."""
        return _LANGUAGE_PART if self.has_towers else None

    def language_name(self, name: str) -> str:
        """A tensor's name in the language part, from its name in the checkpoint; a tower's stays as it is."""
        return language_name(name) if self.has_towers else name

    def is_tower(self, name: str) -> bool:
        """Whether a tensor of the checkpoint belongs to no language part."""
        return self.has_towers and name.removeprefix("model.").startswith(_TOWERS)

    def reaches(self, name: str) -> bool:
        """Whether adapters and 4-bit weights reach the linear layer of this name."""
        return name.rsplit(".", 1)[-1] in self.linear_layers

    def is_expert(self, name: str) -> bool:
        """Whether a tensor of this name is a fused expert tensor, [experts, out, in]."""
        return self.experts is not None and name.split(".")[-2:-1] == [self.experts]

    def kind_of(self, name: str, dimensions: int) -> str | None:
        """What a tensor of the language part is to an int4 file, one of `TENSOR_KINDS`; None: nobody has said it.

        Args:
            name: Its name in the language part.
            dimensions: How many it has.
        """
        layer = re.sub(r"\.\d+$", "", name.removesuffix(".weight"))
        if name in self.tied:
            return EMBEDDING
        if name == PER_LAYER_TABLE:
            return PER_LAYER_EMBEDDING
        if self.is_expert(name):
            return EXPERTS
        if dimensions <= 1 or layer.endswith(tuple(f".{end}" for end in self.float32)):
            return FLOAT32  # norms, scales of a layer or an expert
        if layer.endswith(tuple(f".{end}" for end in self.sixteen_bit)):
            return SIXTEEN_BIT
        return LINEAR if self.reaches(layer) else None


# The per-layer embeddings of Gemma 3n and of Gemma 4 E2B and E4B
PER_LAYER_TABLE = "model.embed_tokens_per_layer.weight"
LINEAR, EXPERTS, EMBEDDING, PER_LAYER_EMBEDDING = "linear", "experts", "embedding", "per-layer embedding"
SIXTEEN_BIT, FLOAT32 = "16 bit", "float32"
TENSOR_KINDS = (LINEAR, EXPERTS, EMBEDDING, PER_LAYER_EMBEDDING, SIXTEEN_BIT, FLOAT32)

_PER_LAYER = ("per_layer_input_gate", "per_layer_projection", "per_layer_model_projection")
_GEMMA3 = Family("Gemma 3", "gemma3", "Gemma3ForCausalLM", "Gemma3DecoderLayer", "Gemma3TextForSequenceClassification")
_GEMMA3N = Family(
    "Gemma 3n",
    "gemma3n",
    "Gemma3nForCausalLM",
    "Gemma3nTextDecoderLayer",
    norm_adds_one=False,
    gguf="gemma3n",
    sixteen_bit=(*_PER_LAYER, "linear_left", "linear_right", "altup_projections", "altup_unembed_projections"),
    float32=("correction_coefs", "prediction_coefs", "modality_router"),
)
_GEMMA4 = Family(
    "Gemma 4",
    "gemma4",
    "Gemma4ForCausalLM",
    "Gemma4TextDecoderLayer",
    norm_adds_one=False,
    gguf="gemma4",
    gguf_tokenizer="gemma4",
    experts="experts",
    sixteen_bit=_PER_LAYER,
    float32=("router.proj",),
)
_GEMMA4_UNIFIED = Family(
    "Gemma 4 12B",
    "gemma4",
    "Gemma4UnifiedForCausalLM",
    "Gemma4UnifiedTextDecoderLayer",
    norm_adds_one=False,
    gguf="gemma4",
    gguf_tokenizer="gemma4",
    sixteen_bit=_PER_LAYER,
)


def _with_towers(family: Family) -> Family:
    whole = family.language_class.replace("ForCausalLM", "Model")
    return Family(**{**vars(family), "has_towers": True, "whole_class": whole})


# By `model_type` of config.json.
FAMILIES = {
    "gemma": Family(
        "Gemma 1",
        "gemma",
        "GemmaForCausalLM",
        "GemmaDecoderLayer",
        "GemmaForSequenceClassification",
        attention=_KERNELS,
        gguf="gemma",
    ),
    "gemma2": Family(
        "Gemma 2",
        "gemma",
        "Gemma2ForCausalLM",
        "Gemma2DecoderLayer",
        "Gemma2ForSequenceClassification",
        attention=("eager", "flash_attention_2", "flex_attention"),
        gguf="gemma2",
    ),
    "gemma3_text": _GEMMA3,
    "gemma3": _with_towers(_GEMMA3),
    "gemma3n_text": _GEMMA3N,
    "gemma3n": _with_towers(_GEMMA3N),
    "gemma4_text": _GEMMA4,
    "gemma4": _with_towers(_GEMMA4),
    "gemma4_unified_text": _GEMMA4_UNIFIED,
    "gemma4_unified": _with_towers(_GEMMA4_UNIFIED),
}
