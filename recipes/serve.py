"""A model as an OpenAI-compatible API: `serve`. The HTTP server is that of llama.cpp, vLLM or Transformers."""

from __future__ import annotations

import sys

from gemma_tune.config import Config
from gemma_tune.engines.listening import http_address
from gemma_tune.models.hub import check_can_be_had, is_of_hub, set_offline_mode
from gemma_tune.run.only_printed import as_yaml
from gemma_tune.run.result import RunResult
from gemma_tune.run.stopping import Stopped
from gemma_tune.serve.choice import chosen
from gemma_tune.serve.server import check_port, started
from gemma_tune.serve.words import client_address, how_to_ask, what_is_served


def run(cfg: Config) -> RunResult:
    """Serves until Ctrl-C. There is no run folder; `metrics["url"]` of the result says where it listened."""
    # What is served by what; nothing of it waits for the weights
    set_offline_mode(cfg)
    served = chosen(cfg)

    check_port(cfg.serve)
    if is_of_hub(cfg.model.model_name_or_path) and not cfg.dry_run:
        check_can_be_had(cfg.model)
    if cfg.dry_run:
        print(as_yaml(cfg))
        at = http_address(cfg.serve.host, cfg.serve.port or "(any free port)")
        print(f"Would be started: {what_is_served(served, at)}. No weight was loaded: dry_run=true.")
        return RunResult(cfg.recipe, status="dry_run")

    # The engine's own server, in a process that ends with this one
    for note in filter(None, (served.note, served.source and served.source.remark)):
        print(note, file=sys.stderr)
    print(f"Loading {served.weights} …", file=sys.stderr, flush=True)
    with started(served, cfg) as server:
        address = client_address(server.url)
        print(what_is_served(served, server.url), flush=True)
        for line in how_to_ask(served, cfg.serve, address):
            print(f"  {line}", flush=True)
        print("Ctrl-C ends it.", flush=True)
        try:
            raise server.wait()
        except Stopped as stopped:
            if stopped.code != 130:  # Ctrl-C is the way to end it
                raise
    print("Ended.", file=sys.stderr)
    return RunResult(cfg.recipe, status="finished", metrics={"url": address, "model": served.name})
