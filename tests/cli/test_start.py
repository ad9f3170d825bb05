"""What a command doesn't import: a dry run and a comparison of runs wait for no library that neither of them needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from gemma_tune.cli.compose import compose_config
from gemma_tune.run.only_printed import as_yaml

# What takes half a second and more: training, adapters, 4-bit weights, torch's compiler, charts, trackers
NEVER = (
    "peft",
    "bitsandbytes",
    "torch._inductor.compile_fx",
    "trl",
    "wandb",
    "matplotlib.figure",
    "compressed_tensors",
)
WITHOUT_MODEL = ("torch", "datasets", "transformers.modeling_utils", "pandas", "sympy")

_CODE = """
import json, sys
from gemma_tune.cli.main import main
commands, modules = map(json.loads, sys.argv[1:])
for words in commands:
    status = main(words)
    print("IMPORTED", status, *sorted({*modules} & {*sys.modules}))
"""


def run_folder(folder: Path, seed: int) -> str:
    """A run that has measured one figure on 8 rows."""
    (folder / "eval").mkdir(parents=True)
    (folder / "config.yaml").write_text(as_yaml(compose_config("evaluate", [f"seed={seed}"])) + "\n", encoding="utf-8")
    (folder / "manifest.json").write_text('{"gemma_tune": "0.1.0"}', encoding="utf-8")
    (folder / "result.json").write_text('{"recipe": "evaluate", "status": "finished"}', encoding="utf-8")
    rows = [{"id": str(i), "score": float((i + seed) % 3 > 0)} for i in range(8)]
    measured = {"figures": {"test_exact_match": 0.5}, "rows": {"test_exact_match": rows}}
    (folder / "eval" / "after.json").write_text(json.dumps(measured), encoding="utf-8")
    return str(folder)


def test_what_is_not_imported(folder: Path) -> None:
    """In a process of its own, the comparison first: it imports less."""
    runs = ",".join(run_folder(folder / name, seed) for seed, name in enumerate(("a", "b")))
    compare = ["recipe=compare", f"compare.models=[{runs}]", f"output_dir={folder / 'compared'}", "tracker=none"]
    dry = ["recipe=qlora_sft", "dry_run=true", "data.max_train_samples=8", "data.validation_file=null"]
    given = [json.dumps([compare, dry]), json.dumps([*NEVER, *WITHOUT_MODEL])]
    done = subprocess.run([sys.executable, "-c", _CODE, *given], capture_output=True, text=True)
    found = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("IMPORTED")]
    assert [status for status, *_ in found] == ["0", "0"], done.stderr
    assert found[0][1:] == []
    assert "torch" in found[1] and not {*NEVER} & {*found[1]}
