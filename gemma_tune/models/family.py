"""Facts about each Gemma family, and the sizes of the published checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

# The published checkpoints are 640 wide and more; narrower models are trained in other ways by default.
NARROW = 512


@dataclass(frozen=True)
class Family:
    """What the rest of the project must know about a family.

    Attributes:
        name: Template file in chat/templates.
        key_mapping: For checkpoints with an image tower: how the language part's keys are renamed.
    """

    name: str
    key_mapping: dict[str, str] | None = None


# By `model_type` of config.json. The 4B and larger are stored with an image tower, of which nothing is loaded.
FAMILIES = {
    "gemma3_text": Family("gemma3"),
    "gemma3": Family(
        "gemma3",
        {r"^language_model\.model\.": "model.", r"^model\.language_model\.": "model.", r"^language_model\.": ""},
    ),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a Gemma 3 text model, as in its config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers of all blocks: what 4-bit quantisation and all-linear adapters reach."""
        attention = self.head_dim * self.hidden_size * 2 * (self.num_attention_heads + self.num_key_value_heads)
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def parameters(self) -> int:
        """All weights; the head is the embedding."""
        norms = self.num_hidden_layers * (4 * self.hidden_size + 2 * self.head_dim) + self.hidden_size
        return self.linear_parameters + norms + self.vocab_size * self.hidden_size

    def lora_parameters(self, r: int) -> int:
        """Weights of rank-r adapters on every linear layer of the blocks: r·(in + out) each."""
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        h, m = self.hidden_size, self.intermediate_size
        widths = (h + q) + 2 * (h + kv) + (q + h) + 2 * (h + m) + (m + h)
        return self.num_hidden_layers * r * widths


# From the published config.json files; used to estimate memory before anything is downloaded.
PUBLISHED = {
    "gemma-3-270m": Shape(640, 18, 4, 1, 256, 2048, 262144),
    "gemma-3-1b": Shape(1152, 26, 4, 1, 256, 6912, 262144),
    "gemma-3-4b": Shape(2560, 34, 8, 4, 256, 10240, 262208),
    "gemma-3-12b": Shape(3840, 48, 16, 8, 256, 15360, 262208),
    "gemma-3-27b": Shape(5376, 62, 32, 16, 128, 21504, 262208),
}


def published_shape(name: str) -> Shape | None:
    """The shape of a published checkpoint by its Hub name, or None."""
    last = name.rsplit("/", 1)[-1]
    return next((s for key, s in PUBLISHED.items() if last == key or last.startswith(f"{key}-")), None)
