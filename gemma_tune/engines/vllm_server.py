"""`vllm serve` of any installation, in a process of its own, with a folder and perhaps an adapter loaded."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gemma_tune.config import EngineConfig
from gemma_tune.engines.listening import http_address
from gemma_tune.engines.server_process import ServerProcess, free_port
from gemma_tune.errors import UserError
from gemma_tune.models.folders import ADAPTER_CONFIG, ADAPTER_VLLM, read_adapter_config
from gemma_tune.models.source import Source
from gemma_tune.models.towers.image_attention import STORED
from gemma_tune.models.towers.tower_names import trains_towers
from gemma_tune.run.paths import resolve

# `make setup-vllm` makes it, in the folder of the project
ENVIRONMENT = Path(".venv-vllm/bin/vllm")
# What vLLM has kernels for
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_ADAPTER, _BASE = "adapter", "base"
_EXPERTS = "target_parameters"  # the key of adapter_config.json that names fused experts
# Compiled kernels compute the same, and take a minute to make
PLAIN = ("--enforce-eager",)
IN_16_BIT = (
    "The adapter was trained on the base in 4 bit, and vLLM puts it on the base in 16 bit; export/merged holds the "
    "4-bit weights as numbers."
)


@dataclass(frozen=True)
class VllmOptions:
    """How vLLM is started, beside what it loads.

    Attributes:
        dtype: Of the weights and the arithmetic; `auto` takes that of the folder's config.json.
        max_length: Tokens of a prompt and its answer at most; None: the model's own.
        slots: Requests computed at once.
        most_log_probs: How many log-probabilities of a position may be asked for; -1: all of the vocabulary.
        tool_parser: vLLM's name of the form of tool calls; None: calls stay text.
        arguments: Further arguments.
    """

    dtype: str = "auto"
    max_length: int | None = None
    slots: int = 8
    most_log_probs: int = 20
    tool_parser: str | None = None
    arguments: Sequence[str] = ()


def find_vllm(engine: EngineConfig, look: bool = False) -> Path | None:
    """The command that is named, or with `look` the one of `.venv-vllm` or on the path; None where there is none.

    Raises:
        UserError: What is named is no program.
    """
    if engine.vllm is not None:
        named = resolve(engine.vllm)
        if named.is_dir():  # of the environment, or its bin/
            named = next((p for p in (named / "bin" / "vllm", named / "vllm") if p.is_file()), named)
        if not (named.is_file() and os.access(named, os.X_OK)):
            raise UserError(
                f"engine.vllm={engine.vllm}: this is no program; name the `vllm` command of an installation, for "
                f"example {ENVIRONMENT} (make setup-vllm)."
            )
        return named.absolute()
    if not look:
        return None
    checkout = Path(__file__).resolve().parents[2]
    found = next((p for p in (Path.cwd() / ENVIRONMENT, checkout / ENVIRONMENT) if p.is_file()), None)
    on_path = shutil.which("vllm")
    return found or (Path(on_path) if on_path else None)


class VllmServer(ServerProcess):
    """vLLM with weights loaded, on a port of its own.

    Args:
        vllm: The `vllm` command.
        source: A folder or a name on the Hub, perhaps with an adapter, and where the tokenizer is.
        name: The model's id for clients; None: `model`, or `adapter`.
        options: See `VllmOptions`.
        host: Where it listens.
        port: Its port; None: any that is free.
        key: Its API key; None: one that nobody else knows.
        is_open: Whether it has no key at all.
        timeout: Seconds for loading the weights, and for one request.

    Raises:
        EngineUnavailable: vLLM doesn't start, with what it said.
    """

    def __init__(
        self,
        vllm: Path,
        source: Source,
        name: str | None = None,
        options: VllmOptions | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        key: str | None = None,
        is_open: bool = False,
        timeout: float = 900.0,
    ) -> None:
        source = as_vllm_reads(source)
        options, port = _within_model(options or VllmOptions(), source), port or free_port(host)
        key = None if is_open else key or secrets.token_hex(16)
        self.model = name or ("model" if source.adapter is None else _ADAPTER)
        environment = {
            "VLLM_API_KEY": key or "",  # in the arguments everybody could read it; an empty one is none
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
            # Of a build for CPUs: GiB for keys and values; by default half of the memory
            "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "2"),
        }
        if Path(source.base).is_dir():
            environment["HF_HUB_OFFLINE"] = "1"
        command = vllm_command(vllm, source, self.model, options, host, port)
        super().__init__(command, environment, http_address(host, port), "/v1/models", "vLLM", key, timeout)


def _within_model(options: VllmOptions, source: Source) -> VllmOptions:
    """No more room than the model was made for, which vLLM refuses."""
    from gemma_tune.models.load import load_config  # imports torch, which finding vLLM doesn't need

    most: int = load_config(source).get_text_config().max_position_embeddings
    return replace(options, max_length=min(options.max_length or most, most))


def vllm_command(vllm: Path, source: Source, name: str, options: VllmOptions, host: str, port: int) -> list[str]:
    """The command line of `vllm serve`; see `VllmServer`. Its paths are absolute: vLLM runs in another folder."""
    command = [str(vllm), "serve", *_weights(source), "--host", host, "--port", str(port), "--dtype", options.dtype]
    command += ["--served-model-name", name if source.adapter is None else _BASE]
    command += ["--max-num-seqs", str(options.slots), "--max-logprobs", str(options.most_log_probs)]
    if options.max_length:
        command += ["--max-model-len", str(options.max_length)]
    if source.adapter is not None:
        command += lora_words(name, source.adapter.absolute())
    command += image_words(source)
    if options.tool_parser:
        command += tool_words(options.tool_parser)
    return [*command, *options.arguments]


def _weights(source: Source) -> list[str]:
    """The base with its commit, and the tokenizer where it isn't the base's."""
    words = [_absolute(source.base)]
    commit = source.revision if source.revision and not Path(source.base).is_dir() else None
    words += ["--revision", commit] if commit else []
    if source.tokenizer != source.base:
        return [*words, "--tokenizer", _absolute(source.tokenizer)]
    return [*words, "--tokenizer-revision", commit] if commit else words


def serve_words(source: Source, name: str, tool_parser: str | None) -> list[str]:
    """`vllm serve …` for people: weights, adapter and the form of tool calls."""
    source = as_vllm_reads(source)
    words = ["vllm", "serve", *_weights(source)] if source.adapter else ["vllm", "serve", source.base]
    words += lora_words(name, source.adapter) if source.adapter else []
    words += image_words(source)
    return words + (tool_words(tool_parser) if tool_parser else [])


def image_words(source: Source) -> list[str]:
    """The arguments with which images become what they were in training."""
    words = ["--mm-processor-kwargs", json.dumps(dict(source.images_kwargs))] if source.images_kwargs else []
    if source.image_attention is None:
        return words
    stored = {"text_config": {"use_bidirectional_attention": STORED[source.image_attention]}}
    return [*words, "--hf-overrides", json.dumps(stored)]


def tool_words(parser: str) -> list[str]:
    """The arguments that make calls of tools from texts."""
    return ["--enable-auto-tool-choice", "--tool-call-parser", parser]


def lora_words(name: str, adapter: Path) -> list[str]:
    """The arguments that serve an adapter under a name."""
    return ["--enable-lora", "--max-lora-rank", str(_rank(adapter)), "--lora-modules", f"{name}={adapter}"]


def _absolute(name: str) -> str:
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def _rank(adapter: Path) -> int:
    """The least rank that vLLM has kernels for and that holds every layer of an adapter."""
    stored = read_adapter_config(adapter)
    ranks = [stored.get("r", 8), *(stored.get("rank_pattern") or {}).values()]
    rank = next((r for r in _RANKS if r >= max(ranks)), None)
    if rank is None:
        raise UserError(f"{adapter}: vLLM takes adapters of rank {_RANKS[-1]} at most, and its rank is {max(ranks)}.")
    return rank


def as_vllm_reads(source: Source) -> Source:
    """The same, but of a run's adapter on fused experts that which `export.formats=adapter_vllm` has made of it."""
    if source.adapter is None or source.adapter.name != "adapter":
        return source
    each = source.adapter.parent / "export" / ADAPTER_VLLM
    if not (each / ADAPTER_CONFIG).is_file() or not read_adapter_config(source.adapter).get(_EXPERTS):
        return source
    return replace(source, adapter=each)


