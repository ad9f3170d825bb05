"""llama.cpp's HTTP server in a child process, and requests to it."""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gemma_tune.engines.child_server import ChildServer, EngineUnavailable
from gemma_tune.engines.json_client import JsonClient, Unreachable
from gemma_tune.engines.listening import Listening

__all__ = ["EngineUnavailable", "LlamaServer"]


class LlamaServer(ChildServer):
    """llama.cpp's server with one file loaded.

    Args:
        file: A GGUF file.
        context: Maximum tokens of each slot.
        slots: Requests computed at once.
        threads: CPU threads.
        exact: Keys and values in float32, and only kernels that don't round.
        timeout: Seconds for loading the file, and for one request.
        adapter: A GGUF LoRA file that is put onto it, or None.
        public: Where others may ask; None: nobody but this process.
        template: The chat template in place of the file's own; None: that.
        mmproj: The file of the towers for images and sound, or None.
        image_tokens: The fewest and the most tokens of an image, where its size decides; None: llama.cpp's own.

    Raises:
        EngineUnavailable: The package isn't installed, or llama.cpp doesn't load the file.
    """

    def __init__(
        self,
        file: Path,
        context: int,
        slots: int,
        threads: int,
        exact: bool,
        timeout: float,
        adapter: Path | None = None,
        public: Listening | None = None,
        template: str | None = None,
        mmproj: Path | None = None,
        image_tokens: tuple[int, int] | None = None,
    ) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise EngineUnavailable("llama.cpp isn't installed: pip install 'gemma_tune[gguf]' brings it (xllamacpp).")
        if not file.is_file():
            raise EngineUnavailable(f"{file}: there is no such file.")
        public = public or Listening("127.0.0.1", 0, secrets.token_hex(16), file.stem)
        options = {"file": str(file), "context": context, "slots": slots, "threads": threads, "exact": exact}
        files = {"adapter": str(adapter) if adapter else None, "mmproj": str(mmproj) if mmproj else None}
        super().__init__(
            "gemma_tune.engines.llama_child",
            {**options, **asdict(public), **files, "template": template, "image_tokens": image_tokens},
            f"{file}: llama.cpp",
            timeout,
            # Waiting threads sleep: on cores that others use too, two spinning threads took 15 times as long as one
            {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "0"), "GGML_NO_BACKTRACE": "1"},
        )
        self._client = JsonClient(self.url, timeout, public.key, "llama.cpp")

    def post(self, path: str, **body: Any) -> Any:
        """The answer to a request, from JSON.

        Args:
            path: For example `/completion`.
            **body: What is asked.

        Raises:
            EngineUnavailable: llama.cpp has died, or doesn't answer in time.
            RunError: It refuses the request.
        """
        return self._asked(lambda client: client.post(path, **body))

    def get(self, path: str) -> Any:
        """See `post`."""
        return self._asked(lambda client: client.get(path))

    def stream(self, path: str, **body: Any) -> Iterator[Any]:
        """See `JsonClient.stream`, and `post` for what is raised."""
        try:
            yield from self._client.stream(path, **body)
        except Unreachable as error:
            raise self._gone(error) from None

    def _asked(self, ask: Callable[[JsonClient], Any]) -> Any:
        try:
            return ask(self._client)
        except Unreachable as error:
            raise self._gone(error) from None

    def _gone(self, error: Unreachable) -> EngineUnavailable:
        return self.died(f"gave {error}" if error.timed_out else "has died")
