"""“Did you mean …”: near misses, and the names that other tools have for our keys."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from gemma_tune.config.renamed import OPTIONS
from gemma_tune.errors import did_you_mean as did_you_mean
from gemma_tune.errors import near as near
from gemma_tune.run.paths import file_type, resolve

# Left: Unsloth, Axolotl, LLaMA-Factory, torchtune and older Transformers. Right: the one name here.
OTHER_TOOLS = {
    "base_model": "model.model_name_or_path",
    "model_name": "model.model_name_or_path",
    "pretrained_model_name_or_path": "model.model_name_or_path",
    "torch_dtype": "model.dtype",
    "flash_attention": "model.attn_implementation",
    "flash_attn": "model.attn_implementation",
    "quantization_bit": "model.load_in_4bit",
    "load_in_8bit": "model.load_in_4bit",
    "lora_r": "adapter.r",
    "lora_rank": "adapter.r",
    "rank": "adapter.r",
    "alpha": "adapter.lora_alpha",
    "dropout": "adapter.lora_dropout",
    "lora_target": "adapter.target_modules",
    "lora_target_modules": "adapter.target_modules",
    "lora_target_linear": "adapter.target_modules",
    "peft_use_dora": "adapter.use_dora",
    "peft_use_rslora": "adapter.use_rslora",
    "pissa_init": "adapter.init_lora_weights",
    "dataset": "data.train_file",
    "dataset_path": "data.train_file",
    "data_files": "data.train_file",
    "train_path": "data.train_file",
    "val_size": "data.validation_split_percentage",
    "val_set_size": "data.validation_split_percentage",
    "test_size": "data.validation_split_percentage",
    "input_column": "data.prompt_column",
    "output_column": "data.completion_column",
    "max_samples": "data.max_train_samples",
    "max_test_samples": "eval.max_samples",
    "max_predict_samples": "eval.max_samples",
    "micro_batch_size": "train.per_device_train_batch_size",
    "batch_size": "train.per_device_train_batch_size",
    "sequence_len": "train.max_length",
    "seq_length": "train.max_length",
    "max_seq_length": "train.max_length",
    "max_seq_len": "train.max_length",
    "cutoff_len": "train.max_length",
    "sample_packing": "train.packing",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.lr_scheduler_type",
    "epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "steps": "train.max_steps",
    "warmup_ratio": "train.warmup_steps",
    "optimizer": "train.optim",
    "grad_accum": "train.gradient_accumulation_steps",
    "grad_clip": "train.max_grad_norm",
    "gradient_clipping": "train.max_grad_norm",
    "checkpointing": "train.gradient_checkpointing",
    "resume": "train.resume_from_checkpoint",
    "random_seed": "seed",
    "output": "output_dir",
    "wandb_project": "tracker.project",
    "wandb_entity": "tracker.entity",
    "wandb_name": "tracker.name",
    "run_name": "tracker.name",
    "peft": "adapter",
    "lora": "adapter",
    "dataset_format": "data.format",
    "evaluation": "eval",
    "logger": "tracker",
    "kl_coef": "train.beta",
    "kl_loss_coef": "train.beta",
    "group_size": "train.num_generations",
    "rollout_n": "train.num_generations",
    "num_samples_per_prompt": "train.num_generations",
    "num_return_sequences": "train.num_generations",
    "max_response_length": "train.max_completion_length",
    "clip_eps": "train.epsilon",
    "clip_range": "train.epsilon",
    "clip_ratio": "train.epsilon",
    "pref_beta": "train.beta",
    "dpo_beta": "train.beta",
    "pref_loss": "train.loss_type",
    "kto_chosen_weight": "train.desirable_weight",
    "kto_rejected_weight": "train.undesirable_weight",
    "rl": "recipe",
    "stage": "recipe",
    "finetuning_type": "adapter",
}
# Names of other tools that have no key here, and what to do instead.
INSTEAD = {
    "max_prompt_length": "prompts are never cut; one that is too long for the model is named, with its row",
    "reward_funcs": "set reward.functions.NAME=path/to/file.py:function, or choose reward=OPTION",
    "chosen_column": "pairs have fields named prompt, chosen and rejected",
    "delimiter": "the separator of a CSV file is found in its first line: comma, semicolon, tab or |",
    "sep": "the separator of a CSV file is found in its first line: comma, semicolon, tab or |",
    "separator": "the separator of a CSV file is found in its first line: comma, semicolon, tab or |",
    "rejected_column": "pairs have fields named prompt, chosen and rejected",
    "rpo_alpha": "set train.loss_type=sigmoid+sft, with train.extra.loss_weights",
    "simpo_gamma": "TRL's DPOTrainer has no SimPO",
    "reference_free": "the reference is the initial model",
}

_FULL = "train every weight (recipe=full_sft)"
# Options of PEFT's LoraConfig that have no key here, and why.
NOT_OF_ADAPTERS = {
    "ensure_weight_tying": "embedding and head are one matrix, and adapter.trainable_token_indices trains it as one",
    "bias": "Gemma's layers have no biases",
    "lora_bias": "Gemma's layers have no biases, so the merged files would have no place for it",
    "fan_in_fan_out": "Gemma's layers are not transposed",
    "exclude_modules": "write adapter.target_modules as a regular expression or a list without them",
    "layers_pattern": "Gemma's blocks are found by adapter.layers_to_transform alone",
    "layer_replication": "the exported model would have other layers than its config.json",
    "target_parameters": "only linear layers are adapted",
    "task_type": "the recipe sets it",
    "inference_mode": "the recipe sets it",
    "revision": "set model.revision",
    "loftq_config": "choose adapter=loftq",
    **dict.fromkeys(
        (
            "alora_invocation_tokens", "use_qalora", "qalora_group_size", "use_bdlora", "arrow_config", "kasa_config",
            "monteclora_config", "velora_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config",
            "megatron_core", "runtime_config",
        ),
        "it is not supported: its merged weights are not held to the adapter's own logits",
    ),
}  # fmt: skip

_INT4_GGUF = "export=gguf is int4 as Q4_0, by recipe=export or recipe=qat"
_INT4_FOLDER = (
    "export=w4a16 is int4 in the form of compressed-tensors, which vLLM and Transformers load, by recipe=export or "
    "recipe=qat"
)
_MLX = "export=mlx is a folder for mlx-lm, by recipe=export or recipe=qat"
_GGUF = "export=gguf_q8_0 or export=gguf_f16 is a GGUF file, and export=gguf one in int4 (recipe=export, recipe=qat)"
_WIDE = "write 'export.formats=[gguf_{0}]', and export=merged for a folder that Transformers and vLLM load"
# Names that llama.cpp, vLLM and other tools have for formats.
_FORMATS_INSTEAD = {
    **dict.fromkeys(("q4_0", "q4", "gguf_q4_0", "gguf_q4", "gguf_int4", "q4_1", "gguf_q4_1", "4bit"), _INT4_GGUF),
    **dict.fromkeys(("q8_0", "q8", "gguf_q8", "q8_1", "int8", "8bit", "gguf_int8"), "write export=gguf_q8_0"),
    **dict.fromkeys(("f16", "fp16", "float16", "half", "gguf_fp16", "gguf_float16"), "write export=gguf_f16"),
    **dict.fromkeys(("bf16", "bfloat16", "gguf_bf16", "gguf_bfloat16"), _WIDE.format("bf16")),
    **dict.fromkeys(("f32", "fp32", "float32", "gguf_f32", "gguf_fp32", "gguf_float32"), _WIDE.format("f32")),
    **dict.fromkeys(
        ("compressed_tensors", "w4a16_g32", "w4", "awq", "gptq", "auto_round", "autoround", "llmcompressor", "nvfp4",
         "bnb", "bitsandbytes", "nf4", "merged_4bit"),
        _INT4_FOLDER,
    ),
    **dict.fromkeys(("mlx_4bit", "mlx4", "mlx_lm", "mlx-lm", "apple"), _MLX),
    **dict.fromkeys(("ollama", "llama_cpp", "llama.cpp", "llamacpp", "lm_studio", "lmstudio"), _GGUF),
    **dict.fromkeys(
        ("vllm", "transformers", "hf", "safetensors", "merged_16bit", "16bit", "full", "model"), "write export=merged"
    ),
    **dict.fromkeys(
        ("lora", "adapter", "peft"), "the adapter is always saved; export=gguf_lora writes it for llama.cpp, too"
    ),
}  # fmt: skip
# Types of llama.cpp that the gguf package has no quantizer of
_K_QUANT = re.compile(r"(gguf_)?i?q\d_(k(_[sml])?|xxs|xs|nl|[sm])")

# Options that a group doesn't have, and what to write instead.
OPTIONS_INSTEAD = {
    ("adapter", "qlora"): "write adapter=lora model.load_in_4bit=true; recipe=qlora_sft has both",
    **{
        ("data", name): "write data=auto, which reads this type of file by its name"
        for name in ("csv", "tsv", "json", "jsonl", "ndjson", "parquet", "arrow", "table", "file")
    },
    ("eval", "preference"): "write eval.evaluators=[preference]",
    ("recipe", "ppo"): "recipe=grpo trains on the same rewards, without a value model",
    **{("recipe", name): "recipe=dpo trains on the same pairs" for name in ("orpo", "simpo", "cpo")},
    **{("recipe", name): f"write recipe={name}_sft" for name in ("lora", "qlora", "full")},
    **{
        ("recipe", name): "write recipe=qlora_sft (an adapter over 4-bit weights), recipe=lora_sft or recipe=full_sft"
        for name in ("sft", "train", "tune", "finetune", "fine_tune", "fine-tune", "instruct")
    },
    **{("recipe", name): "write recipe=grpo, recipe=dpo or recipe=kto" for name in ("rlhf", "align", "reinforce")},
    **{
        ("recipe", name): "write recipe=export for the int4 files of a model, or recipe=qat to train for them"
        for name in ("quantize", "quant", "gguf", "convert", "int4", "ptq")
    },
    **{("recipe", name): "write recipe=evaluate" for name in ("eval", "test", "benchmark", "measure")},
    **{("recipe", name): "write recipe=chat" for name in ("generate", "infer", "inference", "predict", "ask")},
    ("recipe", "merge"): "trainings write export/merged themselves; recipe=export writes int4 files",
}


def other_option(group: str, option: str, options: Iterable[str]) -> str:
    """What to say to an option that a group lacks: its new name, what stands for it, the nearest name, or nothing."""
    if new := OPTIONS.get((group, option)):
        return f" It is {group}={new} now."
    instead = format_instead(option) if group == "export" else OPTIONS_INSTEAD.get((group, option))
    return f" Instead: {instead}." if instead else did_you_mean(option, options)


def format_instead(name: str) -> str:
    """What to write for the name that another tool has for a format of `export`; empty for any other name."""
    plain = name.lower().replace("-", "_")
    if _K_QUANT.fullmatch(plain):
        kind = plain.removeprefix("gguf_").upper()
        return (
            f"llama.cpp's own program makes {kind} of the file of gguf_f16: llama-quantize MODEL-f16.gguf "
            f"MODEL-{kind}.gguf {kind} (docs/gguf.md says what that costs)"
        )
    return _FORMATS_INSTEAD.get(plain, "")


def own_reward(key: str, known: Iterable[str]) -> str:
    """What to say to `reward.NAME`: how a reward of one's own is named, unless NAME is nearly a key of ours."""
    _, name, *below = key.split(".")
    parts = [k.split(".") for k in known if k.startswith("reward.")]
    ours = {part[1] for part in parts} | ({part[-1] for part in parts} if not below else set())
    if name in OTHER_TOOLS or near(name, ours):
        return ""
    return (
        f" A reward of your own is named by reward.functions.{name}=path/to/file.py:function, and its weight by "
        f"reward.weights.{name}."
    )


