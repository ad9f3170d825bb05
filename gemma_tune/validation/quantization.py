"""Checks of `quant=…` and of exports in a quantization format."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator

from gemma_tune.config import Config, QuantConfig
from gemma_tune.config.export import ADAPTERS, CODED, FORMATS, UNQUANTIZED
from gemma_tune.config.model import TRAIN_NOTHING
from gemma_tune.config.quant import CHANNEL, STORED, Stage2Config
from gemma_tune.validation.adapter_vllm import adapter_vllm_problems
from gemma_tune.validation.gguf_lora import gguf_lora_problems
from gemma_tune.validation.paths import missing_paths
from gemma_tune.validation.suggest import did_you_mean, format_instead


def grid_problems(cfg: Config) -> Iterator[str]:
    """What a run in a quantization format can't do, and what has no effect without one."""
    q, a = cfg.quant, cfg.adapter
    yield from _format_problems(cfg)
    if not cfg.traits.quantizes:
        for key, default in vars(QuantConfig()).items():
            if getattr(q, key) != default:
                yield f"quant.{key} has no effect with recipe={cfg.recipe}; use recipe=qat or recipe=export."
        return
    if q.grid == "none" and cfg.traits.trains:
        yield f"quant=none with recipe={cfg.recipe}: choose a quantization format, for example quant=q4_0."
    if q.grid == "q3_0" and set(cfg.export.formats) - {"merged"}:
        yield "quant.grid=q3_0 has no file format but merged; add export=merged."
    for key in ("embedding", "per_layer_embedding"):
        if q.grid == "q4_0_fp16" and getattr(q, key) != "none":
            yield f"quant.grid=q4_0_fp16 with quant.{key}: the embedding needs quant.grid=q4_0; set it."
    if q.grid == "q4_0_fp16" and "gguf_bf16" in cfg.export.formats:
        yield "export.formats=gguf_bf16 with quant.grid=q4_0_fp16: bfloat16 can't hold its values; use gguf_f32."
    if q.checkpoint_file is not None and not q.continues:
        yield f"quant.checkpoint_file has no effect with quant.grid={q.grid}; set quant={STORED}, or leave it out."
    yield from missing_paths(cfg, "quant")
    yield from _channel_problems(cfg)
    if q.embedding == STORED and not q.continues:
        yield f"quant.embedding={STORED} needs quant.grid={STORED}; set it, or choose q8_0 or q4_0."
    if q.continues and cfg.traits.trains and q.cross_entropy == 0:
        yield (
            f"quant.grid={STORED} with quant.cross_entropy=0: the loss would be the KL divergence of the checkpoint "
            "from itself, which is 0; set quant.cross_entropy=1, or a share of it."
        )
    if q.teacher == "live" and q.teacher_folder:
        yield "quant.teacher_folder has no effect with quant.teacher=live; leave it out."
    if cfg.data.streaming and cfg.traits.trains:
        yield "data.streaming=true in QAT: the teacher's probabilities are kept for each row; leave it out."
    if cfg.traits.stages and q.continues:
        yield (
            f"quant.grid={STORED} with recipe={cfg.recipe}, whose first training leaves the checkpoint's codes: "
            f"recipe=qat quant={STORED} trains on inside the quantizer; or use quant=q4_0."
        )
    if cfg.traits.stages:
        yield from _tune_to_int4_problems(cfg)
        return
    if q.stage2 != Stage2Config():
        yield f"quant.stage2 has no effect with recipe={cfg.recipe}; use train, or recipe=tune_to_int4."
    if q.grid == "q4_0_fp16" and cfg.model.dtype == "bfloat16":
        yield "quant.grid=q4_0_fp16 with model.dtype=bfloat16, which can't hold its values; leave model.dtype out."
    if cfg.model.load_in_4bit:
        yield f"model.load_in_4bit=true with recipe={cfg.recipe}: quantization rounds full weights; leave it out."
    if not cfg.traits.trains:
        named = {"grid", "embedding", "per_layer_embedding", "int2_modules", "int8_modules", "calibration_samples"}
        named |= {"stage2"} | ({"cross_entropy", "checkpoint_file"} if q.continues else set())  # which the group sets
        for key, default in vars(QuantConfig()).items():
            if key not in named and getattr(q, key) != default:
                yield f"quant.{key} has no effect with recipe=export, which trains nothing; leave it out."
        if not cfg.export.formats:
            yield "export.formats is empty, so there is nothing to do; choose export=int4, gguf, w4a16 or merged."
        return
    for key, value, wanted in (("lora_dropout", a.lora_dropout, 0.0), ("use_dora", a.use_dora, False)):
        if a.peft_type != "none" and value != wanted:
            yield f"adapter.{key}={value} with recipe=qat: the adapter is inside the quantizer; set it to {wanted}."
    if a.peft_type != "none" and str(a.init_lora_weights).startswith(("pissa", "olora", "loftq")):
        yield f"adapter.init_lora_weights={a.init_lora_weights} with recipe=qat changes the weights; use adapter=lora."
    if cfg.model.train_towers != TRAIN_NOTHING:
        yield (
            f"model.train_towers={cfg.model.train_towers} with recipe=qat: towers are as they are in what the weights "
            "learn from, the unquantized model's probabilities; train them before, with recipe=full_sft or lora_sft, "
            "or in the first training of recipe=tune_to_int4."
        )
    if not cfg.eval.before:
        yield "eval.before=false has no effect with recipe=qat: the cost of rounding is measured then; leave it out."


