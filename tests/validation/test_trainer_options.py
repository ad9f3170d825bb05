"""Options of the trainer that would have no effect, or be found wrong after loading: each is answered before."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gemma_tune.cli.compose import compose_config
from gemma_tune.cli.stages import of_quantization, of_tuning
from gemma_tune.config import Config
from gemma_tune.config.train import BY_METRIC
from gemma_tune.errors import UserError
from gemma_tune.validation import cross_problems
from gemma_tune.validation.schedulers import scheduler_problems
from gemma_tune.validation.trainer_options import enum_values, problems_of_extra, trainer_options
from gemma_tune.validation.trainer_tables import DECIDED, NEEDS, RANGES, VALUES

# All of a recipe's are set at once, and all are answered
MISTAKES = {
    "lora_sft": {
        "train.prefix_caching=false": "train.prefix_caching has no effect with recipe=lora_sft",
        "train.extra.adam_beta2=95": "train.extra.adam_beta2 must be at least 0 and below 1, not 95",
        "train.extra.dataloader_num_workers=-1": "dataloader_num_workers must be at least 0, not -1",
        "train.extra.optim_args='momentum=0.9'": "optim_args has no effect without an optimizer that reads it",
        "train.loss_type=dft": None,
        "train.extra.label_smoothing_factor=0.1": "label_smoothing_factor has no effect with train.loss_type=dft",
    },
    "full_sft": {
        "train.extra.dataloader_persistent_workers=true": "without train.extra.dataloader_num_workers=1 or more",
        "train.extra.dataloader_multiprocessing_context=spawn": "without train.extra.dataloader_num_workers=1 or more",
        "train.gradient_checkpointing=true": None,
        "train.extra.gradient_checkpointing_kwargs={every_n_layers: 0}": "must be a whole number above 0, not 0",
    },
    "qat": {
        "train.tiled_head=false": "train.tiled_head has no effect with recipe=qat",
        "train.compact_batches=false": "train.compact_batches has no effect with recipe=qat",
        "train.loss_type=dft": "loss is made of the teacher's probabilities and the cross-entropy (quant.cross_ent",
        "train.extra.label_smoothing_factor=0.1": "label_smoothing_factor has no effect with recipe=qat",
    },
    "reward_model": {
        "train.tiled_head=true": "train.tiled_head has no effect with recipe=reward_model",
        "train.extra.label_smoothing_factor=0.1": "label_smoothing_factor has no effect with recipe=reward_model",
    },
    "dpo": {
        "train.skip_zero_advantages=false": "train.skip_zero_advantages has no effect with recipe=dpo",
        "train.beta=0": "train.beta=0: the loss wouldn't depend on the answers",
        "train.extra.label_smoothing=0.1": "has no effect without train.loss_type=robust, exo_pair or aot",
        "train.extra.discopop_tau=0.1": "discopop_tau has no effect without train.loss_type=discopop",
        "train.extra.f_divergence_type=js": "there are reverse_kl, forward_kl, js_divergence",
        "train.extra.f_alpha_divergence_coef=0.7": "without train.extra.f_divergence_type=alpha_divergence",
    },
    "kto": {
        "train.beta=0": "train.beta=0: the loss wouldn't depend on the answers",
        "train.extra.label_smoothing_factor=0.1": "label_smoothing_factor has no effect with recipe=kto",
        "train.gradient_checkpointing=true": None,
        "train.extra.gradient_checkpointing_kwargs={selective: true}": "with SFT that trains every weight alone",
    },
    "grpo": {
        "train.extra.neftune_noise_alpha=5": "completions would be written with the noise, too",
        "train.extra.multi_objective_aggregation=gdpo": "there are sum_then_normalize, normalize_then_sum",
        "train.extra.vllm_gpu_memory_utilization=0.4": "has no effect without train.use_vllm=true",
        "train.extra.sapo_temperature_neg=2": "has no effect without train.loss_type=sapo",
        "train.extra.entropy_target=2": "has no effect without train.extra.use_adaptive_entropy=true",
        "train.extra.top_k=-1": "top_k must be at least 0, which samples from all tokens, not -1",
        "train.extra.top_p=1.5": "top_p must be above 0 and at most 1, not 1.5",
        "train.extra.min_p=2": "min_p must be",
        "train.extra.repetition_penalty=0": "repetition_penalty must be above 0, not 0",
        "train.gradient_checkpointing=true": None,
        "train.extra.gradient_checkpointing_kwargs={every_n_layers: 2}": "every_n_layers has no effect",
    },
}
FINE = {
    "lora_sft": [
        "train.extra.label_smoothing_factor=0.1", "train.loss_type=chunked_nll", "train.extra.neftune_noise_alpha=5",
        "train.gradient_checkpointing=true", "train.extra.gradient_checkpointing_kwargs={every_n_layers: 2}",
    ],
    "full_sft": [
        "train.optim=sgd", "train.extra.optim_args='momentum=0.9'", "train.tiled_head=false",
        "train.gradient_checkpointing=true",
        "train.extra.gradient_checkpointing_kwargs={selective: true, offload: true}",
    ],
    "dpo": [
        "train.loss_type=robust+sft", "train.extra.label_smoothing=0.1", "train.compact_batches=false",
        "train.extra.f_divergence_type=alpha_divergence", "train.extra.f_alpha_divergence_coef=0.7",
        "train.extra.dataloader_num_workers=2", "train.extra.dataloader_persistent_workers=true",
    ],
    "grpo": [
        "train.loss_type=sapo", "train.extra.sapo_temperature_neg=2", "train.beta=0", "train.extra.top_k=0",
        "train.extra.repetition_penalty=2", "train.prefix_caching=false", "train.skip_zero_advantages=false",
    ],
}  # fmt: skip


@pytest.mark.parametrize("recipe", MISTAKES)
def test_without_effect_or_impossible(recipe: str) -> None:
    with pytest.raises(UserError) as error:
        compose_config(recipe, list(MISTAKES[recipe]))
    missing = [said for said in MISTAKES[recipe].values() if said and not any(said in p for p in error.value.problems)]
    assert not missing and len(error.value.problems) == sum(map(bool, MISTAKES[recipe].values())), error.value.problems


@pytest.mark.parametrize("recipe", FINE)
def test_with_an_effect(recipe: str) -> None:
    assert compose_config(recipe, FINE[recipe]).recipe == recipe


def test_the_plain_loss_of_chosen_answers_needs_no_beta() -> None:
    assert compose_config("dpo", ["train.loss_type=sft", "train.beta=0"]).train.beta == 0


def test_the_first_of_two_trainings_has_options_that_the_second_one_has_not() -> None:
    words = ["train.tiled_head=false", "train.loss_type=nll", "train.extra.label_smoothing_factor=0.1"]
    assert compose_config("tune_to_int4", words).train.loss_type == "nll"


@pytest.mark.parametrize(
    "words", [["model.train_towers=projector"], ["model.load_in_4bit=true", "model.keep_decoded=true"]]
)
def test_both_trainings_can_be_repeated_from_their_own_configuration(words: list[str], tmp_path: Path) -> None:
    cfg = compose_config("tune_to_int4", ["model=tiny", "train.tiled_head=false", "train.loss_type=dft", *words])
    assert cross_problems(of_tuning(cfg, tmp_path)) == []
    (problem,) = cross_problems(of_quantization(cfg, tmp_path))
    assert "model.model_name_or_path" in problem  # which the first one makes


@pytest.mark.parametrize("name", DECIDED)
def test_decided(name: str) -> None:
    """Each is said with its reason; but for a few that older versions had, each is an option of a trainer of TRL's."""
    assert problems_of_extra({name: 1}) == [f"train.extra.{name} can't be set there: {DECIDED[name]}."]


