"""`export=…`: what users take away beside the adapter."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import ROWS, option

# What holds the codes of a quantization format, and what can be written only of a model that is in none.
CODED, UNQUANTIZED = ("gguf", "w4a16", "w4a16_transformers", "mlx", "phone"), ("gguf_q8_0", "gguf_lora", "adapter_vllm")
# Of these, the adapter alone, and what holds it rounded together with its base
ADAPTERS = {"gguf_lora": "gguf", "adapter_vllm": "w4a16"}
FORMATS = ("merged", *CODED, "gguf_f32", "gguf_f16", "gguf_bf16", *UNQUANTIZED)


@dataclass
class ExportConfig:
    """Names are those of `save_pretrained`, where it has one."""

    formats: list[str] = option(
        ["merged"],
        "Formats to write: merged (a plain Transformers folder); gguf_f16, gguf_bf16, gguf_f32, gguf_q8_0 (one file "
        "for llama.cpp, Ollama and LM Studio, in this type of weights); gguf_lora (the adapter alone, for llama.cpp, "
        "on a GGUF file of the base); adapter_vllm (an adapter on experts, with that of each expert by itself, which "
        "is what vLLM serves). Of models in a quantization format: gguf, w4a16 (vLLM, compressed-tensors) and "
        "mlx (mlx-lm) hold its int4 codes (w4a16_transformers: those of a model with experts for Transformers, which "
        "has no place for the codes of experts: these are plain numbers there), and gguf_f16, gguf_bf16, gguf_f32 the "
        "same numbers in wider types; phone (Gemma's own format for phones, in Transformers) holds those of "
        "quant.grid=int4_channel.",
    )
    dtype: str = option("bfloat16", "Type of the exported weights.", choices=("bfloat16", "float32"))
    quality_samples: int = option(
        200,
        "recipe=export, qat and tune_to_int4: on how many of the first rows of each test set the source and every "
        "exported file are measured, by the first evaluator of the run that answers (else the validation loss); "
        "0: not at all.",
        at_least=0,
        at_most=ROWS,
    )
    mmproj: bool = option(
        True,
        "Whether the towers for images and sound of Gemma 3 and 4 are written beside each GGUF file, as a second file "
        "for llama.cpp and Ollama (mmproj).",
    )
    max_shard_size: str = option("5GB", "Maximum size of one file of the exported weights.")
