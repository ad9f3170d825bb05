"""Checks of `serve=…` (where to listen, and who may ask), and of a model that is asked where it is served."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from gemma_tune.config import Config
from gemma_tune.config.eval import NEED_PROBABILITIES
from gemma_tune.config.methods import Kind
from gemma_tune.errors import shortened

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")


def serve_problems(cfg: Config) -> Iterator[str]:
    """What `recipe=serve` can't do."""
    s = cfg.serve
    if s.api_key is not None and not re.fullmatch(r"[!-~]+", s.api_key):
        yield (
            "serve.api_key is empty, or holds blanks or letters that no HTTP header takes; its value isn't shown. "
            "Letters and digits are fine: `openssl rand -hex 16` prints such a key."
        )
    if not is_loopback(s.host) and s.api_key is None:
        yield (
            f"serve.host={s.host}: others could ask the model there, and serve.api_key is not set; set it "
            "(serve.api_key='${oc.env:SERVE_API_KEY}'), or leave serve.host out to serve this machine alone."
        )
    if s.name is not None and not _NAME.fullmatch(s.name):
        yield f"serve.name={s.name}: a model's id has letters, digits, `.`, `_`, `-` and `/` only, as gemma-tuned."


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which no other can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def served_model_problems(cfg: Config) -> Iterator[str]:
    """What is wrong with `model.base_url` and `model.served_name`."""
    model, url = cfg.model, cfg.model.base_url
    if url is None:
        if model.served_name is not None:
            yield "model.served_name has no effect without model.base_url; set it, too, or leave this out."
        return
    if cfg.traits.kind is not Kind.MEASURE:
        yield f"model.base_url has no effect with recipe={cfg.recipe}; ask a served model with recipe=evaluate."
        return
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
        yield (
            f"model.base_url={shortened(url)}: write the address of an API, as http://127.0.0.1:8000/v1; a key goes "
            "into the environment: OPENAI_API_KEY."
        )
    if cfg.engine.vllm is not None:
        yield "engine.vllm and model.base_url both say what is asked; leave one of the two out."
    if refused := [name for name in cfg.eval.evaluators if name in NEED_PROBABILITIES]:
        yield (
            f"eval.evaluators: {', '.join(refused)} can't be measured at model.base_url: a server gives answers, and "
            "this needs probabilities. Leave it out, or name the weights without model.base_url."
        )
