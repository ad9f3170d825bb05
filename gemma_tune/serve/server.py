"""Starts an engine's own HTTP server, and finds out before the weights are loaded whether it could listen."""

from __future__ import annotations

import contextlib
import errno
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Protocol

from gemma_tune.chat import form_of, vllm_tool_parser
from gemma_tune.config import Config, ServeConfig
from gemma_tune.engines.child_server import ChildServer, EngineUnavailable
from gemma_tune.engines.listening import Listening, bound
from gemma_tune.engines.llama_server import LlamaServer
from gemma_tune.engines.vllm_server import PLAIN, VllmOptions, VllmServer
from gemma_tune.errors import UserError
from gemma_tune.models.gguf_header import image_tokens, read_gguf_header
from gemma_tune.serve.choice import Served

# Tokens of a conversation in llama.cpp, which allocates memory for all of them at the start
_LENGTH = 4096
_LOADING = 3600.0  # seconds
_TRIED = 100  # ports


class Server(Protocol):
    """A server that runs.

    Attributes:
        url: `http://host:port`.
    """

    url: str

    def wait(self) -> EngineUnavailable:
        """Waits until it ends by itself; what to say then, with the end of its log."""
        ...


def check_port(serve: ServeConfig) -> None:
    """Raises UserError where nothing could listen at the host and the port."""
    said = f"serve.host={serve.host} serve.port={serve.port}"
    try:
        bound(serve.host, serve.port).close()
    except socket.gaierror as error:
        raise UserError(f"serve.host={serve.host}: this is no address of this machine ({error.strerror}).") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"serve.port={serve.port}: another program listens there already; {_free_port(serve)}"
                "serve.port=0 takes any free one."
            ) from error
        if error.errno == errno.EACCES:
            raise UserError(f"{said}: you have no right to listen there; take a port above 1023.") from error
        raise UserError(f"{said}: nothing can listen there ({error.strerror}); try serve.host=127.0.0.1.") from error


def _free_port(serve: ServeConfig) -> str:
    for port in range(serve.port + 1, min(serve.port + _TRIED, 65535)):
        with contextlib.suppress(OSError):
            bound(serve.host, port).close()
            return f"serve.port={port} is free, and "
    return ""


@contextlib.contextmanager
def started(served: Served, cfg: Config) -> Iterator[Server]:
    """Loads the weights and serves them until the end of the block.

    Raises:
        EngineUnavailable: The engine can't load the weights.
    """
    public = Listening(cfg.serve.host, cfg.serve.port, cfg.serve.api_key, served.name)
    if served.gguf is not None:
        server: ChildServer = LlamaServer(
            served.gguf,
            cfg.serve.max_length or _LENGTH,
            slots=1,  # the same request has the same answer, whoever asks at the same time
            threads=_threads(),
            exact=read_gguf_header(served.gguf).float32,
            timeout=_LOADING,
            public=public,
            template=served.template,
            mmproj=served.mmproj,
            image_tokens=image_tokens(served.mmproj) if served.mmproj else None,
        )
    elif served.vllm is not None:
        with _vllm(served, cfg, public) as running:
            yield running
        return
    else:
        assert served.source
        options = {"model": asdict(cfg.model), "source": asdict(served.source), **asdict(public)}
        options["source"]["adapter"] = str(served.source.adapter) if served.source.adapter else None
        server = ChildServer(
            "gemma_tune.engines.transformers_child", options, f"{served.weights}: Transformers", _LOADING, {}
        )
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def _vllm(served: Served, cfg: Config, public: Listening) -> Iterator[Server]:
    """vLLM with the checked tokenizer, whose template finds calls, in place of the one beside the weights."""
    import torch

    from gemma_tune.models.load import load_tokenizer

    assert served.vllm and served.source
    tokenizer = load_tokenizer(served.source, cfg.model.chat_template)
    options = VllmOptions(
        dtype=cfg.model.dtype or "auto",
        max_length=cfg.serve.max_length or cfg.engine.max_length or _LENGTH,
        tool_parser=vllm_tool_parser(form_of(tokenizer)),
        arguments=(*(() if torch.cuda.is_available() else PLAIN), *cfg.engine.vllm_args),
    )
    with tempfile.TemporaryDirectory(prefix="gemma-tune-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        source, where = (
            replace(served.source, tokenizer=folder),
            (public.host, public.port or None, public.key, public.key is None, _LOADING),
        )
        with VllmServer(served.vllm, source, public.name, options, *where) as server:
            yield server


def _threads() -> int:
    """CPU threads that torch would use."""
    import torch

    return int(torch.get_num_threads())
