"""Hands a checked configuration to its recipe."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from gemma_tune.cli.own_code import check_own_code, in_own_recipe, load_recipe
from gemma_tune.compare.named_models import check_compared
from gemma_tune.config import Config
from gemma_tune.config.methods import Kind, Reads
from gemma_tune.data.prompts import check_prompts
from gemma_tune.data.reading import check_first_rows
from gemma_tune.engines.vllm_server import find_vllm
from gemma_tune.errors import RunError, UserError
from gemma_tune.launching.place import too_few_gpus
from gemma_tune.launching.start import started
from gemma_tune.models.chat_template import check_template
from gemma_tune.models.hub import check_can_be_had, is_of_hub, set_offline_mode
from gemma_tune.models.known import check_known
from gemma_tune.models.source import find_source
from gemma_tune.models.towers.image_packages import check_torchvision
from gemma_tune.nested import leaves
from gemma_tune.process_failures import Left, check_same, quiet, watch
from gemma_tune.processes import from_main, is_main_process, join, was_started
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.result import RunResult
from gemma_tune.run.stopping import Stopped
from gemma_tune.validation.measuring import needs_rows


def quiet_libraries() -> None:
    """Settings that libraries read when they are imported: no usage telemetry, no stray chatter."""
    # TRL reports usage unless told not to; Transformers' and datasets' bars would run beside ours.
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # PyTorch's matrix products repeat to the last digit on a GPU only with this set beforehand.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # At import, without the optional package `kernels`: its own fallback computes the same.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


_WITHOUT_TRANSFORMERS = (Kind.COPY, Kind.DOCTOR, Kind.PUSH)
_OF_ACCELERATE = ("ACCELERATE_", "FSDP_")  # its variables begin so
# Warnings of libraries at what is meant so here, or refused in a message of our own.
_OURS_TO_SAY = (
    "You passed `quantization_config`",  # of an int4 folder that is measured: its own is taken
    "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter",  # used unmerged, else refused
    "The following (rank|alpha)_pattern keys did not match",
)


def run_recipe(cfg: Config, words: Sequence[str] | None = None) -> RunResult:
    """Runs the recipe's method, here or in processes that it starts; torch is imported here and not before.

    Args:
        cfg: The checked configuration.
        words: The words of the command, which the job of a cluster repeats; None where the run has none of its own.
    """
    check_inputs(cfg)
    if (result := started(cfg, words)) is not None:
        return result
    with warnings.catch_warnings():
        # Libraries telling each other about names of their next versions; nothing a user could act on.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|torch|accelerate)\b")
        for said in _OURS_TO_SAY:
            warnings.filterwarnings("ignore", message=said)
        with quiet():
            return _run_method(cfg)


def check_inputs(cfg: Config) -> None:
    """What can be known of model, template, rewards and rows without torch.

    Raises:
        UserError: What can't be used.
    """
    quiet_libraries()
    check_known(cfg)
    if cfg.traits.reads is not Reads.NOTHING:
        set_offline_mode(cfg)
    check_template(cfg.model)
    find_vllm(cfg.engine)  # raises where what is named is no program
    if cfg.traits.kind is Kind.CHAT:
        find_source(cfg.model)  # raises where there is no such model, before torch is imported
        check_prompts(cfg.chat, must_talk=not cfg.dry_run)
    elif needs_rows(cfg):
        check_first_rows(cfg.data)
        check_own_code(cfg)


def _join(cfg: Config) -> None:
    """Joins the other processes of the run, where torchrun or launch.num_processes has started several."""
    from gemma_tune.models.hardware import pick_device

    if problems := [*too_few_gpus(cfg)]:
        raise UserError(*problems)
    join(pick_device(cfg.model).type == "cpu", cfg.launch.timeout_minutes)
    watch()
    packages = ("gemma_tune", "torch", "transformers", "trl", "peft", "accelerate")
    asked = {key: value for key, value in asdict(cfg).items() if key not in ("output_dir", "serve")}
    check_same(dict(leaves(asked)) | {f"the version of {name}": metadata.version(name) for name in packages})


def _run_method(cfg: Config) -> RunResult:
    if cfg.dry_run and not is_main_process():
        return RunResult(cfg.recipe, status="dry_run")
    if cfg.traits.kind not in _WITHOUT_TRANSFORMERS:
        check_torchvision()
    if was_started() and not cfg.dry_run:
        _join(cfg)
    folder = from_main(lambda: RunFolder.open(cfg)) if cfg.traits.run_folder else None
    reads = cfg.traits.reads is not Reads.NOTHING
    if reads and not (folder and folder.finished):
        if cfg.traits.kind is Kind.COMPARE:
            remarks = check_compared(cfg.compare)
        else:
            remarks = [find_source(cfg.model, continues=cfg.traits.continues).remark]
        for line in filter(None, remarks):
            print(line, file=sys.stderr)
    if reads and is_of_hub(cfg.model.model_name_or_path) and not cfg.dry_run and not (folder and folder.finished):
        if cfg.traits.trains or cfg.traits.quantizes:
            from gemma_tune.models.estimate.capacity import check_published

            check_published(cfg)
        check_can_be_had(cfg.model)
    if reads:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # one bar a shard; ours shows the long steps
    if cfg.recipe_file is not None:
        recipe: Any = load_recipe(cfg)
    else:  # `recipes/` of a checkout; setuptools maps it to this name (pyproject.toml)
        recipe = importlib.import_module(f"gemma_tune.recipes.{cfg.traits.file}")
    with in_own_recipe(cfg), _own_variables():
        result = _run_in_folder(recipe, cfg, folder) if folder else recipe.run(cfg)
    if not isinstance(result, RunResult):
        given = type(result).__name__
        raise RunError(f"recipe={cfg.recipe_file}: run gave {given}, no RunResult; end it with return folder.result.")
    return result


@contextlib.contextmanager
def _own_variables() -> Iterator[None]:
    """Takes back what accelerate writes into the environment for FSDP: it is no wish of a later run of this process."""
    before = {name: value for name, value in os.environ.items() if name.startswith(_OF_ACCELERATE)}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(_OF_ACCELERATE)]:
            del os.environ[name]
        os.environ.update(before)


def _run_in_folder(recipe: Any, cfg: Config, folder: RunFolder) -> RunResult:
    """What every recipe with a run folder begins with: a finished run is not repeated, a dry run trains nothing.

    Args:
        recipe: A module of `recipes/`; its docstring says what it has.
        cfg: The configuration.
        folder: Its run folder.
    """
    if cfg.dry_run and cfg.traits.trains:
        from gemma_tune.cli.dry_run import dry_run

        return dry_run(cfg, folder, recipe)
    if cfg.dry_run:
        from gemma_tune.cli.dry_run_of_measuring import dry_run_of_measuring

        return dry_run_of_measuring(cfg, folder, recipe)
    if not folder.finished:
        try:
            return recipe.run(cfg, folder)  # type: ignore[no-any-return]
        except Left:
            return folder.result
        except Stopped as stopped:
            if stopped.code:
                raise
            print(f"gemma_tune: the time is up (train.max_time). {stopped}", file=sys.stderr)
            return folder.result
    result = folder.stored_result(of_now=True)
    seen = folder.report if folder.report.is_file() else folder.path
    print(f"This run is done already: see {seen}, or repeat it with overwrite=true.")
    return result


def failures_of(result: RunResult) -> list[str]:
    """What a finished run could not measure: its files are complete, and the exit status is 1."""
    where = f"{result.folder}: " if result.folder else ""
    return [f"{where}{what} failed: {reason}" for what, reason in result.failures.items()]


def run(recipe: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> RunResult:
    """Runs a recipe from Python, as `python -m gemma_tune recipe=… …` does.

    Args:
        recipe: Name of a recipe, for example `qlora_sft`, or the file of your own.
        overrides: `key=value` words, for example `["model=tiny", "train.max_steps=10"]`.
        config_dir: Folder with your own YAML files.

    Returns:
        What `result.json` holds, with the run folder as `folder`.

    Raises:
        UserError: A mistake in the configuration or the data; nothing was trained.
    """
    from gemma_tune.cli.compose import compose_config

    if isinstance(overrides, str):
        raise UserError(f'overrides={overrides!r}: write a list of words, for example ["{overrides}"].')
    flags = [] if config_dir is None else ["--config-dir", str(config_dir)]
    return run_recipe(compose_config(recipe, overrides, config_dir), [f"recipe={recipe}", *overrides, *flags])
