"""Random damage of what a user gives: rows, command lines, run folders. It is used, or refused with a message."""

from __future__ import annotations

import json
import random
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gemma_tune.cli.compose import compose_config
from gemma_tune.config import DataConfig
from gemma_tune.config.data import FORMATS
from gemma_tune.data.split import split_rows
from gemma_tune.errors import UserError
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import ASSETS
from gemma_tune.validation.schema import FIELDS

_STRANGE: tuple[Any, ...] = (
    None, True, 0, -1, 2**70, 1e308, float("nan"), float("inf"), "", " ", "\x00", "\ud800", "<end_of_turn>", "a" * 9999,
    [], {}, [[]], [None], [{}], {"": ""}, {"role": "user"}, [{"role": "user", "content": None}], ["user", "hi"],
    "[{'role': 'user'}]", "{", "null", "🌍" * 50, b"\xff\xfe".decode("latin-1"),
)  # fmt: skip
_VALUES = (
    "", "null", "true", "-1", "0", "1e999", "nan", "inf", "9" * 400, "[", "]", "[1,", "{a: b}", "'", '"', "\\", "${a}",
    "${oc.env:HOME}", "a=b", "~", "*", "a,b", "choice(1,2)", "range(3)", "../..", "/dev/null", "/proc/self/mem", "🌍",
    "x" * 5000, "\n", "\t", "@", "!!python/object:os.system",
)  # fmt: skip


def rows_of(folder: Path | None) -> list[Path]:
    """Files of rows to begin with: the sample's, and those that people have, where they are at hand."""
    found = sorted((ASSETS / "sample").glob("*.jsonl"))
    if folder is not None:
        found += sorted(
            p for p in folder.rglob("*") if p.suffix in (".jsonl", ".json", ".csv") and p.stat().st_size < 9**6
        )
    return found


def _changed(value: Any, chance: random.Random) -> Any:
    """The value with one of its parts replaced, renamed or taken out."""
    if chance.random() < 0.3 or not isinstance(value, dict | list) or not value:
        return chance.choice(_STRANGE)
    if isinstance(value, list):
        i = chance.randrange(len(value))
        return [*value[:i], *([] if chance.random() < 0.2 else [_changed(value[i], chance)]), *value[i + 1 :]]
    key = chance.choice(list(value))
    rest = {k: v for k, v in value.items() if k != key}
    name = (
        key if chance.random() < 0.7 else chance.choice(("text", "messages", "label", "weight", "images", "\x00", ""))
    )
    return rest if chance.random() < 0.15 else {**rest, name: _changed(value[key], chance)}


def damaged_rows(file: Path, chance: random.Random) -> bytes:
    """The file's first rows with some of them changed, as JSON or byte by byte."""
    content = file.read_bytes()[:20_000]
    if chance.random() < 0.6 and file.suffix == ".jsonl":
        lines = content.decode("utf-8", "replace").splitlines()[: chance.randint(1, 4)]
        rows = []
        for line in lines:
            try:
                rows.append(json.dumps(_changed(json.loads(line), chance)))
            except ValueError:
                rows.append(line)
        return "\n".join(rows).encode("utf-8", "surrogatepass")
    changed = bytearray(content[: chance.randint(1, len(content))])
    for _ in range(chance.randint(0, 6)):
        at = chance.randrange(len(changed) + 1)
        changed[at : at + chance.randint(0, 3)] = bytes(chance.randrange(256) for _ in range(chance.randint(0, 4)))
    return bytes(changed)


def of_rows(chance: random.Random, files: list[Path], folder: Path) -> str | None:
    """Reads damaged rows; what went wrong, or None."""
    seed = chance.choice(files)
    file = folder / f"rows{seed.suffix}"
    file.write_bytes(damaged_rows(seed, chance))
    data = DataConfig(train_file=str(file), format=chance.choice(("auto", "auto", *FORMATS)))
    if data.format == "columns":
        data.prompt_column, data.completion_column = "prompt", "answer"
    data.on_bad_row = chance.choice(("error", "skip"))

    def read() -> None:
        split = split_rows(data, 0)
        for part in (split.train(), split.held_out()):
            list(part)

    return _outcome(read, f"{seed.name} as {data.format}: {file.read_bytes()[:400]!r}")


def of_words(chance: random.Random, files: list[Path], folder: Path) -> str | None:
    """Composes a damaged command line; what went wrong, or None."""
    recipe = chance.choice(
        ("lora_sft", "qlora_sft", "full_sft", "dpo", "kto", "grpo", "qat", "evaluate", "export", "chat", "preview")
    )
    words = []
    for _ in range(chance.randint(1, 3)):
        key = (
            chance.choice(list(FIELDS))
            if chance.random() < 0.8
            else chance.choice(
                ("model", "data", "train.extra.x", "hydra.run.dir", "~train", "+a", "++b.c", "@", "a.b.c.d")
            )
        )
        words.append(f"{key}={chance.choice(_VALUES)}")
    return _outcome(lambda: compose_config(recipe, words), f"{recipe}: {words!r}"[:600])


def of_folders(chance: random.Random, files: list[Path], folder: Path) -> str | None:
    """Opens a damaged run folder; what went wrong, or None."""
    cfg = compose_config("lora_sft", [f"output_dir={folder / 'run'}"])
    if not (folder / "run").is_dir():
        with RunFolder.open(cfg).recording():
            pass
    kept = {p: p.read_bytes() for p in (folder / "run").iterdir() if p.is_file()}
    target = chance.choice(sorted(kept))
    changed = bytearray(kept[target])
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(changed) + 1)
        changed[at : at + chance.randint(0, 9)] = chance.choice(
            (b"", b"{", b"null", b"\x00", b"[" * 50, b"\xff", b": ", b"\n- ")
        )
    target.write_bytes(bytes(changed))
    cfg.overwrite = chance.random() < 0.5
    try:
        return _outcome(lambda: RunFolder.open(cfg), f"{target.name}: {bytes(changed)[:300]!r}")
    finally:
        for file, content in kept.items():
            file.write_bytes(content)


def _outcome(act: Callable[[], Any], what: str) -> str | None:
    try:
        act()
    except UserError as error:
        return f"{what}: a message of {len(str(error)):,} characters" if len(str(error)) > 20_000 else None
    except Exception:
        return f"{what}: {traceback.format_exc()[-900:]}"
    return None


def fuzz(count: int, seed: int, folder: Path, test_data: Path | None) -> Iterator[str]:
    """Tries so many damaged inputs; yields those that ended in a traceback, or in a message that nobody reads."""
    chance, files = random.Random(seed), rows_of(test_data)
    for _ in range(count):
        way = chance.choices((of_rows, of_words, of_folders), (6, 3, 1))[0]
        if wrong := way(chance, files, folder):
            yield wrong