def test_a_file_in_place_of_a_mapping() -> None:
    (problem,) = problems_of_extra({"accelerator_config": "mine.json"})
    assert "accelerator_config must be a mapping" in problem


def test_tables_name_options_of_trl() -> None:
    trainers = ("SFTConfig", "DPOConfig", "KTOConfig", "RewardConfig", "GRPOConfig", "RLOOConfig")
    there = set().union(*map(trainer_options, trainers))
    assert {*VALUES, *RANGES} <= there
    needing = [name for names, *_ in NEEDS for name in names]
    assert all(any(option.startswith(name) for option in there) for name in needing)
    assert {*DECIDED} - there <= {"ref_model"}


@functools.cache
def composed() -> Config:
    return compose_config("lora_sft", ["model=tiny"])


def said(name: str, options: Any = None, **train: Any) -> list[str]:
    """What is wrong with a schedule and its options, at a learning rate of 1e-3."""
    extra = {"lr_scheduler_kwargs": options}
    changed = replace(composed().train, lr_scheduler_type=name, learning_rate=1e-3, extra=extra, **train)
    return [*scheduler_problems(replace(composed(), train=changed))]


SHAPE = "decay_type is one of linear, cosine, 1-sqrt, not 'sqrt'."
SCHEDULES: list[tuple[str, dict[str, Any] | None, str]] = [
    ("cosine_with_min_lr", None, "set train.extra.lr_scheduler_kwargs={min_lr_rate: …}"),
    ("cosine_with_min_lr", {"min_lr": 1e-5, "min_lr_rate": 0.1}, "min_lr and min_lr_rate are both set; choose one"),
    ("cosine_with_min_lr", {"min_lr": 1e-2}, "min_lr=0.01 is not below the learning rate, 0.001"),
    ("polynomial", {"lr_end": 1e-3}, "lr_end=0.001 is not below the learning rate, 0.001"),
    ("warmup_stable_decay", None, "={num_decay_steps: …}"),
    ("warmup_stable_decay", {"num_decay_steps": 9, "decay_type": "sqrt"}, SHAPE),
    ("warmup_stable_decay", {"num_decay_steps": 0.1}, "num_decay_steps must be a whole number, not 0.1"),
    ("cosine", {"min_lr": 1}, "cosine has no min_lr; it has num_cycles"),
    ("constant", {"num_cycles": 1}, "constant has no num_cycles; it has none"),
    ("reduce_lr_on_plateau", {"patients": 3}, "has no patients; it has cooldown, eps, factor, min_lr, patience, thr"),
    ("reduce_lr_on_plateau", {"mode": "max"}, "mode is that of train.greater_is_better"),
    ("reduce_lr_on_plateau", {"threshold_mode": "x"}, "threshold_mode is one of rel, abs"),
    ("greedy", {"max_lr": 1e-2}, "greedy needs options: set train.extra.lr_scheduler_kwargs={min_lr: …}"),
    ("greedy", {"min_lr": 1e-5, "optimizer": 3}, "greedy has no optimizer; it has cooldown, eps"),
]


