"""GGUF files in a run's export folder: refused beforehand, written with Ollama's Modelfile, and checked afterwards."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from gemma_tune.chat import Unrenderable
from gemma_tune.config import Config
from gemma_tune.errors import UserError
from gemma_tune.export import gguf
from gemma_tune.export.engine_lines import rounded_line
from gemma_tune.export.gguf_lora import check_adapter
from gemma_tune.export.gguf_metadata import check_config
from gemma_tune.export.gguf_tokenizer import GgufVocabulary
from gemma_tune.export.int4_check import CheckLine, stored_lines
from gemma_tune.export.llama_check import amplifies, dense_gguf_line, exact_line_of, gross_line_of, other_arithmetic
from gemma_tune.export.mmproj_files import ExportedTowers, exported_towers, mmproj_lines
from gemma_tune.export.ollama import modelfile
from gemma_tune.export.read_gguf import read_gguf
from gemma_tune.export.tensors import TrainedTensors
from gemma_tune.export.transformers_check import TrainedForward
from gemma_tune.models.adapters.adapter_config import stored_config
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.source import Source
from gemma_tune.quant.plan import Plan
from gemma_tune.run.paths import gguf_models, model_of_run, resolve

# Formats whose files have one type for all tensors but the norms.
ONE_TYPE = {
    "gguf_f32": GGMLQuantizationType.F32,
    "gguf_f16": GGMLQuantizationType.F16,
    "gguf_bf16": GGMLQuantizationType.BF16,
    "gguf_q8_0": GGMLQuantizationType.Q8_0,
}


def title_of(name: str) -> str:
    """The name of a model in its files: that of the checkpoint that its runs began with."""
    path = resolve(name)
    if path.parent.name == "export":
        path = path.parent.parent
    before = model_of_run(path)
    return path.name if before is None else title_of(before)


def check_gguf(cfg: Config, config: Any, tokenizer: Any, source: Source) -> None:
    """Raises UserError where llama.cpp can't compute the model, or hold its tokenizer: where GGUF files are asked for.

    Args:
        cfg: `export`.
        config: The model's configuration.
        tokenizer: Its tokenizer; None: not on this machine.
        source: What it is loaded from: the adapter that a GGUF LoRA file is made of.
    """
    text = config.get_text_config()
    check_config(text)
    if tokenizer is not None:
        GgufVocabulary.of(tokenizer, text.vocab_size)
    if source.folder is not None:
        exported_towers(cfg, source, tokenizer)
    if "gguf_lora" not in cfg.export.formats:
        return
    if source.adapter is not None:
        check_adapter(source.adapter, stored_config(source.adapter))
    elif not cfg.traits.trains:
        raise UserError(
            f"export.formats=gguf_lora: {cfg.model.model_name_or_path} is no adapter on a base that is on this "
            "machine; use gguf_f16 or gguf_q8_0, which hold the whole model."
        )


def write_gguf(
    name: str,
    title: str,
    folder: Path,
    model: Any,
    tokenizer: Any,
    weights: TrainedTensors,
    types: Plan | GGMLQuantizationType,
    towers: ExportedTowers | None = None,
) -> Path:
    """Writes the file of a format, that of its towers, and a Modelfile where Ollama can express the chat template.

    Args:
        name: The format.
        title: The model's name in the files.
        folder: Where to write; it is made.
        model: The trained model: its configuration and generation config.
        tokenizer: The tokenizer with the chat template that the model is served with.
        weights: Every tensor of the language part.
        types: The plan of the codes, or the type of all tensors but the norms.
        towers: What its mmproj file is made of; None: it gets none.

    Returns:
        The file of the language part.

    Raises:
        UserError: As `gguf.export`, and `mmproj.export`.
    """
    folder.mkdir(parents=True)
    config, generation = model.config.get_text_config(), model.generation_config
    kind = types.name if isinstance(types, Plan) else name.removeprefix("gguf_")
    file = folder / f"{title}-{kind}.gguf"
    gguf.export(weights, config, tokenizer, generation, types, file, name=title, media=towers is not None)
    beside = towers.write(folder, title) if towers else None
    with contextlib.suppress(Unrenderable):  # a chat template of the user's that Ollama's language can't express
        mmproj = beside.name if beside else None
        text = modelfile(file.name, tokenizer, generation, config.max_position_embeddings, mmproj)
        (folder / "Modelfile").write_text(text, encoding="utf-8")
    return file


def one_type_lines(
    name: str,
    folder: Path,
    forward: TrainedForward,
    tokenizer: Any,
    trained: TrainedTensors,
    plan: Plan,
    towers: ExportedTowers | None = None,
) -> list[CheckLine]:
    """Reads a file of one type back, and runs it in llama.cpp.

    Args:
        name: The format, one of `ONE_TYPE`.
        folder: Where it was written.
        forward: The trained model on rows of together at least 512 positions.
        tokenizer: Its tokenizer.
        trained: Every tensor of its language part.
        plan: Their plan; without a grid the file may cost what rounding to its type does.
        towers: What the mmproj file beside it was made of.
    """
    kind, file, config = ONE_TYPE[name], gguf_models(folder)[0], forward.model.config.get_text_config()
    types = partial(gguf.tensor_type, FAMILIES[config.model_type], types=kind)
    lines = stored_lines(name, read_gguf(file, config), trained, plan, types)
    exact = kind == GGMLQuantizationType.F32
    model = forward.model
    rounded = gross_line_of(model) if plan.grids else partial(rounded_line, kind=kind, amplifies=amplifies(model))
    judged = exact_line_of(model) if exact else rounded
    line = dense_gguf_line(f"{name} in llama.cpp", file, forward, tokenizer, exact, judged)
    return [*lines, line, *other_arithmetic(forward), *mmproj_lines(name, file, towers, forward, tokenizer)]
