"""Checks of `reward=…`, and of training with rewards."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator

from gemma_tune.config import Config, RewardConfig
from gemma_tune.config.data import LABELLED
from gemma_tune.config.eval import lower_is_better
from gemma_tune.config.methods import Kind, Reads
from gemma_tune.config.reward import REWARDS
from gemma_tune.validation.paths import missing_paths
from gemma_tune.validation.processes import processes_of
from gemma_tune.validation.suggest import did_you_mean


def reward_problems(cfg: Config) -> Iterator[str]:
    """Problems of the rewards, and rewards that are set where nothing uses them."""
    r = cfg.reward
    used = r.weighted()
    if not (cfg.traits.rewarded or "rewards" in cfg.eval.evaluators):
        if r != RewardConfig():
            yield (
                f"reward has no effect with recipe={cfg.recipe}; use recipe=grpo, add rewards to eval.evaluators, or "
                "leave it out."
            )
        return
    if not used:
        yield "reward: no reward has a weight; choose one, for example reward=math, or set reward.math.weight=1."
    if "rewards" in cfg.eval.evaluators and not any(cfg.data.test_files.values()) and not cfg.data.generator:
        yield (
            "eval.evaluators=[rewards] answers the rows of data.test_files, and none is named: set "
            "data.test_files.test=my_test.jsonl, or, to measure nothing, eval=none."
        )
    for name in REWARDS:
        options = getattr(r, name)
        if not options.weight and options != type(options)():
            yield f"reward.{name} has no effect without a weight: set reward.{name}.weight, or leave it out."
    for name, reference in r.functions.items():
        file, _, function = reference.rpartition(":")
        if name in (*REWARDS, "stopped", "rows") or lower_is_better(name) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            yield (
                f"reward.functions.{name}: choose another name, of small letters, digits and _; not "
                f"{', '.join(REWARDS)}, stopped or rows, and none that ends as a loss does."
            )
        elif not file or not function:
            yield f"reward.functions.{name}={reference}: write path/to/file.py:function."
    for name in r.weights:
        if name in REWARDS:
            yield f"reward.weights.{name}: set reward.{name}.weight."
        elif name not in r.functions:
            yield f"reward.weights.{name}: there is no reward.functions.{name}.{did_you_mean(name, list(r.functions))}"
    if r.model.weight and not r.model.model_name_or_path:
        yield "reward.model.model_name_or_path is not set: name a run of recipe=reward_model, or a checkpoint."
    yield from missing_paths(cfg, "reward")
    if r.format.weight and r.format.form == "thinking" and not cfg.data.enable_thinking:
        yield "reward.format.form=thinking: no prompt asks the model to think; set data.enable_thinking=true, too."
    known = ("boxed", "answer", "hashes", "plain")
    for form in r.math.formats:
        if form not in known:
            yield f"reward.math.formats: there is no {form}; there are {', '.join(known)}.{did_you_mean(form, known)}"


def rl_problems(cfg: Config) -> Iterator[str]:
    """What training with rewards can't do."""
    t, d = cfg.train, cfg.data
    completions = t.passes_per_generation * (t.per_device_train_batch_size or t.num_generations) * processes_of(cfg)
    if completions % t.num_generations:
        yield (
            f"train.num_generations={t.num_generations}: a generation has {completions} completions "
            "(per_device_train_batch_size times steps_per_generation, of all processes), which is no multiple of it."
        )
    passes, accumulated = t.passes_per_generation * t.num_iterations, t.gradient_accumulation_steps
    if passes % accumulated and accumulated % passes:
        yield (
            f"train.gradient_accumulation_steps={accumulated}: a generation is used for {passes} passes "
            "(steps_per_generation times num_iterations), and one must be a multiple of the other."
        )
    period = t.generation_period
    kept = {"save_steps": t.save_steps, "eval_steps": t.eval_steps if t.metric_for_best_model else None}
    for key, steps in kept.items():
        if steps and steps % period:
            yield (
                f"train.{key}={steps}: completions are written every {period} steps, and a run can only be resumed "
                f"exactly there; choose a multiple of {period}: {period}, {2 * period}, {3 * period}, …"
            )
    if t.use_vllm and importlib.util.find_spec("vllm") is None:
        yield "train.use_vllm=true: vLLM is not installed; pip install 'trl[vllm]', or leave it out."
    if t.use_vllm and cfg.model.load_in_4bit:
        yield "train.use_vllm=true with model.load_in_4bit=true: vLLM can't take 4-bit weights over; leave one out."
    if t.train_sampling_strategy != "random":
        yield f"train.train_sampling_strategy has no effect with recipe={cfg.recipe}; leave it out."
    if t.extra.get("neftune_noise_alpha"):
        yield (
            f"train.extra.neftune_noise_alpha with recipe={cfg.recipe}: completions would be written with the "
            "noise, too; it is for SFT."
        )
    if d.streaming:
        yield f"data.streaming=true has no effect with recipe={cfg.recipe}, which reads all prompts; leave it out."
    if d.generator and t.max_steps < 1 and not d.max_train_samples:
        yield "data.generator has no end: set train.max_steps."
    for key in ("validation_file", "validation_split", "validation_split_percentage"):
        if getattr(d, key):
            yield f"data.{key} has no effect with recipe={cfg.recipe}: held-out rows are those of data.test_files."
    if t.vllm_mode != "colocate" and not t.use_vllm:
        yield "train.vllm_mode has no effect without train.use_vllm=true; set it, too, or leave this out."


