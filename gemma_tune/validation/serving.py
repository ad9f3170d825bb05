"""Checks of `serve=…`: where to listen, and who may ask."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from gemma_tune.config import Config

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
