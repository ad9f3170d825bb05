"""The check of a GGUF LoRA file: read back, and put onto its base in llama.cpp."""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from gemma_tune.export import gguf
from gemma_tune.export.engine_agreement import EngineAgreement
from gemma_tune.export.gguf_lora import added_line
from gemma_tune.export.int4_check import FAIL, OK, ROUNDED, UNVERIFIED, WARN, CheckLine, exact_line, rounded_line
from gemma_tune.export.llama_check import Judged, dense_gguf_line
from gemma_tune.export.tensors import TrainedTensors, base_tensors, read_by_rows
from gemma_tune.export.transformers_check import TrainedForward
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.four_bit import is_four_bit
from gemma_tune.models.load import family_of
from gemma_tune.models.source import Source

LORA = "gguf_lora"
ON_TRAINED = "gguf_lora in llama.cpp, on the base that it was trained on, float32"
ON_SERVED = "gguf_lora in llama.cpp, on the published base, float32"
_WAYS_OUT = (
    "It was trained on a base in 4 bit, and is served on one in 16 bit. gguf_f16, gguf_q8_0 and merged hold the base "
    "that it was trained on."
)


def lora_lines(file: Path, forward: TrainedForward, tokenizer: Any, source: Source) -> list[CheckLine]:
    """Compares a GGUF LoRA file with the adapter that was trained.

    Args:
        file: The file. A float32 file of the base is written beside it for this, and removed again.
        forward: The trained PeftModel on rows of together at least 512 positions.
        tokenizer: Its tokenizer.
        source: What the base was loaded from. Where that was rounded to 4 bit, the adapter is also run on the
            published weights, on which it will be served.
    """
    model = forward.model
    lines = [added_line(file, model), _on_base(ON_TRAINED, file, forward, tokenizer, base_tensors(model), exact_line)]
    if any(is_four_bit(module) for module in model.modules()):
        stored, names = CheckpointFiles.of(source, family_of(source)), set(base_tensors(model))
        reads = {own: partial(stored.read, its) for its, own in stored.language.items() if own in names}
        if names == reads.keys():
            line = _on_base(ON_SERVED, file, forward, tokenizer, read_by_rows(reads), _served)
            lines.append(line)
    return lines


def _served(name: str, found: EngineAgreement) -> CheckLine:
    """The line of another base than that of training: what it costs is said, and is no fault of the file."""
    line = rounded_line(name, found, GGMLQuantizationType.BF16)
    usual, _ = ROUNDED[GGMLQuantizationType.BF16]
    verdict = WARN if line.verdict == FAIL else line.verdict
    return replace(line, must=f"KL at most {usual:g}", verdict=verdict, problem="" if verdict == OK else _WAYS_OUT)


def _on_base(
    name: str, file: Path, forward: TrainedForward, tokenizer: Any, base: TrainedTensors, judged: Judged
) -> CheckLine:
    model = forward.model
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".base-") as folder:
        path, config = Path(folder) / "base.gguf", model.config.get_text_config()
        types = GGMLQuantizationType.F32
        gguf.export(base, config, tokenizer, model.generation_config, types, path, name=file.stem)
        line = dense_gguf_line(name, path, forward, tokenizer, True, judged, adapter=file)
    if line.verdict == UNVERIFIED and importlib.util.find_spec("xllamacpp") is not None:
        return replace(line, verdict=FAIL)  # llama.cpp refuses the adapter: the base it runs elsewhere
    return line
