"""Opens the engine for a source of weights: llama.cpp for a GGUF file, else vLLM where it is named, or Transformers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma_tune.config import Config
from gemma_tune.engines.base import Engine
from gemma_tune.engines.llama_cpp import WHOLE_VOCABULARY, LlamaCppEngine
from gemma_tune.engines.served import ServedEngine
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.engines.vllm import VllmEngine
from gemma_tune.engines.vllm_server import IN_16_BIT, PLAIN, VllmOptions, VllmServer, find_vllm, unservable
from gemma_tune.errors import UserError
from gemma_tune.media.families import llama_image_tokens
from gemma_tune.models.gguf_header import read_gguf_header
from gemma_tune.models.load import check_rows, check_vocabulary, stop_token_ids
from gemma_tune.models.load_weights import load_model
from gemma_tune.models.source import Source
from gemma_tune.run.paths import mmproj_beside

# Default context length of llama.cpp, in tokens; it allocates memory for all of them at the start.
_LENGTH = 4096
_PROBE = "The cat sat on the mat, and 12 dogs didn't.\nThen they went home; it was late."


def transformers_engine(cfg: Config, model: Any, tokenizer: Any) -> TransformersEngine:
    """A loaded model as an engine, with the configured batch sizes."""
    return TransformersEngine(model, tokenizer, cfg.train.per_device_eval_batch_size, cfg.eval.batch_size or 1)


@contextlib.contextmanager
def open_engine(
    cfg: Config, source: Source, tokenizer: Any, highest_id: int = 0, media: bool = False
) -> Iterator[Engine]:
    """Loads the weights, and frees them on exit; of a model that is served (`model.base_url`) none are loaded.

    A GGUF file of float32 weights is computed in float32, any other with llama.cpp's defaults.

    Args:
        cfg: The configuration; `model`, `eval` and `train.max_length` are used.
        source: Where the weights are.
        tokenizer: Their tokenizer.
        highest_id: The highest token id that will be used.
        media: Whether prompts have images or sound: llama.cpp gets the file of the towers beside a GGUF file.

    Raises:
        UserError: The weights can't be loaded, or the tokenizer belongs to another model.
        EngineUnavailable: llama.cpp isn't installed, or it or vLLM can't load the weights.
    """
    if cfg.model.base_url is not None:
        yield ServedEngine(cfg.model, tokenizer)
        return
    if source.gguf is None and (vllm := find_vllm(cfg.engine)):
        with _vllm_engine(cfg, vllm, source, tokenizer) as served:
            yield served
        return
    if source.gguf is None:
        model = load_model(cfg.model, source, tokenizer, packed=True)
        check_vocabulary(model, [highest_id])
        yield transformers_engine(cfg, model, tokenizer)
        return
    exact, stops = read_gguf_header(source.gguf).float32, stop_token_ids(tokenizer)
    mmproj = mmproj_beside(source.gguf) if media else None
    sizes = llama_image_tokens(tokenizer.media) if mmproj and tokenizer.media else None
    with LlamaCppEngine(
        source.gguf, tokenizer, stops, max_length=context_length(cfg), exact=exact, adapter=source.adapter,
        mmproj=mmproj, image_tokens=sizes,
    ) as engine:  # fmt: skip
        check_rows(engine.vocabulary, [highest_id, *stops])
        if engine.token_ids(_PROBE) != tokenizer(_PROBE).input_ids:
            raise UserError(
                f"model.model_name_or_path={source.base}: its tokenizer isn't that of {source.tokenizer}; name the "
                "folder of the checkpoint that the file was made from: model.tokenizer_name_or_path=FOLDER."
            )
        yield engine


def _vllm_engine(cfg: Config, vllm: Path, source: Source, tokenizer: Any) -> VllmEngine:
    if why := unservable(source):
        raise UserError(f"engine.vllm: {why}")
    options = VllmOptions(
        dtype=cfg.model.dtype or "auto",
        max_length=context_length(cfg),
        most_log_probs=-1 if len(tokenizer) <= WHOLE_VOCABULARY else 20,
        arguments=(*PLAIN, *cfg.engine.vllm_args),
    )
    if source.adapter is not None and cfg.model.load_in_4bit:
        print(IN_16_BIT, file=sys.stderr)
    server = VllmServer(vllm, source, options=options)
    return VllmEngine(server, tokenizer, stop_token_ids(tokenizer))


def check_evaluators(cfg: Config, source: Source, tokenizer: Any) -> None:
    """Raises UserError for an evaluator that the engine can't serve."""
    if source.gguf and len(tokenizer) > WHOLE_VOCABULARY and "kl" in cfg.evaluator_names:
        raise UserError(
            f"eval.evaluators: kl needs the probabilities of all tokens, and llama.cpp returns them as text: megabytes "
            f"per token for a vocabulary of {len(tokenizer):,}; leave kl out, or evaluate export=merged, which has "
            "the same weights."
        )


def context_length(cfg: Config) -> int:
    """Tokens of a prompt and its answer that llama.cpp and vLLM make room for."""
    if cfg.engine.max_length is not None:
        return cfg.engine.max_length
    asked = cfg.eval.long_context.lengths if "long_context" in cfg.evaluator_names else []
    return max(_LENGTH, cfg.train.max_length, *asked)
