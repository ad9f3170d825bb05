"""The configurations of the stages of `recipe=tune_to_int4`, each a run of its own in the run's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gemma_tune.cli.defaults import resolve_defaults
from gemma_tune.cli.run_settings import as_evaluated
from gemma_tune.config import AdapterConfig, Config, ExportConfig, ModelConfig, QuantConfig, TrackerConfig
from gemma_tune.config.model import TRAIN_NOTHING, is_gguf
from gemma_tune.run.paths import ON_GRID, TUNED


def of_tuning(cfg: Config, folder: Path) -> Config:
    """The configuration of the first training, which is a run of its own."""
    adapted = "qlora_sft" if cfg.model.load_in_4bit else "lora_sft"
    recipe = "full_sft" if cfg.adapter.peft_type == "none" else adapted
    return replace(
        cfg,
        recipe=recipe,
        recipe_file=None,
        method="sft",
        output_dir=str(folder / TUNED),
        tracker=_tracker(cfg, folder, TUNED),
        overwrite=False,
        quant=QuantConfig(),
        export=replace(cfg.export, formats=ExportConfig().formats, quality_samples=ExportConfig().quality_samples),
    )


def of_quantization(cfg: Config, folder: Path) -> Config:
    """The configuration of the second training, on the merged weights of the first one."""
    second = cfg.quant.stage2
    kind = second.peft_type or cfg.adapter.peft_type
    adapter = AdapterConfig()
    if kind != "none":
        a = cfg.adapter
        adapter = AdapterConfig(
            kind,
            a.r,
            a.lora_alpha,
            target_modules=a.target_modules,
            target_parameters=a.target_parameters,
            layers_to_transform=a.layers_to_transform,
            rank_pattern=a.rank_pattern,
            alpha_pattern=a.alpha_pattern,
        )
    train = replace(
        cfg.train,
        learning_rate=second.learning_rate,
        towers_learning_rate=None,
        per_device_train_batch_size=second.per_device_train_batch_size,
        num_train_epochs=second.num_train_epochs,
        max_steps=second.max_steps,
        eval_steps=None,
        metric_for_best_model=None,
        greater_is_better=None,
        early_stopping_patience=None,
        early_stopping_threshold=0.0,
        loss_type=None,
        tiled_head=None,
        compact_batches=True,
        extra={name: value for name, value in cfg.train.extra.items() if name != "label_smoothing_factor"},
    )
    found = replace(
        cfg,
        recipe="qat",
        recipe_file=None,
        method="qat",
        output_dir=str(folder / ON_GRID),
        overwrite=False,
        tracker=_tracker(cfg, folder, ON_GRID),
        model=replace(
            cfg.model,
            load_in_4bit=False,
            keep_decoded=None,
            dtype=None,
            added_tokens=[],
            train_towers=TRAIN_NOTHING,
        ),
        adapter=adapter,
        train=train,
        quant=replace(cfg.quant, stage2=QuantConfig().stage2),
    )
    resolve_defaults(found)  # by the width of the base, which is that of the tuned model
    found.model.model_name_or_path, found.model.revision = str(folder / TUNED), None
    return found


def _tracker(cfg: Config, folder: Path, stage: str) -> TrackerConfig:
    return replace(cfg.tracker, name=f"{cfg.tracker.name or folder.name}-{stage}")


def of_measuring(cfg: Config, name: str, tokenizer: str | None = None) -> Config:
    """The configuration of `recipe=evaluate` on a model, with the rows and evaluators of another run.

    Args:
        cfg: The configuration of that run.
        name: The model: a checkpoint, a run folder, or an exported file.
        tokenizer: Its tokenizer; None: the one beside the weights.
    """
    device = "auto" if is_gguf(name) else cfg.model.device
    model = ModelConfig(name, tokenizer_name_or_path=tokenizer, chat_template=cfg.model.chat_template, device=device)
    if name == cfg.model.model_name_or_path:
        model.revision, model.images_kwargs = cfg.model.revision, cfg.model.images_kwargs
        model.image_attention = cfg.model.image_attention
    return as_evaluated(replace(cfg, recipe="evaluate", method="evaluate", model=model, adapter=AdapterConfig()))
