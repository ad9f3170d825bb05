"""Exports a model on its grid: every format is written from the same codes, read back, and run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gemma_tune.config import Config
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.engines.vllm_server import find_vllm
from gemma_tune.export import merged_from_grid, mlx_folder, phone, w4a16
from gemma_tune.export.engine_lines import POSITIONS
from gemma_tune.export.gguf_files import ONE_TYPE, one_type_lines, title_of, write_gguf
from gemma_tune.export.int4_check import OK, UNVERIFIED, WARN, CheckLine, forward_line, raise_failed, stored_lines
from gemma_tune.export.llama_check import llama_lines
from gemma_tune.export.mlx_check import folder_lines
from gemma_tune.export.mmproj_files import ExportedTowers, exported_towers, mmproj_lines
from gemma_tune.export.model_on_grid import FolderWriter, ModelOnGrid
from gemma_tune.export.read_back import read_folder
from gemma_tune.export.read_gguf import read_gguf
from gemma_tune.export.tensors import decoded_tensors, trained_tensors
from gemma_tune.export.transformers_check import TrainedForward, transformers_lines
from gemma_tune.export.vllm_check import vllm_lines
from gemma_tune.models.source import Source
from gemma_tune.progress import phase
from gemma_tune.quant.plan import Plan
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import atomic_folder, gguf_models

NOT_IN_TRANSFORMERS = CheckLine(
    "w4a16 in Transformers",
    "the trained model's logits",
    "not loaded",
    UNVERIFIED,
    "Transformers has no place for the codes of single experts, as vLLM reads them; w4a16_transformers is for it.",
)
_LONGEST = 512  # tokens of a row that are compared
_FOLDERS: dict[str, FolderWriter] = {  # which Transformers loads
    "merged": merged_from_grid.export,
    "w4a16": w4a16.export,
    "w4a16_transformers": w4a16.export_dense_experts,
    "phone": phone.export,
}
_WRITERS: dict[str, FolderWriter] = {**_FOLDERS, "mlx": mlx_folder.export}


def export_all(
    cfg: Config,
    folder: RunFolder,
    model: Any,
    tokenizer: Any,
    source: Source,
    plan: Plan,
    rows: Sequence[TokenizedRows],
) -> list[CheckLine]:
    """Writes every one of `export.formats`, and checks it.

    Args:
        cfg: `export`.
        folder: The run folder; its result gets the artifacts, and the lines as `metrics.verify`.
        model: The trained model, or a PeftModel around it.
        tokenizer: Its tokenizer.
        source: What the model was loaded from.
        plan: The plan of its grid.
        rows: Held-out rows, then rows to take where there are too few of those.

    Returns:
        The lines of the check.

    Raises:
        ArtifactDiffers: A line failed; the artifacts stay, and the result says that the run failed.
    """
    formats = cfg.export.formats
    if not formats:
        return []
    trained = trained_tensors(model, plan)
    given = ModelOnGrid(model, plan, trained, tokenizer, source)
    forward = TrainedForward(model, some_rows(rows, model))
    towers = exported_towers(cfg, source, tokenizer, model, rows)
    lines = [forward_line(model, trained, plan)]
    for name in formats:
        phase(f"writing {name}")
        with folder.timed("export"), atomic_folder(folder.export(name)) as written:
            if name.startswith("gguf"):
                types = ONE_TYPE.get(name, plan)
                weights = decoded_tensors(trained, plan) if name in ONE_TYPE else trained
                title = title_of(cfg.model.model_name_or_path)
                write_gguf(name, title, written, model, tokenizer, weights, types, towers)
            else:
                _WRITERS[name](given, written, cfg.export)
        folder.result.artifacts[name] = f"export/{name}"
    logits = folder.path / "export" / ".logits"
    phase(f"checking: the model's own forward pass at {forward.positions} positions")
    with folder.timed("verify"), forward.stored_in(logits):
        places = {name: folder.export(name) for name in formats}
        lines += _checked(places, logits, forward, given, towers)
        if vllm := find_vllm(cfg.engine):
            served = {name: str(place) for name, place in places.items() if name in ("merged", "w4a16")}
            same = places.get("w4a16_transformers") or places.get("merged") if plan.has_experts else None
            lines += vllm_lines(cfg, vllm, served, forward, tokenizer, same={"w4a16": str(same)} if same else None)
    folder.result.metrics["verify"] = [asdict(line) for line in lines]
    raise_failed(lines)
    return lines


def _checked(
    places: Mapping[str, Path],
    logits: Path,
    forward: TrainedForward,
    given: ModelOnGrid,
    towers: ExportedTowers | None,
) -> Iterator[CheckLine]:
    """The lines of each format, by the folder that it was written into: read back, then run."""
    plan, trained, tokenizer = given.plan, given.trained, given.tokenizer
    unread = ("w4a16",) if plan.has_experts else ()
    folders = {n: p for n, p in places.items() if n in _FOLDERS and n not in unread}
    in_transformers = transformers_lines(folders, logits, forward)
    for name, place in places.items():
        phase(f"checking {name}: its weights" + ("" if name in _FOLDERS else f", then in {_engine(name)}"))
        if name in _FOLDERS:
            stored = phone.read_phone(place) if name == "phone" else read_folder(place)
            yield from stored_lines(name, stored, trained, plan)
            yield from [phone.activations_line(name, place, forward.model)] if name == "phone" else []
            yield NOT_IN_TRANSFORMERS if name in unread else in_transformers.pop(0)
        elif name == "mlx":
            yield from folder_lines(name, place, logits, forward, trained, plan)
        elif name in ONE_TYPE:
            yield from one_type_lines(name, place, forward, tokenizer, trained, plan, towers)
        else:
            file = gguf_models(place)[0]
            stored = read_gguf(file, forward.model.config.get_text_config())
            yield from stored_lines(name, stored, trained, plan)
            yield from llama_lines(file, forward, tokenizer, trained, plan)
            yield from mmproj_lines(name, file, towers, forward, tokenizer)


def _engine(name: str) -> str:
    return "mlx-lm" if name == "mlx" else "llama.cpp"


def some_rows(parts: Sequence[TokenizedRows], model: Any) -> list[list[int]]:
    """Rows of together as many positions as the check needs, the held-out ones first; engines have room for a few more.

    They are not cut shorter to save time: an engine that computes a sliding window wrong shows it in long rows alone.
    """
    longest = min(_LONGEST, model.config.get_text_config().max_position_embeddings - 8)
    found: list[list[int]] = []
    for row in (row for part in parts for row in part.rendered):
        if sum(map(len, found)) >= POSITIONS:
            break
        found.append(row.without_media[:longest])
    return found


def say_lines(lines: Sequence[CheckLine]) -> None:
    """Prints the table of the check, if anything was exported."""
    if not lines:
        return
    table = Table(title="Exported files compared with the trained model", title_justify="left")
    for name in ("", "must", "found", ""):
        table.add_column(name)
    for line in lines:
        mark = {OK: "✓", WARN: "!", UNVERIFIED: "?"}.get(line.verdict, "✗")
        table.add_row(line.name, line.must, line.found, mark)
    Console(highlight=False).print(table)
    for line in lines:
        if line.problem:
            print(f"{line.name}: {line.verdict}: {line.problem}", file=sys.stderr)
