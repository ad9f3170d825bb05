"""`model=…`: which checkpoint, and how it is held in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gemma_tune.config.option import option
from gemma_tune.run.paths import resolve


def is_gguf(name: str) -> bool:
    """Whether a model's name means a GGUF file, which llama.cpp runs: `recipe=evaluate` takes one."""
    return name.lower().endswith(".gguf") and not resolve(name).is_dir()


# The names of chat/forms.py
CHAT_FORMS = (
    "gemma", "gemma3", "gemma3n", "functiongemma", "gemma4", "gemma4_large", "gemma4_v1", "gemma4_v2", "gemma4_v3",
    "gemma4_v4", "gemma4_v5", "gemma4_large_v1", "gemma4_large_v3", "gemma4_large_v4", "gemma4_large_v5",
)  # fmt: skip


def is_template_file(name: str | None) -> bool:
    """Whether `model.chat_template` names a file, and no chat format of ours."""
    return name is not None and name not in CHAT_FORMS


TRAIN_NOTHING, TRAIN_PROJECTOR, TRAIN_LORA, TRAIN_FULL = "none", "projector", "lora", "full"
CAUSAL, BIDIRECTIONAL = "causal", "bidirectional"


@dataclass
class ModelConfig:
    """Names are those of Transformers' `from_pretrained` and `BitsAndBytesConfig`."""

    model_name_or_path: str = option(
        "",
        "A name on the Hugging Face Hub, a model folder, a PEFT adapter folder, or a run folder of ours (training "
        "continues from the last two). recipe=chat, serve and evaluate take a GGUF file, too.",
        path="model",
    )
    base_url: str | None = option(
        None,
        "recipe=evaluate: an OpenAI-compatible API that is asked in place of loaded weights, for example "
        "http://127.0.0.1:8000/v1; its key is taken from OPENAI_API_KEY. model_name_or_path then names the run or the "
        "folder whose rows, settings and tokenizer are used.",
        longest=2000,
    )
    served_name: str | None = option(
        None, "The model's id at `model.base_url`; null: the only one that it has.", longest=1000
    )
    tokenizer_name_or_path: str | None = option(
        None,
        "Folder or Hub name of the tokenizer; null: the one beside the weights; for a GGUF file the one beside it "
        "or in the run folder that holds it.",
        path="model",
    )
    revision: str | None = option(None, "Branch, tag or commit on the Hub.")
    dtype: str | None = option(
        None,
        "Type of the weights in memory; null: float32 where every weight is trained, since bfloat16 weights would "
        "round small updates away, else bfloat16. float16 is refused: Gemma 3's activations overflow it.",
        choices=("bfloat16", "float32"),
    )
    attn_implementation: str | None = option(
        None,
        "Attention kernel of Transformers, or by_document, ours: it trains packed and padded rows without a mask of "
        "all pairs of tokens, windows cost what they see, and elsewhere it is sdpa. The flash ones need a GPU and "
        "their package. null: sdpa, but by_document to train on a CPU.",
        choices=("sdpa", "by_document", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"),
    )
    layers_at_labels: bool = option(
        True,
        "Compute layers only where a token is trained or measured, if nobody reads the rest of what they give: those "
        "that share keys and values (Gemma 3n, Gemma 4 E2B and E4B) with sdpa, by_document and eager; on a CPU what "
        "follows attention in the last layer of other models. false: everywhere.",
    )
    per_layer_table_on_host: bool | None = option(
        None,
        "Gemma 3n, Gemma 4 E2B and E4B: train with the table of per-layer embeddings (4.7 GB of E2B's weights in "
        "bfloat16) in the host's memory, where it is looked up; a GPU gets the rows of the batch. null: on one GPU, "
        "where the table isn't trained; it is never on the GPU then. QAT on adapters loads it there first.",
    )
    fused_layers: bool | None = option(
        None,
        "Train with norms, LoRA layers and, on a CPU, gelu that take less time than those of Transformers and PEFT; "
        "losses change by rounding. null: on a CPU.",
    )
    keep_decoded: bool | None = option(
        None,
        "Decode 4-bit weights once, when training begins, and not in each pass: 2 bytes a weight more memory, and the "
        "same numbers. With fused_layers. null: on a CPU where they are at most half a billion.",
    )
    chat_template: str | None = option(
        None,
        f"Chat template: {', '.join(CHAT_FORMS)} (gemma4 and gemma4_large, 12B and larger, are the newest ones of "
        "Gemma 4), or a file with one of your own, `path/to/mine.jinja`. null: the checkpoint's own template, if it is "
        "one of them, or its family's where it has none.",
        path="template",
    )
    added_tokens: list[str] = option(
        [],
        "New tokens, found in texts as they stand: each gets an id and a row of the embedding. With an adapter these "
        "rows are trained beside it, and exports hold them.",
    )
    images_kwargs: dict[str, Any] = option(
        {},
        "Settings of the image processor in place of the checkpoint's; a run as the model brings its own, and those "
        "named here stand above them. Gemma 3: do_pan_and_scan (crops beside the image where it is long) and "
        "pan_and_scan_min_crop_size, pan_and_scan_max_num_crops, pan_and_scan_min_ratio_to_activate. Gemma 4: "
        "max_soft_tokens, the most tokens of an image: 70, 140, 280, 560 or 1120.",
    )
    image_attention: str | None = option(
        None,
        "Gemma 4: whether the tokens of an image see each other (bidirectional, where the published 12B, 26B-A4B and "
        "31B have it) or are causal, as text (E2B, E4B). null: as config.json of the checkpoint says, or as the run "
        "that is the model was trained. It stands in config.json of exports.",
        choices=(CAUSAL, BIDIRECTIONAL),
    )
    train_towers: str = option(
        TRAIN_NOTHING,
        "What is trained beside the language model where rows have images or sounds: none, the projector between "
        "towers and language model, lora, adapters on the linear layers of both (Gemma 3n's image tower has none), "
        "or full, the towers, too. What isn't trained is exported to the bit.",
        choices=(TRAIN_NOTHING, TRAIN_PROJECTOR, TRAIN_LORA, TRAIN_FULL),
    )
    cache_image_features: bool | None = option(
        None,
        "SFT: keep what frozen towers make of each image of the training rows on disk until the run ends, a quarter of "
        "the free disk at most (1.3 MB an image of Gemma 3 4B). null: where rows come several times.",
    )
    device: str = option("auto", "auto uses the GPU where there is one.", choices=("auto", "cpu", "cuda"))
    load_in_4bit: bool = option(False, "Quantize the linear layers with bitsandbytes while loading (QLoRA).")
    bnb_4bit_quant_type: str = option("nf4", "4-bit data type of bitsandbytes.", choices=("nf4", "fp4"))
    bnb_4bit_use_double_quant: bool = option(True, "Quantize the scales of the 4-bit blocks, too.")
    bnb_4bit_compute_dtype: str | None = option(
        None, "Type in which the 4-bit layers compute; null: `model.dtype`.", choices=("bfloat16", "float32")
    )