def suggest_key(key: str, known: Iterable[str]) -> str:
    """Like `did_you_mean`, for a dotted key: other tools' names first, then the whole key, then its last part."""
    known = list(known)
    last = key.rsplit(".", 1)[-1]
    if last in OTHER_TOOLS:
        return f" Did you mean {OTHER_TOOLS[last]}?"
    exact = [k for k in known if k.rsplit(".", 1)[-1] == last]
    if exact:
        return f" Did you mean {exact[0]}?"
    if found := near(key, known):
        return f" Did you mean {found[0]}?"
    by_last: dict[str, str] = {}
    for name in known:
        by_last.setdefault(name.rsplit(".", 1)[-1], name)
    found = near(last, by_last)
    return f" Did you mean {by_last[found[0]]}?" if found else ""


def missing_path(key: str, path: str, kind: str) -> str:
    """The message for a missing file or folder, with the most similar name in its folder."""
    real = resolve(path)
    if real.is_dir() and kind == "file":
        return f"{key}={path}: this is a folder; name a file."
    if real.is_file() and kind != "file":
        within = real.absolute().parent
        if any((within / name).is_file() for name in ("config.json", "adapter_config.json", "manifest.json")):
            return f"{key}={path}: this is a file; name the folder that it is in, {within}."
        rows = " Rows are named with data=auto data.train_file=FILE; recipe=preview shows them." * bool(file_type(real))
        what = f"a {kind}" if kind == "folder" else "a model; name a checkpoint's or a run's folder, or owner/name"
        return f"{key}={path}: this is a file, and not {what}.{rows}"
    beside = [str(Path(path).parent / p.name) for p in real.parent.iterdir()] if real.parent.is_dir() else []
    where = "" if real.parent.is_dir() else f" (nor its folder {real.parent})"
    seen_from = "" if real.is_absolute() else f", as seen from {Path.cwd()}"
    said = did_you_mean(path, beside) or f" Name one that is there{seen_from}."
    return f"{key}={path}: there is no such {kind}{where}.{said}"
