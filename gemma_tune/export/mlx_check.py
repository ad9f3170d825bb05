"""The lines of the table about a folder for mlx-lm: read back, decoded by MLX, and run by mlx-lm on the CPU."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gemma_tune.child import python_module
from gemma_tune.export.file_tensor import row_blocks
from gemma_tune.export.int4_check import FAIL, OK, UNVERIFIED, WARN, CheckLine, stored_lines
from gemma_tune.export.mlx_folder import idle_tensors, stored_as_parts
from gemma_tune.export.read_back import StoredTensor
from gemma_tune.export.tensors import TrainedTensors, by_rows, decoded_blocks
from gemma_tune.export.transformers_check import TrainedForward
from gemma_tune.export.verify import ArtifactDiffers
from gemma_tune.models.unwrap import language_part
from gemma_tune.quant.grid import Encoded
from gemma_tune.quant.plan import Plan

# Gemma 3n amplifies float noise: in 22 layers of random weights to 6e-3
_MOST_LOGIT, _MOST_LOGIT_3N, _WARN_KL = 1e-3, 2e-2, 1e-4
_LOG_LINES = 8
_MISSING = "mlx-lm isn't installed: pip install 'gemma_tune[mlx]'"


def read_mlx(folder: Path, trained: TrainedTensors, config: Any) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of a folder, by their names in the language part; what is there besides under its own name.

    Args:
        folder: The folder.
        trained: Every tensor of the language part: its names and shapes.
        config: The language part's configuration.

    Raises:
        ArtifactDiffers: A file that can't be read, a layer without one of its parts, or a bias that is not the lowest
            code times the scale.
    """
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization"]
    files = _Files(folder)
    for name in trained:
        parts = stored_as_parts(name, by_rows(trained, name).shape, config.model_type)
        if not all(path in files.places for path in parts):
            continue  # the check names it
        shapes = [files.shape(path, sizes) for path in parts]
        whole = (*shapes[0][:-2], sum(shape[-2] for shape in shapes), shapes[0][-1]) if len(shapes) > 1 else shapes[0]
        for rows in row_blocks(whole):
            found = [_rows(files, path, sizes, rows) for path in parts]
            values = torch.cat([tensor.values for tensor in found], -2) if len(found) > 1 else found[0].values
            codes = [tensor.encoded for tensor in found if tensor.encoded is not None]
            joined = (torch.cat(p, -2) if len(p) > 1 else p[0] for p in zip(*codes, strict=True))
            encoded = Encoded(*joined) if codes else None
            yield name, StoredTensor(values, encoded, whole=whole)
    for path in sorted(files.places.keys() - files.used - idle_tensors(config).keys()):
        yield path, StoredTensor(torch.empty(0))


