"""Which figure decides on the best step: what its name says, and mistakes that are seen before anything is measured."""

from __future__ import annotations

import math

import pytest
from transformers import TrainerState

from gemma_tune.cli.compose import compose_config
from gemma_tune.config import TrainConfig
from gemma_tune.errors import RunError, UserError
from gemma_tune.train.best import TrainingEnd, greater_is_better, why_not_best

pytestmark = pytest.mark.slow  # `make test-slow`: together they take minutes


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("held_out_loss", False), ("perplexity", False), ("mean_kl", False), ("test_exact_match", True),
        ("top1_agreement", True), ("loss_free_answers", True), ("own_text_bits_per_byte", False),
        ("own_choose_brier_score", False), ("own_text_word_perplexity", False), ("floss", True), ("loss", False),
    ],
)  # fmt: skip
def test_what_is_better(metric: str, greater: bool) -> None:
    assert greater_is_better(TrainConfig(metric_for_best_model=metric)) is greater
    assert greater_is_better(TrainConfig(metric_for_best_model=metric, greater_is_better=not greater)) is not greater


def test_why_a_step_is_not_the_best() -> None:
    assert why_not_best("f1", {"f1": 0.0, "loss": math.nan}, 4, known=False) is None
    for value in (math.nan, math.inf, -math.inf):
        assert f"it is {value}" in str(why_not_best("f1", {"f1": value}, 4, known=False))
    assert "did not give it" in str(why_not_best("f1", {}, 4, known=True))
    with pytest.raises(RunError, match=r"f1: the evaluation at step 4 gave no such metric; it gave: none\."):
        why_not_best("f1", {}, 4, known=False)


def test_how_a_training_ended() -> None:
    state = TrainerState(global_step=30, max_steps=100, best_global_step=20, best_metric=0.5)
    train = TrainConfig(metric_for_best_model="f1", early_stopping_patience=2)
    ending = TrainingEnd.of(train, state)
    assert (ending.steps, ending.kept) == (30, 20)
    assert ending.figures["stopped_early"] is True
    assert ending.lines == [
        "Training stopped early, after 30 of 100 steps: 2 evaluations in a row brought no better f1",
        "The weights are those of step 20 of 30, the best by f1 (0.5)",
    ]
    state.global_step = 100
    assert TrainingEnd.of(train, state).figures["stopped_early"] is False
    assert TrainingEnd.of(TrainConfig(), state) == TrainingEnd(100, 100, {"steps": 100}, [])


ANSWERS = "eval.during_training=[held_out_loss,answers]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.metric_for_best_model=held_out_loss"], "nothing is measured during training; set train.eval_steps"),
        (["train.eval_steps=1", "train.metric_for_best_model=held_out_los"], "Did you mean held_out_loss"),
        (["train.eval_steps=1", "train.metric_for_best_model=eval_loss"], "they give held_out_loss, perplexity. Did"),
        (
            ["train.eval_steps=1", "train.metric_for_best_model=test_exact_match"],
            r"is measured by answers: .*eval\.during_training=\[held_out_loss,answers\]",
        ),
        (["train.eval_steps=1", ANSWERS, "train.metric_for_best_model=exact_match"], "Did you mean test_exact_match"),
        (
            [
                "train.eval_steps=1",
                ANSWERS,
                "train.metric_for_best_model=test_exact_match",
                "eval.answers.match=number",
            ],
            "test_number",
        ),
        (
            [
                "train.eval_steps=1",
                ANSWERS,
                "train.metric_for_best_model=test_exact_match",
                "data.test_files.test=null",
            ],
            "they give held_out_loss, perplexity, new_phrasings_exact_match, new_phrasings_stopped",
        ),
        (["train.early_stopping_patience=2"], "early_stopping_patience has no effect without"),
        (["train.early_stopping_threshold=0.1"], "early_stopping_threshold has no effect without"),
        (["train.greater_is_better=true"], "greater_is_better has no effect without"),
        (
            ["train.eval_steps=1", "train.metric_for_best_model=perplexity", "train.early_stopping_threshold=0.1"],
            "no effect without train.early_stopping_patience",
        ),
        (["train.early_stopping_patience=0"], "early_stopping_patience"),
        (["train.lr_scheduler_type=reduce_lr_on_plateau"], "needs a metric"),
        (["train.extra.metric_for_best_model=loss"], "set train.metric_for_best_model"),
        (["train.extra.greater_is_better=true"], "set train.greater_is_better"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_config("lora_sft", words)


@pytest.mark.parametrize(
    "words",
    [
        ["train.metric_for_best_model=perplexity", "train.early_stopping_patience=3"],
        [ANSWERS, "train.metric_for_best_model=new_phrasings_exact_match"],
        ["eval.during_training=[kl]", "eval.kl.reference=owner/name", "train.metric_for_best_model=mean_kl"],
    ],
)
def test_figures_that_are_there_or_may_be(words: list[str]) -> None:
    """What another evaluator than our two gives can't be told before."""
    assert compose_config("lora_sft", ["train.eval_steps=1", *words]).train.metric_for_best_model
