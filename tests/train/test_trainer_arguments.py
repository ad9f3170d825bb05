"""How options reach TRL's dataclass, and what Transformers and torch refuse of them when training begins."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from transformers import TrainingArguments

from gemma_tune.cli.compose import compose_config
from gemma_tune.cli.stages import of_quantization, of_tuning
from gemma_tune.errors import UserError
from gemma_tune.models.hardware import check_hardware
from gemma_tune.models.source import find_source
from gemma_tune.rl.arguments import rl_arguments
from gemma_tune.run.folder import RunFolder
from gemma_tune.steps.setup import look_at_model
from gemma_tune.train.arguments import sft_arguments
from gemma_tune.train.base import GemmaTrainer
from gemma_tune.train.build import build_trainer
from gemma_tune.train.refused import refused_by_trainer
from gemma_tune.train.sharding import sharding_arguments

CPU = torch.device("cpu")


@pytest.mark.parametrize(("metric", "mode"), [("held_out_loss", "min"), ("test_exact_match", "max")])
def test_a_schedule_follows_the_metric_in_its_direction(metric: str, mode: str, tmp_path: Path) -> None:
    words = ["train.lr_scheduler_type=reduce_lr_on_plateau", "train.extra.lr_scheduler_kwargs={patience: 3}"]
    words += ["train.eval_steps=5", f"train.metric_for_best_model={metric}"]
    words += ["eval.during_training=[held_out_loss,answers]", f"output_dir={tmp_path}"]
    cfg = compose_config("lora_sft", words)
    assert sft_arguments(cfg, RunFolder.open(cfg), CPU).lr_scheduler_kwargs == {"patience": 3, "mode": mode}


def test_whole_numbers_are_floats_where_trl_has_a_float(tmp_path: Path) -> None:
    """Transformers' penalty of repetitions takes no int. Groups of 16 are no part of the batch of an evaluation."""
    words = ["train.extra.repetition_penalty=2", "train.extra.top_k=5", "train.num_generations=16"]
    words += ["train.per_device_train_batch_size=16", "train.eval_steps=10", "eval.during_training=[rewards]"]
    cfg = compose_config("grpo", [*words, f"output_dir={tmp_path}"])
    made = rl_arguments(cfg, RunFolder.open(cfg), CPU)
    assert [type(made.repetition_penalty), type(made.top_k)] == [float, int]


def test_recomputation_is_never_reentrant(tmp_path: Path) -> None:
    """With an option of its own, and none of them this one, torch's default would be true."""
    words = ["train.gradient_checkpointing=true", "train.extra.gradient_checkpointing_kwargs={early_stop: false}"]
    cfg = compose_config("lora_sft", [*words, f"output_dir={tmp_path}"])
    made = sft_arguments(cfg, RunFolder.open(cfg), CPU)
    assert made.activation_checkpointing_kwargs == {"early_stop": False, "use_reentrant": False}


def test_a_mapping_of_the_users_joins_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose_config("lora_sft", ["train.extra.accelerator_config={even_batches: false}", f"output_dir={tmp_path}"])
    ours = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    assert sharding_arguments(cfg) == {}
    monkeypatch.setattr("gemma_tune.train.arguments.sharding_arguments", lambda _: {"accelerator_config": ours})
    made: Any = sft_arguments(cfg, RunFolder.open(cfg), CPU).accelerator_config
    assert (made.even_batches, made.gradient_accumulation_kwargs) == (False, {"sync_each_batch": True})


def test_what_is_refused_when_training_begins_is_told(tmp_path: Path) -> None:
    trainer = GemmaTrainer.__new__(GemmaTrainer)
    trainer.model = torch.nn.Linear(2, 2)
    trainer.optimizer = trainer.lr_scheduler = trainer.optimizer_cls_and_kwargs = None
    trainer._loraplus_lr_ratio = trainer._towers_learning_rate = None
    trainer.args = TrainingArguments(
        str(tmp_path), use_cpu=True, optim="adamw_torch", adam_beta2=95.0, lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"lr_end": 1.0}, bf16=False,
    )  # fmt: skip
    with pytest.raises(UserError, match="train: Invalid beta parameter at index 1: 95"):
        trainer.create_optimizer()
    trainer.args.adam_beta2 = 0.999
    assert trainer.create_optimizer() is trainer.optimizer
    with pytest.raises(UserError, match=r"train: lr_end \(1.0\) must be smaller than initial lr"):
        trainer.create_scheduler(10)


def test_weights_that_trl_would_round() -> None:
    """Its continuous batching casts them for mixed precision, and never back."""
    words = ["model=tiny", "train.extra.use_transformers_continuous_batching=true"]
    with pytest.raises(UserError, match="TRL casts the float32 weights that are trained to bfloat16"):
        check_hardware(compose_config("grpo", [*words, "train.bf16=true"]))
    check_hardware(compose_config("grpo", [*words, "train.bf16=false"]))


def test_layers_inputs_go_to_the_host_from_a_gpu_alone() -> None:
    words = ["train.gradient_checkpointing=true", "train.extra.gradient_checkpointing_kwargs={offload: true}"]
    with pytest.raises(UserError, match=r"gradient_checkpointing_kwargs={offload: true} moves activations"):
        check_hardware(compose_config("lora_sft", ["model=tiny", "model.device=cpu", *words]))


def test_an_error_of_a_forward_pass_is_no_option_of_the_users() -> None:
    """TRL computes the log-probabilities of the reference where it makes the trainer."""
    with pytest.raises(TypeError, match="conv1d"), refused_by_trainer():
        torch.nn.Conv1d(2, 2, 1)("no tensor")
    with pytest.raises(UserError, match="train: an option"), refused_by_trainer():
        raise TypeError("an option")


@pytest.mark.parametrize(("recipe", "drops"), [("lora_sft", True), ("grpo", False)])
def test_rows_that_fill_no_batch(recipe: str, drops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rewards a prompt stands in a batch for each of its completions."""
    monkeypatch.setattr("gemma_tune.train.build.keep_table_on_host", lambda *_: None)
    monkeypatch.setattr("gemma_tune.train.build.watch", lambda *_: None)
    args, trainer = SimpleNamespace(train_batch_size=8, world_size=1, dataloader_drop_last=True), MagicMock()
    trainer.train_dataset = range(4)
    given: Any = (lambda **_: trainer, compose_config(recipe), args, None, None, range(4), None)
    with pytest.raises(UserError, match="drops all 4 rows") if drops else contextlib.nullcontext():
        build_trainer(*given)


def test_rates_that_are_left_to_us_and_those_of_a_second_training(tmp_path: Path) -> None:
    words = ["train.lr_scheduler_type=polynomial", "train.extra.lr_scheduler_kwargs={lr_end: 1e-2}", "model=tiny"]
    with pytest.raises(UserError, match=r"lr_end=0.01 is not below the learning rate, 0.008,"):
        look_at_model(compose_config("lora_sft", words))
    cfg = compose_config("tune_to_int4", [*words, "train.learning_rate=2e-2"])
    look_at_model(of_tuning(cfg, tmp_path))
    with pytest.raises(UserError, match=r"lr_end=0.01 is not below the learning rate, 0.001,"):
        look_at_model(of_quantization(cfg, tmp_path), find=lambda _: find_source(cfg.model))
