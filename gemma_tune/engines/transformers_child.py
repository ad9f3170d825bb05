"""`transformers serve` in a process of its own, with one model that is loaded as `recipe=evaluate` loads it.

The HTTP server, its routes and how answers are generated are Transformers'. Ours is which model it has: with its
adapter, in 4 bit where it was trained so, with the checked tokenizer, and no other one, whatever a client names.

Started by `child_server` with `child.py`. Its first line of input is JSON with `model` and `source`, the values of
`ModelConfig` and `Source`, and of `Listening` `host`, `port` and `name`.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from gemma_tune.config import ModelConfig
from gemma_tune.engines.child_input import end_with_input, options_and_answer
from gemma_tune.engines.listening import address_of, bound
from gemma_tune.errors import UserError
from gemma_tune.models.adapters.trained_rows import rows_in_place
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_model
from gemma_tune.models.source import Source


def main() -> None:
    """Loads the model and serves it until the input ends."""
    options, answer = options_and_answer()
    threading.Thread(target=end_with_input, daemon=True).start()
    listening = bound(options["host"], options["port"])
    model_of = ModelConfig(**options["model"])
    stored = options["source"]
    adapter = Path(stored["adapter"]) if stored["adapter"] else None
    source = Source(stored["base"], stored["revision"], adapter, stored["tokenizer"], tuple(stored["added_tokens"]))
    try:
        tokenizer = load_tokenizer(source, model_of.chat_template)
        model = load_model(model_of, source, tokenizer, packed=True)
    except UserError as error:
        sys.exit(str(error))
    with rows_in_place(model):
        _serve(options["name"], model, tokenizer, listening, answer)


def _serve(name: str, model: Any, tokenizer: Any, listening: socket.socket, answer: Any) -> None:
    import uvicorn
    from fastapi import HTTPException
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.systemone import SystemOneHandler
    from transformers.cli.serving.transcription import TranscriptionHandler
    from transformers.cli.serving.utils import GenerationState

    class OneModel(ModelManager):
        """Transformers' table of models with one entry, which no request removes."""

        def load_model_and_processor(
            self, model_id_and_revision: str, progress_callback: Any = None, **_: Any
        ) -> tuple[Any, Any]:
            if model_id_and_revision != self.process_model_name(name):
                raise HTTPException(404, f"there is no model {model_id_and_revision}; this server has {name}.")
            if progress_callback:
                progress_callback({"status": "ready", "model": name, "cached": True})
            return model, tokenizer

        def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
            return [{"id": name, "object": "model", "created": 0, "owned_by": "gemma_tune"}]

        def shutdown(self) -> None:
            """Nothing: what `/reset` would unload is all that there is."""

    manager, state = OneModel(force_model=name), GenerationState()
    app = build_server(
        manager,
        ChatCompletionHandler(manager, state, {}),
        CompletionHandler(manager, state),
        ResponseHandler(manager, state, {}),
        TranscriptionHandler(manager, state),
        SystemOneHandler(manager, state, {}),
        state,
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    listening.listen()
    print(json.dumps({"address": address_of(listening)}), file=answer, flush=True)
    server.run(sockets=[listening])


if __name__ == "__main__":
    main()
