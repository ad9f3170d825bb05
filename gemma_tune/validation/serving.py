"""Checks of `serve=…` (where to listen, and who may ask), and of a model that is asked where it is served."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

from gemma_tune.config import Config
from gemma_tune.config.eval import NEED_PROBABILITIES
from gemma_tune.config.methods import Kind
from gemma_tune.errors import shortened
from gemma_tune.run.paths import resolve

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_EXAMPLE = "http://127.0.0.1:8000/v1"
# What a client puts behind the address of an API
_REQUEST = re.compile(r"/(chat/completions|completions|responses|messages|embeddings|models)/?$")
# `user:password@` and `?api_key=…` are shown to nobody
_PRIVATE = re.compile(r"(?<=/)[^/@]*(?=@)|(?<=\?).*")


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
    if problem := address_problem(url):
        yield problem
    if cfg.engine.vllm is not None:
        yield "engine.vllm and model.base_url both say what is asked; leave one of the two out."
    if refused := [name for name in cfg.eval.evaluators if name in NEED_PROBABILITIES]:
        yield (
            f"eval.evaluators: {', '.join(refused)} can't be measured at model.base_url: a server gives answers, and "
            "this needs probabilities. Leave it out, or name the weights without model.base_url."
        )


def address_problem(url: str) -> str | None:
    """What is wrong with `model.base_url` as an address, which can be said without asking there; None: nothing."""
    if not (why := _why_no_address(url)):
        return None
    said = f"model.base_url={shortened(_PRIVATE.sub('…', url))}: {why}"
    if url and "://" not in url and os.path.exists(resolve(url)):
        return f"{said}, and is a path: a run or a model is named by model.model_name_or_path."
    meant = _meant(url)
    fix = f"write model.base_url={shortened(meant)}" if not _why_no_address(meant) else f"write one as {_EXAMPLE}"
    return f"{said}; {fix}" + ("; a key goes into the environment: OPENAI_API_KEY." if _PRIVATE.search(url) else ".")


def _why_no_address(url: str) -> str:
    if re.search(r"[^!-~]", url):
        return "this is no address of an API: it holds blanks, or letters that no address has"
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError:  # also a host that can't be looked up
        return "this is no address of an API: its host or port is none"
    if parts.scheme not in ("http", "https") or not host or port == 0 or parts.netloc.endswith(":"):
        return "this is no address of an API, which has the form http://HOST:PORT/v1"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "the address of an API has no name, password, `?` or `#`"
    if found := _REQUEST.search(parts.path):
        return f"this is the address of a request, and the API's own ends before {found[0]}"
    return ""


def _meant(url: str) -> str:
    """The address that was probably meant: with http://, without what a client adds."""
    plain = re.sub(r"^(https?)(?::/*|/{2,})", r"\1://", re.sub(r"\s", "", url), flags=re.IGNORECASE)
    scheme, found, rest = plain.rpartition("://")
    place, _, path = re.split(r"[?#]", rest if found else plain.lstrip("/"))[0].partition("/")
    host = place.rpartition("@")[2]
    if re.fullmatch(r":?\d{2,5}", host):  # a port alone
        host = f"127.0.0.1:{host.lstrip(':')}"
    path = _REQUEST.sub("", f"/{path}").rstrip("/") or "/v1"
    return str(urlunsplit(("https" if scheme.lower() == "https" else "http", host, path, "", "")))
