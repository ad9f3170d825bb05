"""Options of TRL's trainers that are known by name here: what is set elsewhere, which values exist, what needs what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemma_tune.config import TrainConfig
from gemma_tune.config.methods import Method

# Options of the trainer that a key of ours already sets, or that a user may not set.
DECIDED = {
    "load_best_model_at_end": "set train.metric_for_best_model",
    "restore_callback_states_from_checkpoint": "it is set where train.early_stopping_patience is",
    "output_dir": "set output_dir (without train.)",
    "seed": "set seed (without train.)",
    "data_seed": "set seed (without train.)",
    "run_name": "set tracker.name",
    "project": "set tracker.project",
    "report_to": "choose tracker=wandb, tensorboard, mlflow, trackio or none",
    **dict.fromkeys(
        ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "choose tracker=trackio and set the keys of tracker",
    ),
    "use_cpu": "set model.device=cpu",
    "fp16": "float16 overflows on Gemma; leave it out (train.bf16 for mixed precision)",
    "fp16_full_eval": "float16 overflows on Gemma; leave it out",
    "logging_nan_inf_filter": "it hides NaN losses and is always off here",
    "save_strategy": "set train.save_steps",
    "save_only_model": "a checkpoint is there to go on from; exports hold the weights alone",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint here without it",
    "eval_strategy": "set train.eval_steps",
    **dict.fromkeys(
        (
            "bf16_full_eval", "prediction_loss_only", "eval_accumulation_steps", "eval_do_concat_batches",
            "eval_use_gather_object", "eval_packing", "include_for_metrics", "batch_eval_metrics",
            "num_generations_eval",
        ),
        "what is measured during training is chosen by eval",
    ),
    "logging_strategy": "set train.logging_steps",
    "auto_find_batch_size": (
        "memory is estimated before training; set train.per_device_train_batch_size and "
        "train.gradient_accumulation_steps"
    ),
    "activation_checkpointing": "set train.gradient_checkpointing",
    "activation_checkpointing_kwargs": "set train.extra.gradient_checkpointing_kwargs",
    **dict.fromkeys(("fsdp", "fsdp_config", "parallelism_config"), "set parallel=fsdp2 and the keys of parallel"),
    "deepspeed": "DeepSpeed is not supported; set parallel=fsdp2, which shares the model among the processes",
    "model_init_kwargs": "set the keys of model",
    "reward_weights": "set the weights of reward",
    "chat_template_kwargs": "prompts are rendered before the trainer sees them",
    **dict.fromkeys(
        (
            "log_completions", "num_completions_to_print", "log_unique_prompts", "log_multimodal",
            "log_completions_hub_repo",
        ),
        "completions are kept in eval/completions.jsonl",
    ),
    "max_tool_calling_iterations": "completions call no tools",
    "use_transformers_paged": "set train.extra.use_transformers_continuous_batching",
    "generation_batch_size": "set train.steps_per_generation",
    **dict.fromkeys(
        ("ref_model", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
        "the reference is the initial model",
    ),
    "precompute_ref_log_probs": "its log-probabilities are always computed before training",
    "precompute_ref_batch_size": "it is train.per_device_train_batch_size",
    "truncation_mode": "answers are truncated at their end",
    "dataset_text_field": "set data.text_column",
    **dict.fromkeys(
        ("dataset_kwargs", "dataset_num_proc"), "rows are rendered and masked before the trainer sees them"
    ),
    "length_column_name": "the length of a row is its number of tokens",
    **dict.fromkeys(("completion_only_loss", "assistant_only_loss"), "the mask is made from the conversation's roles"),
    "chat_template_path": "the template is Gemma's own",
    "eos_token": "the stop token is Gemma's <end_of_turn>",
    "pad_token": "the padding token is the tokenizer's own",
    "disable_tqdm": "the progress bar is ours",
    "remove_unused_columns": "the columns are ours",
    "do_train": "choose a recipe",
    "do_eval": "choose eval=default or eval=none",
    "do_predict": "choose a recipe",
    "hub_token": "it would stand in config.yaml; log in with `hf auth login`",
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_revision", "hub_always_push"),
        "recipe=push uploads when you have looked at it",
    ),
    "padding_free": "set train.packing",
    "packing_strategy": "rows are kept whole (bfd), and longer ones are cut at train.max_length",
    "torch_compile_backend": "set train.torch_compile; its backend is inductor",
    "torch_compile_mode": "set train.torch_compile; it has one mode",
}  # fmt: skip

# Losses by TRL's dataclass; several of DPO's can be joined by `+`. `sft` is the plain loss of the chosen answer.
LOSSES = {
    "SFTConfig": ("nll", "dft", "chunked_nll"),
    "GRPOConfig": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "DPOConfig": (
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
        "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
    ),
    "KTOConfig": ("kto", "apo_zero_unpaired"),
}  # fmt: skip

# Options whose values TRL and torch look at only when they are used.
VALUES = {
    "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "vllm_model_impl": ("vllm", "transformers"),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
}
# The same of numbers: whether one will do, and what it must be.
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (lambda x: 0 <= x < 1, "at least 0 and below 1")),
    "adam_epsilon": (lambda x: x >= 0, "at least 0"),
    "dataloader_num_workers": (lambda x: x >= 0, "at least 0"),
    "label_smoothing": (lambda x: 0 <= x < 0.5, "at least 0 and below 0.5"),
    "label_smoothing_factor": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "top_k": (lambda x: x >= 0, "at least 0, which samples from all tokens"),
    "top_p": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "min_p": (lambda x: 0 <= x <= 1, "at least 0 and at most 1"),
    "repetition_penalty": (lambda x: x > 0, "above 0"),
}

_SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}
_WITHOUT_ARGS = (
    "adamw_torch", "adamw_torch_fused", "adafactor", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit",
    "paged_adamw_8bit", "lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit",
)  # fmt: skip
# Options that are read only beside another one: their names, or what these begin with (`…_`), that other one, and
# whether it is set.
NEEDS: tuple[tuple[tuple[str, ...], str, Callable[[TrainConfig], Any]], ...] = (
    (("vllm_",), "train.use_vllm=true", lambda t: t.use_vllm),
    (("sapo_",), "train.loss_type=sapo", lambda t: t.loss_type == "sapo"),
    (("vespo_",), "train.loss_type=vespo", lambda t: t.loss_type == "vespo"),
    (("discopop_tau",), "train.loss_type=discopop", lambda t: "discopop" in t.joined_losses),
    (("label_smoothing",), "train.loss_type=robust, exo_pair or aot", lambda t: _SMOOTHED & {*t.joined_losses}),
    (
        ("f_alpha_divergence_coef",),
        "train.extra.f_divergence_type=alpha_divergence",
        lambda t: t.extra.get("f_divergence_type") == "alpha_divergence",
    ),
    (
        ("entropy_coef_", "entropy_target"),
        "train.extra.use_adaptive_entropy=true",
        lambda t: t.extra.get("use_adaptive_entropy"),
    ),
    (
        ("dataloader_persistent_workers", "dataloader_multiprocessing_context", "dataloader_prefetch_factor"),
        "train.extra.dataloader_num_workers=1 or more",
        lambda t: t.extra.get("dataloader_num_workers"),
    ),
    (("liger_kernel_config",), "train.extra.use_liger_kernel=true", lambda t: t.extra.get("use_liger_kernel")),
    (
        ("transformers_continuous_batching_config",),
        "train.extra.use_transformers_continuous_batching=true",
        lambda t: t.extra.get("use_transformers_continuous_batching"),
    ),
    (
        ("optim_args",),
        "an optimizer that reads it (train.optim=sgd, for example)",
        lambda t: t.optim not in _WITHOUT_ARGS,
    ),
    (
        ("optim_target_modules",),
        "an optimizer that reads it (train.optim=galore_adamw, for example)",
        lambda t: t.optim.startswith(("galore", "apollo")),
    ),
)

# Keys in `train` that are not options of TRL.
OURS = (
    "extra", "loss", "early_stopping_patience", "early_stopping_threshold", "max_time", "resume_data_changed",
    "towers_learning_rate", "tiled_head", "compact_batches", "profile", "prefix_caching",
    "skip_zero_advantages", "keep_freed_memory",
)  # fmt: skip


def distils(method: Method) -> bool:
    """Whether the loss of its only training is made of a teacher's probabilities."""
    return method.quantizes and not method.stages


def _scores(method: Method) -> bool:
    """Whether TRL asks for log-probabilities of tokens, which our forward pass gives."""
    return not method.classifies and not distils(method)


# Keys of ours that some methods have no use for, and which have.
USED_BY: dict[str, Callable[[Method], bool]] = {
    "prefix_caching": lambda method: method.rewarded,
    "skip_zero_advantages": lambda method: method.rewarded,
    "tiled_head": _scores,
    "compact_batches": _scores,
}