class _Files:
    """The tensors of the safetensors files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.used: set[str] = set()
        self.places: dict[str, Any] = {}
        for file in sorted(folder.glob("*.safetensors")):
            try:
                stored: Any = safe_open(file, framework="pt")
            except SafetensorError as error:
                raise ArtifactDiffers(f"{file}: it can not be read ({error}).") from error
            self.places |= {str(name): stored for name in stored.keys()}  # noqa: SIM118 (not a mapping)

    def read(self, path: str, rows: slice) -> torch.Tensor:
        """Some rows of one of them."""
        if path not in self.places:
            raise ArtifactDiffers(f"{path}: it is not there.")
        self.used.add(path)
        stored = self.places[path].get_slice(path)
        found: torch.Tensor = stored[rows] if stored.get_shape() else self.places[path].get_tensor(path)
        return found

    def shape(self, path: str, sizes: dict[str, Any]) -> tuple[int, ...]:
        """The shape of the weights that one of them holds."""
        shape = tuple(self.places[path].get_slice(path).get_shape())
        stem = path.removesuffix(".weight")
        if f"{stem}.scales" not in self.places:
            return shape
        return (*shape[:-1], shape[-1] * 32 // sizes.get(stem, sizes)["bits"])


def _rows(files: _Files, path: str, sizes: dict[str, Any], rows: slice) -> StoredTensor:
    """Some rows of a tensor, unpacked where it has scales: `scale · q + bias` in float32."""
    stem, stored = path.removesuffix(".weight"), files.read(path, rows)
    if f"{stem}.scales" not in files.places:
        return StoredTensor(stored.float())
    size = sizes.get(stem, sizes)
    bits = size["bits"]
    scales, biases = (files.read(f"{stem}.{part}", rows).float() for part in ("scales", "biases"))
    lowest = -(2 ** (bits - 1))
    if not torch.equal(biases, scales * lowest):
        raise ArtifactDiffers(f"{path}: its biases are not {lowest} times its scales.")
    words = stored.view(torch.int32).unsqueeze(-1)
    codes = (words >> torch.arange(0, 32, bits, dtype=torch.int32)) & (2**bits - 1)
    groups = codes.flatten(-2).unflatten(-1, (-1, size["group_size"]))
    values = (groups * scales.unsqueeze(-1) + biases.unsqueeze(-1)).flatten(-2)
    return StoredTensor(values, Encoded((groups.flatten(-2) + lowest).to(torch.int8), scales))


def folder_lines(
    name: str, folder: Path, logits: Path, forward: TrainedForward, trained: TrainedTensors, plan: Plan
) -> list[CheckLine]:
    """A folder read back, and `mlx_lines`, whose arguments these are."""
    config = language_part(forward.model).config
    stored = stored_lines(name, read_mlx(folder, trained, config), trained, plan)
    return [*stored, *mlx_lines(name, folder, logits, forward, trained, plan)]


def mlx_lines(
    name: str, folder: Path, logits: Path, forward: TrainedForward, trained: TrainedTensors, plan: Plan
) -> list[CheckLine]:
    """What MLX decodes and what mlx-lm computes, in a process of its own.

    Args:
        name: The format's name, for people.
        folder: The folder.
        logits: The file in which the trained model's logits are stored.
        forward: The trained model on some rows.
        trained: Every tensor of the language part.
        plan: Its plan.
    """
    text = language_part(forward.model).config
    most = _MOST_LOGIT_3N if text.model_type == "gemma3n_text" else _MOST_LOGIT
    must = f"the trained model's logits within {most:g}"
    run = f"{name} in mlx-lm, float32"
    if importlib.util.find_spec("mlx_lm") is None or importlib.util.find_spec("mlx") is None:
        return [CheckLine(run, must, "not run", UNVERIFIED, _MISSING)]
    asked = {"folder": str(folder), "rows": [list(row) for row in forward.rows], "logits": str(logits)}
    command = python_module("gemma_tune.export.mlx_run")
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    if done.returncode:
        log = "".join(f"\n  {line}" for line in done.stderr.splitlines()[-_LOG_LINES:])
        return [CheckLine(run, must, "not computed", FAIL, f"mlx-lm can't run what was exported. It said:{log}")]
    found = json.loads(done.stdout)
    return [_decoded_line(name, found["digests"], trained, plan, text), _logits_line(run, must, found, forward, most)]


def _decoded_line(name: str, digests: dict[str, str], trained: TrainedTensors, plan: Plan, config: Any) -> CheckLine:
    """Whether MLX decodes the numbers of the training forward."""
    problems, total = [], 0
    shared = getattr(config, "num_kv_shared_layers", None) or 0
    first = config.num_hidden_layers - shared if shared else config.num_hidden_layers
    for own in trained:
        shape = by_rows(trained, own).shape
        for path, rows in stored_as_parts(own, shape, config.model_type).items():
            if path not in digests and _of_shared(own, first):
                continue  # mlx-lm drops what the layers that share keys and values don't use
            total += 1
            digest = hashlib.sha256()
            for block in decoded_blocks(own, by_rows(trained, own).blocks, plan):
                part = block if rows == slice(None) else block[..., rows, :]
                digest.update(part.contiguous().numpy().tobytes())
            if digests.get(path) != digest.hexdigest():
                problems.append(f"{own}: {'other numbers' if path in digests else 'mlx-lm has no such tensor'}.")
    good = total - len(problems)
    return CheckLine(
        f"{name}: weights as MLX decodes them",
        "those of the training forward, to the bit",
        f"{good} of {total} tensors ({good / max(total, 1):.0%})",
        FAIL if problems or not total else OK,
        "".join(problems[:1]),
    )


def _of_shared(name: str, first: int) -> bool:
    parts = name.split(".")
    is_key = any(part in ("k_proj", "v_proj", "k_norm", "v_norm") for part in parts)
    return is_key and "layers" in parts and int(parts[parts.index("layers") + 1]) >= first


def _logits_line(name: str, must: str, found: dict[str, float], forward: TrainedForward, most: float) -> CheckLine:
    """The line of the logits; `factor_kl` is what mlx-lm's own rounding of the embedding's factor costs."""
    figures = f"{found['worst']:.2g} at {forward.positions} positions"
    verdict, problem = OK if found["worst"] <= most else FAIL, ""
    config = language_part(forward.model).config
    if config.model_type == "gemma2":
        verdict = WARN if verdict == OK else verdict
        problem = f"mlx-lm computes Gemma 2 without its window: other answers after {config.sliding_window} tokens."
    if kl := found.get("factor_kl"):
        figures += f"; as mlx-lm rounds the factor of the embedding to bfloat16 KL {kl:.2g}"
        if verdict == OK and kl > _WARN_KL:
            verdict = WARN
            problem = "mlx-lm computes with another factor of the embedding than Transformers in float32."
    return CheckLine(name, must, figures, verdict, problem)