def _channel_problems(cfg: Config) -> Iterator[str]:
    """What a grid with one scale for each output channel can't do, and what no other can."""
    q, formats = cfg.quant, cfg.export.formats
    if not q.by_channel:
        for key in ("embedding", "per_layer_embedding"):
            if (value := getattr(q, key)).endswith("_channel"):
                yield f"quant.{key}={value} needs quant.grid={CHANNEL}; set it, or choose q8_0 or q4_0."
        for key in ("int2_modules", "int8_modules", "calibration_samples"):
            if getattr(q, key) != getattr(QuantConfig(), key):
                yield f"quant.{key} has no effect with quant.grid={q.grid}; use quant.grid={CHANNEL}."
        if "phone" in formats and q.grid != "none":
            yield f"export.formats=phone with quant.grid={q.grid}: it holds one scale a channel; use quant=phone."
        return
    for key in ("embedding", "per_layer_embedding"):
        if (value := getattr(q, key)) in ("q8_0", "q4_0"):
            yield f"quant.{key}={value} with quant.grid={CHANNEL}: it is in blocks; use {CHANNEL}."
    for name in formats:
        if name not in FORMATS or name == "phone" or (name == "merged" and not q.calibration_samples):
            continue
        yield (
            f"export.formats={name} with quant.grid={CHANNEL}: it rounds no activations; use export=phone, or merged "
            "with quant.calibration_samples=0."
        )
    for bits, patterns in q.other_bits.items():
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                yield f"quant.int{bits}_modules: {pattern!r} is no regular expression ({error})."


def _format_problems(cfg: Config) -> Iterator[str]:
    """Formats that don't exist, or that can't hold this model."""
    formats, quantized = cfg.export.formats, cfg.traits.quantizes and cfg.quant.grid != "none"
    for name in formats:
        if name not in FORMATS:
            yield f"export.formats: there is no {name}; {_instead(name)}"
    known = [name for name in formats if name in FORMATS and name != "merged"]
    if cfg.traits.classifies:
        for name in known:
            yield f"export.formats={name} with recipe={cfg.recipe}: a classifier is no file of llama.cpp; leave it out."
        return
    yield from gguf_lora_problems(cfg)
    yield from adapter_vllm_problems(cfg)
    if quantized:
        for name in (name for name in known if name in ADAPTERS):
            yield (
                f"export.formats={name} with quant.grid={cfg.quant.grid}: what an adapter adds is rounded with its "
                f"base; use {ADAPTERS[name]}, or write the adapter by a command of its own: quant=none "
                f"export.formats=[{name}]."
            )
        for name in (name for name in known if name in UNQUANTIZED and name not in ADAPTERS):
            yield (
                f"export.formats={name} with quant.grid={cfg.quant.grid}: it would round the int4 numbers once more; "
                "use gguf, which holds their codes, or write the weights as they are by a command of its own: "
                f"quant=none export.formats=[{name}]."
            )
        return
    coded = [name for name in known if name in CODED]
    if coded and not cfg.traits.quantizes:
        yield (
            f"export.formats={','.join(coded)} is written of models in a quantization format: use recipe=qat, or "
            "afterwards recipe=export model.model_name_or_path=RUN; or use gguf_q8_0 or gguf_f16, which llama.cpp and "
            "Ollama load, too."
        )
    elif coded and not cfg.traits.trains:
        yield (
            f"quant=none with export.formats={','.join(coded)}: choose a quantization format, for example quant=q4_0, "
            "or write the weights as they are: 'export.formats=[gguf_f16,gguf_q8_0]'."
        )


def _instead(name: str) -> str:
    """What to write for a format that doesn't exist."""
    if instead := format_instead(name):
        return f"{instead}."
    return f"there are {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}"


def _tune_to_int4_problems(cfg: Config) -> Iterator[str]:
    """What `recipe=tune_to_int4` can't do, apart from what neither of its trainings can do."""
    if "gguf" not in cfg.export.formats:
        yield "export.formats lacks gguf, which recipe=tune_to_int4 measures at the end; add it, or use recipe=qat."
    if importlib.util.find_spec("xllamacpp") is None:
        yield "recipe=tune_to_int4 measures in llama.cpp, which is not installed: pip install 'gemma_tune[gguf]'"
    if "kl" in cfg.eval.evaluators:
        yield "eval.evaluators: kl with recipe=tune_to_int4 has one reference for four models; use recipe=evaluate."
    if cfg.quant.stage2.max_steps == 0:
        yield "quant.stage2.max_steps=0 would train nothing; use -1 for epochs, or recipe=export after the tuning."
    if not cfg.eval.before:
        yield "eval.before=false has no effect with recipe=tune_to_int4: its table begins with the base; leave it out."
    if cfg.train.resume_from_checkpoint not in ("auto", "never"):
        yield (
            "train.resume_from_checkpoint with recipe=tune_to_int4: resume the tuning with its own recipe, then use "
            "recipe=qat model.model_name_or_path=RUN."
        )
