"""The adapter that a training leaves is asked in vLLM, where `engine.vllm` names one."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from gemma_tune.engines.vllm_server import find_vllm
from gemma_tune.export.formats import say_lines, some_rows
from gemma_tune.export.int4_check import CheckLine, raise_failed
from gemma_tune.export.vllm_check import LogProbs, base_of, four_bit_line, vllm_lines
from gemma_tune.models.load_weights import load_model
from gemma_tune.models.source import find_source
from gemma_tune.steps.session import Session


def check_served_adapter(training: Session, samples: Any = None) -> list[CheckLine]:
    """Loads the adapter on its base into vLLM and compares it with the trained model; nothing without `engine.vllm`.

    Args:
        training: The training, its adapter saved.
        samples: Training rows to compare on; None: those of its data.

    Returns:
        The lines, which are printed and stored beside those of the exports.

    Raises:
        ArtifactDiffers: An answer is not the trained model's; the adapter stays, and the result says so.
    """
    cfg, folder, tokenizer = training.cfg, training.folder, training.setup.tokenizer
    vllm = find_vllm(cfg.engine)
    if vllm is None or "adapter" not in folder.result.artifacts:
        return []
    rows = some_rows([training.data.held_out, training.data.train if samples is None else samples], training.model)
    with folder.timed("verify"):
        trained = LogProbs.of(training.model, tokenizer, rows, "reference")
        served, base, lines = trained, base_of(training.model, tokenizer, rows), list[CheckLine]()
        if cfg.model.load_in_4bit:
            served, base = _on_sixteen_bit(training, rows)
            lines.append(four_bit_line(trained, served))
        lines += vllm_lines(cfg, vllm, {"adapter": str(folder.adapter)}, served, tokenizer, base)
    folder.result.metrics["verify"] = [*folder.result.metrics.get("verify", []), *map(asdict, lines)]
    say_lines(lines)
    raise_failed(lines)
    return lines


def _on_sixteen_bit(training: Session, rows: list[list[int]]) -> list[LogProbs]:
    """The saved adapter on the base that it is served on, and that base alone, both in float32."""
    cfg, tokenizer = training.cfg, training.setup.tokenizer
    name = str(training.folder.adapter)
    model = replace(
        cfg.model, model_name_or_path=name, dtype="float32", load_in_4bit=False, device="cpu", added_tokens=[]
    )
    source = find_source(model)
    loaded = load_model(model, source, tokenizer)
    served = LogProbs.of(loaded, tokenizer, rows, "adapter on 16 bit")
    with loaded.disable_adapter():
        return [served, LogProbs.of(loaded, tokenizer, rows, "base in 16 bit")]
