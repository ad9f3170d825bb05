"""Checks of the metric that selects the best step of a training."""

from __future__ import annotations

from collections.abc import Iterator

from gemma_tune.config import Config, TrainConfig
from gemma_tune.config.eval import ON_ANSWERS
from gemma_tune.config.train import BY_METRIC
from gemma_tune.validation.suggest import did_you_mean


def best_problems(cfg: Config) -> Iterator[str]:
    """Problems of the metric that selects the best step, as far as its name is known beforehand."""
    t, e, metric = cfg.train, cfg.eval, cfg.train.metric_for_best_model
    if metric is None:
        for key in ("greater_is_better", "early_stopping_patience", "early_stopping_threshold"):
            if getattr(t, key) != getattr(TrainConfig(), key):
                yield f"train.{key} has no effect without train.metric_for_best_model; set it, too, or leave this out."
        if t.lr_scheduler_type in BY_METRIC:
            yield f"train.lr_scheduler_type={t.lr_scheduler_type} needs a metric: set train.metric_for_best_model."
        return
    if not t.eval_steps:
        yield f"train.metric_for_best_model={metric}: nothing is measured during training; set train.eval_steps, too."
    if t.early_stopping_threshold and t.early_stopping_patience is None:
        yield "train.early_stopping_threshold has no effect without train.early_stopping_patience; set it, too."
    if not cfg.traits.evaluators:  # its figures are its own
        return
    tests = ["test"] if cfg.data.generator else [name for name, file in cfg.data.test_files.items() if file]
    figures = {
        "held_out_loss": ["held_out_loss", "perplexity"],
        "rewards": [f"{name}_{kind}" for name in tests for kind in (*cfg.reward.weighted(), "stopped")],
        "preference": [
            f"preference_{name}"
            for name in (
                "accuracy",
                "accuracy_per_token",
                "margin",
                "chosen_loss",
                "pairs",
                "auc",
                "desirable_loss",
                "undesirable_loss",
            )
        ],
        **{
            one: [
                f"{name}_{kind}" for name in tests for kind in (e.answers.match if one == "answers" else one, "stopped")
            ]
            for one in ON_ANSWERS
        },
    }
    able = [evaluator for evaluator, names in figures.items() if metric in names]
    if able and not {*able} & {*e.during_training}:
        yield (
            f"train.metric_for_best_model={metric} is measured by {able[0]}: name it in eval.during_training, "
            f"too (eval.during_training=[{','.join([*e.during_training, able[0]])}])."
        )
        return
    given = [name for evaluator in e.during_training for name in figures.get(evaluator, ())]
    if metric not in given and set(e.during_training) <= set(figures):  # other evaluators may give any name
        known = [name for names in figures.values() for name in names]
        yield (
            f"train.metric_for_best_model={metric}: no evaluator of eval.during_training gives it; they give "
            f"{', '.join(given) or 'nothing'}.{did_you_mean(metric, known)}"
        )
