"""The check of a GGUF LoRA file: read back, and put onto its base in llama.cpp."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from gemma_tune.engines.llama_cpp import EngineUnavailable, LlamaCppEngine
from gemma_tune.errors import RunError, UserError
from gemma_tune.export import gguf
from gemma_tune.export.engine_agreement import EngineAgreement
from gemma_tune.export.engine_lines import ROUNDED, rounded_line
from gemma_tune.export.gguf_lora import added_line
from gemma_tune.export.gguf_tensors import tensor_shapes
from gemma_tune.export.int4_check import FAIL, OK, UNVERIFIED, WARN, CheckLine
from gemma_tune.export.llama_check import Judged, dense_gguf_line, exact_line_of, other_arithmetic
from gemma_tune.export.tensors import TrainedTensors, base_tensors, read_by_rows
from gemma_tune.export.transformers_check import TrainedForward
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.four_bit import is_four_bit
from gemma_tune.models.load import family_of
from gemma_tune.models.source import Source

# What ends a check without a result: files, memory or a disk that it would need
_NOT_MADE = (RunError, UserError, OSError, MemoryError)
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
    lines = [added_line(file, model)]
    if lines[0].verdict == UNVERIFIED:  # there is no such file
        return lines
    lines.append(_on_base(ON_TRAINED, file, forward, tokenizer, base_tensors(model), exact_line_of(model)))
    if any(is_four_bit(module) for module in model.modules()):
        lines.append(served_line(file, forward, tokenizer, source))
    return [*lines, *other_arithmetic(forward)]


def served_line(file: Path, forward: TrainedForward, tokenizer: Any, source: Source) -> CheckLine:
    """Runs a GGUF LoRA file on the published weights; `unverified` where these can't be read.

    Args:
        file: The file.
        forward: The trained PeftModel on some rows.
        tokenizer: Its tokenizer.
        source: What the base was loaded from.
    """
    try:
        base = _published(forward.model, source)
    except _NOT_MADE as error:
        return _not_made(ON_SERVED, error)
    return _on_base(ON_SERVED, file, forward, tokenizer, base, _served)


@contextlib.contextmanager
def served_base(beside: Path, model: Any, tokenizer: Any, source: Source) -> Iterator[Path]:
    """A float16 GGUF file of the published base, on which a GGUF LoRA file is served; it is removed on exit.

    Args:
        beside: The GGUF LoRA file, in whose folder it is written.
        model: What has the base's configuration; its weights aren't read.
        tokenizer: The base's tokenizer.
        source: What the base was loaded from.

    Raises:
        UserError: Its files don't hold the weights.
        OSError: There is no room for it.
    """
    with tempfile.TemporaryDirectory(dir=beside.parent, prefix=".base-") as folder:
        path, config = Path(folder) / f"{beside.stem}-base-f16.gguf", model.config.get_text_config()
        types, generation = GGMLQuantizationType.F16, model.generation_config
        yield gguf.export(_published(model, source), config, tokenizer, generation, types, path, name=beside.stem)


def _published(model: Any, source: Source) -> TrainedTensors:
    """The tensors of the base as its files hold them."""
    stored, names = CheckpointFiles.of(source, family_of(source)), tensor_shapes(model.config.get_text_config())
    reads = {own: partial(stored.read, its) for its, own in stored.language.items() if own in names}
    if lacking := sorted(names.keys() - reads.keys()):
        raise UserError(f"{stored.folder}: it holds no {lacking[0]}.")
    return read_by_rows(reads)


def _served(name: str, found: EngineAgreement) -> CheckLine:
    """The line of another base than that of training: what it costs is said, and is no fault of the file."""
    line = rounded_line(name, found, GGMLQuantizationType.BF16)
    usual, _ = ROUNDED[GGMLQuantizationType.BF16]
    verdict = WARN if line.verdict == FAIL else line.verdict
    return replace(line, must=f"KL at most {usual:g}", verdict=verdict, problem="" if verdict == OK else _WAYS_OUT)


def _on_base(
    name: str, file: Path, forward: TrainedForward, tokenizer: Any, base: TrainedTensors, judged: Judged
) -> CheckLine:
    model, config = forward.model, forward.model.config.get_text_config()
    try:
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".base-") as folder:
            path, types = Path(folder) / "base.gguf", GGMLQuantizationType.F32
            gguf.export(base, config, tokenizer, model.generation_config, types, path, name=file.stem)
            line = dense_gguf_line(name, path, forward, tokenizer, True, judged, adapter=file)
            if line.verdict == UNVERIFIED and _loads(path, tokenizer) and not _loads(path, tokenizer, file):
                return replace(line, verdict=FAIL)  # llama.cpp runs the base, and refuses the adapter
            return line
    except _NOT_MADE as error:
        return _not_made(name, error)


def _loads(base: Path, tokenizer: Any, adapter: Path | None = None) -> bool:
    """Whether llama.cpp comes to serve a file."""
    try:
        LlamaCppEngine(base, tokenizer, (), max_length=8, adapter=adapter).close()
    except EngineUnavailable:
        return False
    return True


def _not_made(name: str, error: Exception) -> CheckLine:
    return CheckLine(name, "run in llama.cpp", "not run", UNVERIFIED, str(error) or type(error).__name__)
