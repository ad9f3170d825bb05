"""`serve=…`: where `recipe=serve` listens, what it is called, and who may ask."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import TOKENS, option


@dataclass
class ServeConfig:
    """An OpenAI-compatible API of one model; the HTTP server is that of llama.cpp, vLLM or Transformers."""

    engine: str = option(
        "auto",
        "What computes: llama_cpp for a GGUF file; vllm, or transformers (`transformers serve`), for other weights. "
        "auto: llama_cpp for a GGUF file and for a run that has no other weights, else vllm where there is one, else "
        "transformers.",
        choices=("auto", "llama_cpp", "vllm", "transformers"),
    )
    host: str = option(
        "127.0.0.1",
        "Address to listen at. Any other than this machine's own (127.0.0.1, ::1, localhost) needs `serve.api_key`.",
        longest=255,
    )
    port: int = option(8000, "Port to listen at; 0: any free one.", at_least=0, at_most=65535)
    api_key: str | None = option(
        None,
        "Key that clients must send (`Authorization: Bearer …`); null: none. From the environment, so that it stands "
        "in no list of processes: `serve.api_key='${oc.env:SERVE_API_KEY}'`. `transformers serve` knows no keys.",
        longest=1000,
        secret=True,
    )
    name: str | None = option(
        None, "The model's id for clients; null: the name of the run, the file or the folder.", longest=100
    )
    max_length: int | None = option(
        None,
        "Tokens of a conversation with its answer, at most; null: 4096, or as many as the model takes where these are "
        "fewer. transformers has no such limit.",
        at_least=1,
        at_most=TOKENS,
    )