def unservable(source: Source) -> str | None:
    """Why vLLM can't serve an adapter, with the way out; None where it can, or where there is no adapter.

    An adapter on fused experts can be served where the run has written it as vLLM reads it (`as_vllm_reads`).
    """
    adapter = as_vllm_reads(source).adapter
    if adapter is None:
        return None
    stored = read_adapter_config(adapter)
    kinds = {
        "modules_to_save": "whole layers beside the adapter",
        "trainable_token_indices": "rows of the embedding",
        "use_dora": "DoRA",
        _EXPERTS: "fused experts",
    }
    found = [f"{kinds[key]} ({key})" for key in kinds if stored.get(key)]
    if source.adapter is not None and trains_towers(source.adapter):
        found.append("towers that were trained with it (model.train_towers)")
    if found and stored.get(_EXPERTS) and len(found) == 1:
        model = shlex.quote(f"model.model_name_or_path={adapter}")
        return (
            f"vLLM reads an adapter on {found[0]} with that of each expert by itself: write that with "
            f"export=adapter_vllm (afterwards: python -m gemma_tune recipe=export export={ADAPTER_VLLM} {model}) and "
            f"name the folder export/{ADAPTER_VLLM}, or serve the merged weights (export/merged)."
        )
    if found:
        return f"vLLM serves no adapter with {' and '.join(found)}; serve the merged weights (export/merged)."
    return None
