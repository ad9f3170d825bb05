"""The unquantised model's probabilities: kept on disk, or computed live, and the loss against them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from gemma_tune.chat import Rendered
from gemma_tune.errors import UserError
from gemma_tune.models.unwrap import Logits

_POSITIONS = 256  # logits of so many positions stand in memory at once
_BATCH = 4096  # tokens that the teacher reads at once, padding included


class Targets(NamedTuple):
    """The largest probabilities at N positions.

    Attributes:
        ids: Token ids, int64, [N, K].
        log_probs: float32, [N, K]; what they leave to 1 belongs to all other tokens together.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor


def divergence(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """KL(targets ‖ model) in nats at each position, [N]: the kept tokens, and all others as one.

    Args:
        logits: The model's, float32, [N, V].
        targets: Of the same positions.
    """
    log_q = logits.log_softmax(-1).gather(-1, targets.ids)
    p = targets.log_probs.exp()
    kept = (p * (targets.log_probs - log_q)).sum(-1)
    if targets.ids.shape[-1] == logits.shape[-1]:
        return kept
    rest_p = (1 - p.sum(-1)).clamp_min(0.0)
    rest_q = (1 - log_q.exp().sum(-1)).clamp_min(1e-12)
    # A rest below what float16 can tell from nothing counts nothing
    rest = torch.where(rest_p > 1e-6, rest_p * (rest_p.clamp_min(1e-12).log() - rest_q.log()), 0.0)
    return kept + rest


def summed_divergence(hidden: torch.Tensor, logits: Logits, targets: Targets) -> torch.Tensor:
    """The sum of `divergence` over positions, without all logits at once.

    Args:
        hidden: Of the positions, [N, H].
        logits: The head.
        targets: Of the same positions.
    """

    def part(h: torch.Tensor, ids: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
        return divergence(logits(h), Targets(ids, log_probs)).sum()

    parts = zip(*(t.split(_POSITIONS) for t in (hidden, *targets)), strict=True)
    return torch.stack([checkpoint(part, *p, use_reentrant=False) for p in parts]).sum()


def summed_loss(hidden: torch.Tensor, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over positions, [N, H] and [N]."""

    def part(h: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits(h), t, reduction="sum")

    pairs = zip(hidden.split(_POSITIONS), labels.split(_POSITIONS), strict=True)
    return torch.stack([checkpoint(part, *p, use_reentrant=False) for p in pairs]).sum()


def row_key(ids: Sequence[int]) -> str:
    """What a row is called in the cache: a digest of its token ids."""
    return hashlib.blake2b(np.asarray(ids, dtype=np.int32).tobytes(), digest_size=16).hexdigest()


def top_targets(hidden: torch.Tensor, logits: Logits, k: int) -> Targets:
    """The K largest probabilities at N positions, [N, H]."""
    parts = []
    with torch.no_grad():
        for h in hidden.split(_POSITIONS):
            found = logits(h).float()
            top = found.topk(k, dim=-1)
            parts.append(Targets(top.indices, top.values - found.logsumexp(-1, keepdim=True)))
    return Targets(*(torch.cat(part) for part in zip(*parts, strict=True)))


class TeacherCache:
    """Targets on disk, a row after the other: `ids.bin` (int32), `log_probs.bin` (float16), `index.jsonl`, `meta.json`.

    A row is written whole or, after a kill, written again: what stands behind the last line of the index is cut off.

    Args:
        folder: Where it is, or is made.
        k: Probabilities a token.
        model: A digest of the model that gives them.
        tokenizer: A digest of its tokenizer.

    Raises:
        UserError: The folder holds the targets of another model, another tokenizer or another K.
    """

    def __init__(self, folder: Path, k: int, model: str, tokenizer: str) -> None:
        self.folder, self.k = folder, k
        meta = {"top_k": k, "model": model, "tokenizer": tokenizer}
        names = {"top_k": "another quant.teacher_top_k", "model": "another model", "tokenizer": "another tokenizer"}
        file = folder / "meta.json"
        if file.is_file():
            stored = json.loads(file.read_text(encoding="utf-8"))
            wrong = [names[key] for key, value in meta.items() if stored.get(key) != value]
            if wrong:
                raise UserError(
                    f"quant.teacher_folder={folder}: this cache is of {' and '.join(wrong)}; name another folder, or "
                    "delete this one."
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        self._places: dict[str, tuple[int, int]] = {}
        self._positions = 0
        index = folder / "index.jsonl"
        lines = index.read_text(encoding="utf-8").splitlines(keepends=True) if index.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]
        for line in whole:
            key, n = json.loads(line)
            self._places[key] = (self._positions, n)
            self._positions += n
        index.write_text("".join(whole), encoding="utf-8")
        for name, size in (("ids.bin", 4), ("log_probs.bin", 2)):
            with (folder / name).open("ab") as f:
                if f.tell() < self._positions * k * size:
                    raise UserError(f"quant.teacher_folder={folder}: {name} is cut off; delete the folder.")
                f.truncate(self._positions * k * size)

    def missing(self, rows: Iterable[Rendered]) -> list[Rendered]:
        """The rows that it doesn't hold, each once."""
        found = {key: row for row in rows if (key := row_key(row.input_ids)) not in self._places}
        return list(found.values())

    def add(self, row: Rendered, targets: Targets) -> None:
        """Writes the targets of a row's trained positions."""
        with (self.folder / "ids.bin").open("ab") as f:
            f.write(targets.ids.to(torch.int32).cpu().numpy().tobytes())
        with (self.folder / "log_probs.bin").open("ab") as f:
            f.write(targets.log_probs.to(torch.float16).cpu().numpy().tobytes())
        with (self.folder / "index.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps([row_key(row.input_ids), len(targets.ids)]) + "\n")
        self._places[row_key(row.input_ids)] = (self._positions, len(targets.ids))
        self._positions += len(targets.ids)

    def get(self, ids: Sequence[int]) -> Targets:
        """The targets of a row.

        Raises:
            KeyError: The row isn't there.
        """
        start, n = self._places[row_key(ids)]
        if n == 0:
            return Targets(torch.zeros((0, self.k), dtype=torch.long), torch.zeros((0, self.k)))
        arrays = [
            np.fromfile(self.folder / name, dtype, n * self.k, offset=start * self.k * np.dtype(dtype).itemsize)
            for name, dtype in (("ids.bin", np.int32), ("log_probs.bin", np.float16))
        ]
        token_ids, log_probs = (torch.from_numpy(a.reshape(n, self.k)) for a in arrays)
        return Targets(token_ids.long(), log_probs.float())

    @property
    def bytes_per_token(self) -> float:
        """Of disk, over the trained tokens."""
        return 6.0 * self.k


def fill_in_batches(
    cache: TeacherCache, rows: Iterable[Rendered], targets: Callable[[Sequence[Rendered]], Sequence[Targets]]
) -> int:
    """Computes what the cache lacks, the longest rows first; returns how many rows that were.

    Args:
        cache: The cache.
        rows: The rows that it must hold.
        targets: Gives the targets of some rows of like length.
    """
    missing = sorted(cache.missing(rows), key=lambda row: -len(row.input_ids))
    with tqdm(total=len(missing), desc="teacher", unit=" rows", disable=None, leave=False) as bar:
        start = 0
        while start < len(missing):
            count = max(1, _BATCH // len(missing[start].input_ids))
            batch = missing[start : start + count]
            for row, found in zip(batch, targets(batch), strict=True):
                cache.add(row, found)
            start += count
            bar.update(len(batch))
    return len(missing)


def digest_of(model: torch.nn.Module) -> str:
    """A digest of every weight, for the cache."""
    found = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        found.update(name.encode())
        found.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def digest_of_vocabulary(tokenizer: Any) -> str:
    """A digest of which token has which id."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return hashlib.blake2b(vocabulary.encode(), digest_size=16).hexdigest()
