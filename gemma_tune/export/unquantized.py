"""Exports a model that is in no quantization format: a merged folder, GGUF files in one type of ggml, and adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gemma_tune.config import Config
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.engines.vllm_server import find_vllm
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.export import adapter_vllm, gguf_lora, merged, verify
from gemma_tune.export.formats import some_rows
from gemma_tune.export.gguf_files import ONE_TYPE, one_type_lines, title_of, write_gguf
from gemma_tune.export.int4_check import CheckLine, raise_failed
from gemma_tune.export.lora_check import LORA, lora_lines
from gemma_tune.export.mmproj_files import exported_towers
from gemma_tune.export.tensors import float_tensors
from gemma_tune.export.transformers_check import TrainedForward, layers_in_float32
from gemma_tune.export.vllm_check import merged_lines
from gemma_tune.models.adapters.merging import check_merge
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.folders import ADAPTER_VLLM
from gemma_tune.models.four_bit_weights import rounding_gap
from gemma_tune.models.hardware import pick_device
from gemma_tune.models.load import family_of
from gemma_tune.models.source import Source
from gemma_tune.models.unwrap import language_part
from gemma_tune.progress import phase
from gemma_tune.quant.plan import KEPT_32, Plan
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import atomic_folder


def export_unquantized(
    cfg: Config,
    folder: RunFolder,
    model: Any,
    tokenizer: Any,
    source: Source,
    train: TokenizedRows,
    held_out: TokenizedRows,
    measure: Callable[[Any, Any], Evaluation],
    adapter: Path | None,
) -> list[CheckLine]:
    """Writes every one of `export.formats`, and checks it: the merged folder as anyone would load it, the others too.

    Args:
        cfg: `export`, `eval` and the batch size of evaluations.
        folder: The run folder; its result gets the artifacts, and the figures and lines of the checks.
        model: The trained model, or a PeftModel around it.
        tokenizer: Its tokenizer.
        source: What the model was loaded from.
        train: Rows to compare on where there are too few of the others.
        held_out: Held-out rows.
        measure: The run's own evaluation, of a model and its tokenizer.
        adapter: PEFT's folder of the adapter, where it is saved.

    Returns:
        The lines of the checks, without those of the merged folder in Transformers.

    Raises:
        MergeDiffers: The merged weights are another model than the adapter on its base.
        ArtifactDiffers: A file is not the trained model; the artifacts stay, and the result says that the run failed.
    """
    if not cfg.export.formats:
        return []
    phase("checking the merged weights")
    with folder.timed("verify"):
        ids = some_rows([held_out, train], model)
        difference = check_merge(model, ids)
    if "merged" in cfg.export.formats:
        reference = verify.take_reference(cfg, model, tokenizer, train, held_out, measure)
        _export_merged(cfg, folder, model, tokenizer, source, reference, difference)
    lines = _export_gguf(cfg, folder, model, tokenizer, source, ids, [held_out, train], adapter)
    if ADAPTER_VLLM in cfg.export.formats:
        lines.append(_export_for_vllm(folder, model, tokenizer, adapter))
    if "merged" in cfg.export.formats and (vllm := find_vllm(cfg.engine)):
        with folder.timed("verify"):
            kl = folder.result.metrics["export"]["export_kl"]
            lines += merged_lines(cfg, vllm, folder.export("merged"), model, tokenizer, ids, kl)
    if lines:
        folder.result.metrics["verify"] = [asdict(line) for line in lines]
    raise_failed(lines)
    return lines


def _export_merged(
    cfg: Config,
    folder: RunFolder,
    model: Any,
    tokenizer: Any,
    source: Source,
    reference: verify.Reference,
    difference: float | None,
) -> None:
    """Writes export/merged, loads it as anyone would, and compares the two models."""
    phase("exporting: merged, written and checked in Transformers")
    place = folder.export("merged")
    with folder.timed("export"), atomic_folder(place) as target:
        merged.export(model, tokenizer, target, cfg.export, source)
    with folder.timed("verify"):
        figures: dict[str, float | None] = {**verify.verify_merged(place, reference, pick_device(cfg.model))}
    if difference is not None:
        figures["merge_difference"] = difference
    if cfg.model.load_in_4bit:
        stored = CheckpointFiles.of(source, family_of(source))
        figures["four_bit_gap"] = rounding_gap(language_part(model), stored)
    folder.result.metrics["export"] = figures
    folder.result.artifacts["merged"] = "export/merged"


def _export_gguf(
    cfg: Config,
    folder: RunFolder,
    model: Any,
    tokenizer: Any,
    source: Source,
    ids: Sequence[Sequence[int]],
    rows: Sequence[TokenizedRows],
    adapter: Path | None,
) -> list[CheckLine]:
    """Writes the GGUF files, then reads each back and runs it in llama.cpp."""
    formats = [name for name in cfg.export.formats if name in ONE_TYPE or name == LORA]
    if not formats:
        return []
    weights, title = float_tensors(model), title_of(cfg.model.model_name_or_path)
    plan = Plan({}, dict.fromkeys(weights, KEPT_32), {})
    towers = exported_towers(cfg, source, tokenizer, model, rows)
    for name in formats:
        phase(f"writing {name}")
        with folder.timed("export"), atomic_folder(folder.export(name)) as target:
            if name == LORA:
                assert adapter is not None
                gguf_lora.export(adapter, model.config, target / gguf_lora.file_name(title), title)
            else:
                write_gguf(name, title, target, model, tokenizer, weights, ONE_TYPE[name], towers)
        folder.result.artifacts[name] = f"export/{name}"
    forward, logits = TrainedForward(model, ids, layers_in_float32), folder.path / "export" / ".logits"
    lines = list[CheckLine]()
    phase(f"checking: the model's own forward pass at {forward.positions} positions")
    with folder.timed("verify"), forward.stored_in(logits):
        for name in formats:
            phase(f"checking {name}: its weights, then in llama.cpp")
            if name == LORA:
                lines += lora_lines(folder.export(name) / gguf_lora.file_name(title), forward, tokenizer, source)
            else:
                lines += one_type_lines(name, folder.export(name), forward, tokenizer, weights, plan, towers)
    return lines


def _export_for_vllm(folder: RunFolder, model: Any, tokenizer: Any, adapter: Path | None) -> CheckLine:
    """Writes export/adapter_vllm, and reads it back."""
    assert adapter is not None
    phase(f"writing {ADAPTER_VLLM}")
    place = folder.export(ADAPTER_VLLM)
    with folder.timed("export"), atomic_folder(place) as target:
        adapter_vllm.export(adapter, model, tokenizer, target)
    folder.result.artifacts[ADAPTER_VLLM] = f"export/{ADAPTER_VLLM}"
    phase(f"checking {ADAPTER_VLLM}: its weights")
    with folder.timed("verify"):
        return adapter_vllm.added_line(place, model)
