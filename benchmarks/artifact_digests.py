"""What short runs of every recipe leave, as digests: the same before and after a change that should change nothing.

    cd OLD && OMP_NUM_THREADS=1 PYTHONPATH=tests .venv/bin/python benchmarks/artifact_digests.py write before.json
    cd NEW && OMP_NUM_THREADS=1 PYTHONPATH=tests .venv/bin/python benchmarks/artifact_digests.py write after.json
    .venv/bin/python benchmarks/artifact_digests.py compare before.json after.json

`write before.json NAME...` makes only these runs of `tests/every_recipe.py`. Digests are comparable on one machine with
one set of versions. `compare` ends with status 1 where a run differs, and lists what.

Beside the recipes' runs, `recipe=export` writes the embedded model in every quantization format and file format.

Taken are every `*.safetensors` outside checkpoints as the digest of the whole file, GGUF files by tensor (name, type,
shape, bytes) because their metadata may gain entries, and every figure of metrics.jsonl, eval/*.json and
result.json but times.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

# Times, addresses and what differs from run to run.
NOT_COMPARED = ("seconds", "time", "memory", "per_second", "runtime", "flops", "finished", "path", "folder", "mfu")
EXPORTS = {
    "export, q4_0": ["quant=q4_0", "export.formats=[gguf,gguf_bf16,w4a16,merged]"],
    "export, q4_0_embedding": ["quant=q4_0_embedding", "export.formats=[gguf,w4a16,merged]"],
    "export, q4_0_fp16": ["quant=q4_0_fp16", "export.formats=[gguf,gguf_f32,w4a16,merged]"],
    "export, q3_0": ["quant=q3_0", "export=merged"],
}


def tensors_of_gguf(file: Path) -> dict[str, str]:
    """Tensor name → type, shape and SHA-256 of its bytes."""
    from gguf import GGUFReader

    return {
        t.name: f"{t.tensor_type.name} {[int(n) for n in t.shape]} {hashlib.sha256(t.data.tobytes()).hexdigest()}"
        for t in GGUFReader(str(file)).tensors
    }


def metadata_of_gguf(file: Path) -> dict[str, str]:
    """Key → SHA-256 of its parts: `compare` asks only that no entry is lost or changed."""
    from gguf import GGUFReader

    own = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count")
    return {
        name: hashlib.sha256(b"".join(part.tobytes() for part in field.parts)).hexdigest()
        for name, field in GGUFReader(str(file)).fields.items()
        if name not in own
    }


def figures_of(value: Any) -> Any:
    """A JSON value without what depends on the clock or the place."""
    if isinstance(value, dict):
        return {k: figures_of(v) for k, v in value.items() if not any(word in k for word in NOT_COMPARED)}
    return [figures_of(v) for v in value] if isinstance(value, list) else value


def digests_of(folder: Path) -> dict[str, Any]:
    """All that is compared of a run folder."""
    found: dict[str, Any] = {
        "safetensors": {},
        "gguf": {},
        "gguf metadata": {},
        "metrics": {},
        "eval": {},
        "result": {},
    }
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(file.relative_to(folder))
        if "checkpoints/" in name or "teacher/" in name:
            continue
        if file.suffix == ".safetensors":
            found["safetensors"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
        elif file.suffix == ".gguf":
            found["gguf"][name] = tensors_of_gguf(file)
            found["gguf metadata"][name] = metadata_of_gguf(file)
        elif file.name == "metrics.jsonl":
            found["metrics"][name] = [figures_of(json.loads(line)) for line in file.read_text("utf-8").splitlines()]
        elif file.parent.name == "eval" and file.suffix == ".json":
            whole = json.loads(file.read_text("utf-8"))
            rows = {
                k: [{x: row.get(x) for x in ("id", "score", "weight")} for row in v] for k, v in whole["rows"].items()
            }
            answers = [row.get("answer") for row in whole["answers"]]
            found["eval"][name] = {"figures": figures_of(whole["figures"]), "rows": rows, "answers": answers}
        elif file.name == "result.json":
            whole = json.loads(file.read_text("utf-8"))
            found["result"][name] = {k: figures_of(whole[k]) for k in ("status", "headline", "metrics")}
    return found


def write(target: Path, names: list[str]) -> None:
    """Makes the runs and writes what they leave, run by run."""
    from every_recipe import SHORT_RUNS, make_short_run

    import gemma_tune

    done = json.loads(target.read_text("utf-8")) if target.is_file() else {}
    with tempfile.TemporaryDirectory() as place:
        for name in names or [*SHORT_RUNS, *EXPORTS]:
            folder = Path(place) / name.replace(", ", "-")
            if name in EXPORTS:
                words = [
                    "model=tiny",
                    "tracker=none",
                    "data.max_eval_samples=4",
                    "eval=none",
                    f"output_dir={folder}",
                    *EXPORTS[name],
                ]
                gemma_tune.run("export", words)
            else:
                make_short_run(name, folder)
            done[name] = digests_of(folder)
            target.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def differences(before: Any, after: Any, where: str = "", may_grow: bool = False) -> list[str]:
    """Where two values differ, as paths; with `may_grow` an entry that only `after` has is no difference."""
    may_grow = may_grow or where.endswith("gguf metadata")
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(k for k in after if k not in before and not may_grow)]
        return [
            line
            for key in keys
            for line in (
                differences(before[key], after[key], f"{where}/{key}", may_grow)
                if key in before and key in after
                else [f"{where}/{key}: only {'before' if key in before else 'after'}"]
            )
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            line
            for n, pair in enumerate(zip(before, after, strict=True))
            for line in differences(*pair, f"{where}/{n}", may_grow)
        ]
    return [] if before == after else [f"{where}: {str(before)[:90]} → {str(after)[:90]}"]


def main() -> None:
    """`write FILE [NAME...]` or `compare BEFORE AFTER`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("action", choices=["write", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("others", nargs="*")
    words = parser.parse_args()
    if words.action == "write":
        write(words.file, words.others)
        return
    before, after = (json.loads(Path(f).read_text("utf-8")) for f in (words.file, words.others[0]))
    differ = False
    for name in [n for n in before if n in after]:
        found = differences(before[name], after[name])
        differ |= bool(found)
        print(f"{name}: {'equal' if not found else f'{len(found)} differences'}", *found[:20], sep="\n    ")
    for name in before.keys() ^ after.keys():
        print(f"{name}: not in both files")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