def no_generator(cfg: Config) -> Iterator[str]:
    """Generated tasks have bare answers, which a model should not learn to imitate: they are for rewards."""
    if cfg.data.generator and not cfg.traits.answers_prompts:
        yield f"data.generator={cfg.data.generator} with recipe={cfg.recipe}: its tasks are for rewards (recipe=grpo)."


def preference_problems(cfg: Config) -> Iterator[str]:
    """What training on preferences can't do."""
    t = cfg.train
    if cfg.data.streaming:
        yield f"data.streaming=true has no effect with recipe={cfg.recipe}, which reads all pairs; leave it out."
    if t.train_sampling_strategy != "random":
        yield f"train.train_sampling_strategy has no effect with recipe={cfg.recipe}; leave it out."
    if cfg.traits.reference and t.beta == 0 and t.loss_type != "sft":
        yield "train.beta=0: the loss wouldn't depend on the answers; leave it out (TRL's default is 0.1), or raise it."
    if cfg.traits.reads is Reads.LABELLED and t.per_device_train_batch_size == 1 and t.loss_type in (None, "kto"):
        yield (
            "train.per_device_train_batch_size=1: KTO's KL reference point comes from answers to other prompts of the "
            "same batch; set it to 2 or more (8 is better), or train.loss_type=apo_zero_unpaired, which has none."
        )
    if cfg.model.load_in_4bit and not cfg.traits.four_bit:
        yield "model.load_in_4bit=true with recipe=reward_model: its head is no 4-bit layer; leave it out."
    if cfg.eval.evaluators and not cfg.traits.evaluators:
        yield "eval.evaluators has no effect with recipe=reward_model, which scores the held-out pairs; leave it out."


# Evaluators that don't take the rows' answers for good ones.
_OF_LABELS = ("preference", "kl", "lm_eval", "long_context", "tool_calls")


def label_problems(cfg: Config) -> Iterator[str]:
    """Rows with bad answers, where every answer would be taken for a good one."""
    if cfg.data.format != LABELLED:
        return
    m, e = cfg.traits, cfg.eval
    if m.reads is not Reads.LABELLED and m.kind is not Kind.PREVIEW and not m.measures:
        yield (
            f"data={LABELLED} with recipe={cfg.recipe}: it would take bad answers (label: false) for good ones; use "
            "recipe=kto, or keep the rows with label: true in a file of prompt and completion."
        )
        return
    for name in dict.fromkeys([*e.evaluators, *(e.during_training if cfg.train.eval_steps else ())]):
        if (m.trains or m.measures) and name not in _OF_LABELS and ":" not in name:
            yield (
                f"eval.evaluators: {name} would take bad answers (label: false) for good ones; with data={LABELLED} "
                "use eval.evaluators=[preference]."
            )
