"""What `recipe=serve` says: what is served, and commands that ask it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from gemma_tune.chat.translation import greeting
from gemma_tune.config import ServeConfig
from gemma_tune.config.data import LANGUAGES
from gemma_tune.serve.choice import Served

_KEY = "OPENAI_API_KEY"  # where the openai package looks for a key
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def client_address(address: str) -> str:
    """The address for a client on this machine: `0.0.0.0` is none that can be asked."""
    host, _, port = urlsplit(address).netloc.rpartition(":")
    return f"http://{_ANYWHERE.get(host, host)}:{port}/v1"


def what_is_served(served: Served, address: str) -> str:
    """The first line: weights, engine, address and model id."""
    return f"Serving {served.weights} by {served.engine_title} at {address}, model id {served.name}"


def how_to_ask(served: Served, serve: ServeConfig, address: str) -> list[str]:
    """Commands that ask it, each a line to copy."""
    body: dict[str, Any] = {"model": served.name, "messages": [{"role": "user", "content": greeting(False)}]}
    more = ""
    if served.translates and served.gguf:  # llama.cpp takes the languages of TranslateGemma beside the messages
        languages = {"chat_template_kwargs": dict(zip(LANGUAGES, ("en", "de"), strict=True))}
        body, more = body | languages, f", extra_body={json.dumps(languages)}"
    elif served.translates:
        body["messages"] = [{"role": "user", "content": greeting(True)}]
    header = f' -H "Authorization: Bearer ${_KEY}"' if serve.api_key else ""
    key = "" if serve.api_key else ', api_key="none"'
    messages = json.dumps(body["messages"])
    return [
        *([f"export {_KEY}=…  # serve.api_key"] if serve.api_key else []),
        f"curl {address}/chat/completions -H 'Content-Type: application/json'{header} -d '{json.dumps(body)}'",
        f'python -c \'from openai import OpenAI; print(OpenAI(base_url="{address}"{key}).chat.completions.create('
        f'model="{served.name}", messages={messages}{more}).choices[0].message)\'',
    ]