@pytest.mark.parametrize(("name", "options", "message"), SCHEDULES)
def test_options_of_schedules(name: str, options: dict[str, Any] | None, message: str) -> None:
    assert [message in problem for problem in said(name, options)] == [True]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cosine", None), ("cosine", {"num_cycles": 0.5}), ("cosine_with_restarts", {"num_cycles": 2}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}), ("cosine_warmup_with_min_lr", {"min_lr": 1e-5}),
        ("polynomial", {"lr_end": 1e-6}), ("inverse_sqrt", {"timescale": None}),
        ("warmup_stable_decay", {"num_decay_steps": 30, "decay_type": "1-sqrt"}),
        ("reduce_lr_on_plateau", {"patience": 2, "factor": 0.5}), ("greedy", {"min_lr": 1e-6, "patience": 2}),
    ],
)  # fmt: skip
def test_options_that_schedules_have(name: str, options: dict[str, Any] | None) -> None:
    assert said(name, options) == []


def test_schedules_without_a_warm_up() -> None:
    """Of all that Transformers has; the default is no wish of the user's."""
    for name in enum_values("SchedulerType"):
        found = [one for one in said(name, warmup_steps=50) if "warmup_steps has no effect" in one]
        assert bool(found) == (name in ("constant", *BY_METRIC)), name
    assert "take constant_with_warmup" in said("constant", warmup_steps=50)[0]
    assert said("constant", warmup_steps=0) == said("constant") == []


@pytest.mark.parametrize("name", BY_METRIC)
def test_schedules_that_follow_a_metric(name: str) -> None:
    words = [f"train.lr_scheduler_type={name}", "train.extra.lr_scheduler_kwargs={min_lr: 1e-6}"]
    with pytest.raises(UserError, match=f"lr_scheduler_type={name} needs a metric: set train.metric_for_best_model"):
        compose_config("lora_sft", words)
    measured = ["train.eval_steps=1", "train.metric_for_best_model=held_out_loss"]
    with pytest.raises(UserError, match="nothing is measured during its second training"):
        compose_config("tune_to_int4", [*words, *measured])
