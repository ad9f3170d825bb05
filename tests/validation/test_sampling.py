"""Orders of the rows that would have no effect are refused before anything is loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gemma_tune.cli.compose import compose_config
from gemma_tune.config import Config
from gemma_tune.errors import UserError
from gemma_tune.validation.sampling import sampling_problems

BY_BEGINNING = "train.train_sampling_strategy=group_by_beginning"


@pytest.fixture(scope="module")
def cfg() -> Config:
    return compose_config("qlora_sft", [BY_BEGINNING, "train.gradient_accumulation_steps=2"])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data.streaming", True, "has no effect on a stream"),
        ("train.packing", True, "has no effect on packed rows"),
        ("train.per_device_train_batch_size", 1, "would save nothing: train.per_device_train_batch_size=1"),
        ("train.compact_batches", False, "would save nothing: train.compact_batches=false"),
        ("train.loss", "mine.py:loss", "would save nothing: with train.loss"),
        ("train.extra", {"label_smoothing_factor": 0.1}, "would save nothing: with train.extra.label_smoothing_factor"),
        ("train.extra", {"neftune_noise_alpha": 5}, "would save nothing: with train.extra.neftune_noise_alpha"),
        ("model.attn_implementation", "sdpa", "would save nothing: model.attn_implementation=sdpa"),
        ("adapter.lora_dropout", 0.1, "would save nothing: with adapter.lora_dropout"),
    ],
)
def test_nothing_would_be_saved(key: str, value: object, said: str, cfg: Config) -> None:
    group, name = key.split(".")
    changed = replace(cfg, **{group: replace(getattr(cfg, group), **{name: value})})  # type: ignore[arg-type]
    assert [said in problem for problem in sampling_problems(changed)] == [True]


def test_where_it_may_save(cfg: Config) -> None:
    by_document = replace(cfg, model=replace(cfg.model, attn_implementation="by_document"))
    assert not [*sampling_problems(cfg), *sampling_problems(by_document)]


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("qat", "would save nothing: recipe=qat"),
        ("tune_to_int4", "would save nothing: the second training of recipe=tune_to_int4"),
        ("dpo", "has no effect with recipe=dpo"),
    ],
)
def test_recipes_that_compute_whole_rows(recipe: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose_config(recipe, [BY_BEGINNING])
