"""The lines of the table that Transformers gives: a folder, loaded there and compared with the trained model."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gemma_tune.child import python_module
from gemma_tune.errors import RunError
from gemma_tune.export.int4_check import FAIL, OK, CheckLine
from gemma_tune.export.llama_arithmetic import as_llama_cpp, towers_as_llama_cpp
from gemma_tune.export.plain_transformers import largest_difference, stored_logits
from gemma_tune.models.logits import float32_layers, logits_of, states_of
from gemma_tune.models.towers.towers import Media, open_towers, seeing
from gemma_tune.models.unwrap import language_part
from gemma_tune.progress import phase
from gemma_tune.quant.layers import forget_rounded, rounding_anew

_MOST_LOGIT = 1e-5
_LOG_LINES = 8


Precise = Callable[[Any], contextlib.AbstractContextManager[None]]


class TrainedForward:
    """A model on the rows of the check; the body is computed once, in float32, for all lines that compare with it.

    Args:
        model: The model, or a PeftModel around it; it is not changed.
        rows: Token ids.
        precise: Within it, the model computes in float32.
        never: Tokens that the engine compared with never gives.
    """

    def __init__(
        self, model: Any, rows: Sequence[Sequence[int]], precise: Precise | None = None, never: Sequence[int] = ()
    ) -> None:
        self.model, self.rows, self._precise, self._never = model, rows, precise or in_float32, list(never)
        self.positions = sum(map(len, rows))
        self._file: Path | None = None

    @property
    def device(self) -> str:
        """Where the model is."""
        return str(self.model.get_input_embeddings().weight.device)

    @cached_property
    def _states(self) -> torch.Tensor:
        with self._precise(self.model), rounding_anew(self.model):
            return states_of(self.model, self.rows)

    def logits(self) -> Iterator[torch.Tensor]:
        """Logits after each token of each row, float32, some positions at a time, [T, V]."""
        if self._file is not None:
            yield from stored_logits(self._file, self.positions)
            return
        states = self._states
        with self._precise(self.model):
            for logits in logits_of(self.model, states):
                logits[:, self._never] = -torch.inf
                yield logits
                del logits  # before the next ones are computed
        forget_rounded(self.model)

    def logits_with_media(self, row: Sequence[int], media: Media, start: int) -> torch.Tensor:
        """Logits after each token of a row from `start` on, float32 on the CPU, [T - start, V].

        Args:
            row: Token ids, with soft tokens.
            media: What the towers take; they compute as llama.cpp does.
            start: The first place.
        """
        towers = open_towers(self.model).whole
        with self._precise(self.model), _floats(towers), towers_as_llama_cpp(towers), rounding_anew(self.model):
            with seeing(self.model, media):
                states = states_of(self.model, [row])[start:]
            found = torch.cat([logits.cpu() for logits in logits_of(self.model, states)])
        forget_rounded(self.model)
        return found

    def in_llama_cpp(self) -> TrainedForward:
        """The same model and rows with llama.cpp's arithmetic, in which its files are compared."""

        @contextlib.contextmanager
        def precise(model: Any) -> Iterator[None]:
            with self._precise(model), as_llama_cpp(model):
                yield

        return TrainedForward(
            self.model, self.rows, precise, getattr(self.model.generation_config, "suppress_tokens", None) or ()
        )

    @contextlib.contextmanager
    def stored_in(self, file: Path) -> Iterator[None]:
        """Within it, the logits are computed no more but read from this file."""
        try:
            with file.open("wb") as stored:
                for logits in self.logits():
                    logits.cpu().numpy().tofile(stored)
                    del logits  # before the next ones are computed
            self._file = file
            yield
        finally:
            self._file = None
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Converts every weight to float32, in which exports are compared; afterwards the model is as it was."""
    kept = any(p.dtype != torch.float32 for p in model.parameters())
    with _exact_scale(model) if kept else contextlib.nullcontext(), _floats(model):
        yield


@contextlib.contextmanager
def _floats(module: nn.Module) -> Iterator[None]:
    """Within it, every parameter is float32."""
    kept = [(p, p.data) for p in module.parameters() if p.dtype != torch.float32]
    try:
        for parameter, data in kept:
            parameter.data = data.float()
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


@contextlib.contextmanager
def layers_in_float32(model: Any) -> Iterator[None]:
    """Each layer computes in float32, 4-bit ones and adapters, too, and holds float32 weights only while it runs."""
    with _exact_scale(model), float32_layers(model):
        yield


@contextlib.contextmanager
def _exact_scale(model: Any) -> Iterator[None]:
    """The factor of the embedding in float32: bfloat16 rounds it, and engines don't."""
    embedding = language_part(model).get_input_embeddings()
    embedding = getattr(embedding, "original_module", embedding)  # under trained rows of added tokens
    scale = embedding.embed_scale.data
    embedding.embed_scale.data = torch.tensor(embedding.embedding_dim**0.5, device=scale.device)
    try:
        yield
    finally:
        embedding.embed_scale.data = scale


def transformers_line(what: str, folder: Path, forward: TrainedForward) -> CheckLine:
    """Loads a folder with plain Transformers in float32 and compares logits with the trained model's own.

    Args:
        what: The format's name, for people.
        folder: The folder.
        forward: The trained model on some rows.
    """
    return _line(what, largest_difference(folder, forward.rows, forward.logits(), forward.device), forward)


def transformers_lines(folders: Mapping[str, Path], logits: Path, forward: TrainedForward) -> list[CheckLine]:
    """`transformers_line` of several folders, by their formats' names, in a process of its own.

    Args:
        folders: The folders.
        logits: The file in which the trained model's logits are stored.
        forward: The trained model on some rows.

    Raises:
        RunError: Transformers can't load a folder or compute with it.
    """
    if not folders:
        return []
    phase(f"checking {', '.join(folders)}: in Transformers")
    asked = {
        "folders": [str(folder) for folder in folders.values()],
        "rows": [list(row) for row in forward.rows],
        "logits": str(logits),
        "device": forward.device,
        "threads": torch.get_num_threads(),
    }
    command = python_module("gemma_tune.export.plain_transformers")
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    if done.returncode:
        log = "".join(f"\n  {line}" for line in done.stderr.splitlines()[-_LOG_LINES:])
        raise RunError(f"Transformers can't run what was exported ({', '.join(folders)}). It said:{log}")
    return [_line(what, worst, forward) for what, worst in zip(folders, json.loads(done.stdout), strict=True)]


def _line(what: str, worst: float, forward: TrainedForward) -> CheckLine:
    return CheckLine(
        f"{what} in Transformers, float32",
        f"the trained model's logits within {_MOST_LOGIT:g}",
        f"{worst:.2g} at {forward.positions} positions",
        OK if worst <= _MOST_LOGIT else FAIL,
    )
