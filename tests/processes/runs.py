"""Runs of several recipes one after the other, in one process or in each of several: `python runs.py CASES.json`.

Importing torch, TRL and PEFT takes longer than a short run, so each process makes all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH is set it is not there

SHORT = [
    "model=tiny", "model.dtype=float32", "tracker=none", "train.bf16=false", "train.optim=sgd", "train.max_steps=5",
    "train.logging_steps=1", "train.save_steps=1", "train.save_total_limit=null", "train.lr_scheduler_type=constant",
    "train.warmup_steps=0", "data.max_train_samples=64", "data.max_eval_samples=5", "eval.max_samples=5",
    "eval.evaluators=[]", "eval.num_samples=0", "eval.max_new_tokens=8", "export=none",
]  # fmt: skip
# docs/speed.md, as they are on a CPU and, the last, with much to render
ALL_ON = [
    "train.tiled_head=true", "train.compact_batches=true", "model.attn_implementation=by_document",
    "model.layers_at_labels=true", "model.fused_layers=true", "train.keep_freed_memory=true",
    "data.dataset_num_proc=2",
]  # fmt: skip


def started(processes: int, cases: dict[str, list[str]], folder: Path, timeout: float = 900) -> dict[str, Path]:
    """Starts the processes, each of which makes all runs.

    Args:
        processes: How many.
        cases: The recipe and the words of each run, by its name.
        folder: Where the run folders are made.
        timeout: Seconds.

    Returns:
        The run folders by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), __file__, str(folder / "cases.json")]
    threads = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=os.environ | threads, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-8000:]
    return {name: folder / name for name in cases}


def steps(folder: Path) -> list[dict[str, Any]]:
    """What a run logged at each step."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "loss" in line]


def weights(checkpoint: Path) -> dict[str, Any]:
    """The trained weights of a checkpoint, float64."""
    import torch
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    if (shards := checkpoint / "pytorch_model_fsdp_0").is_dir():
        dcp_to_torch_save(shards, whole := checkpoint.parent / "whole.pt")
        return {name: tensor.double() for name, tensor in torch.load(whole)["model"].items()}
    file = next(p for p in (checkpoint / "adapter_model.safetensors", checkpoint / "model.safetensors") if p.is_file())
    return {name: tensor.double() for name, tensor in load_file(file).items()}


def assert_equal(name: str, one: Path, two: Path, norms: int | None = None) -> None:
    """Losses to 1e-6, the first step's gradients to 1e-5, weights after 5 steps of SGD to 1e-5; AdamW to 1e-4.

    Args:
        name: Of the case.
        one: The run of one process.
        two: That of two.
        norms: Steps whose gradient norms are compared; None: all.
    """
    import torch

    expected, found = steps(one), steps(two)
    loss, other = (1e-4, 1e-3) if name == "adamw" else (1e-6, 1e-5)
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in expected], rel=loss, abs=loss)
    of_one, of_two = ([line["grad_norm"] for line in lines[:norms]] for lines in (expected, found))
    assert of_two == pytest.approx(of_one, rel=other)
    assert [line.get("num_tokens") for line in found] == [line.get("num_tokens") for line in expected]
    if name == "adamw":
        return
    first, second = (torch.load(folder.parent / "gradients" / name / "gradients.pt") for folder in (one, two))
    assert len(first) == len(second) > 0
    assert max((a - b).abs().max().item() for a, b in zip(first, second, strict=True)) <= 1e-5
    ones, twos = (weights(folder / "checkpoints" / "step-5") for folder in (one, two))
    assert ones.keys() <= twos.keys()  # spread weights hold the tied head under its own name, too
    for key, value in ones.items():
        assert (value - twos[key]).abs().max().item() <= 1e-5, key


def _fix_completions() -> None:
    """Completions that depend on the prompt and on their place among those of all processes alone."""
    from gemma_tune import processes
    from gemma_tune.rl.trainer import RewardedTrainer

    def generate(self: Any, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        first = processes.rank() * len(prompt_ids)
        ids = [
            [(sum(prompt) * (7 + first + i) + 11 * k) % 1000 + 200 for k in range(6)] + [self.eos_token_ids[0]]
            for i, prompt in enumerate(prompt_ids)
        ]
        return ids, None

    RewardedTrainer._generate_single_turn = generate  # type: ignore[method-assign]


def _keep_gradients(folder: Path) -> None:
    """Keeps the gradients of the first step of SGD, as the optimizer takes them, in `gradients.pt`."""
    import torch

    from gemma_tune import processes

    own = getattr(torch.optim.SGD, "own_step", torch.optim.SGD.step)
    torch.optim.SGD.own_step = own  # type: ignore[attr-defined]
    kept: set[Path] = set()

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        file = folder / "gradients.pt"
        if file not in kept:
            kept.add(file)
            found = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            whole = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in found]
            if processes.is_main_process():
                torch.save([g.double() for g in whole], file)
        return own(self, *args, **kwargs)

    torch.optim.SGD.step = step  # type: ignore[method-assign]


def main(file: Path) -> None:
    """Makes the runs of a file of cases."""
    import gemma_tune

    pytest.MonkeyPatch().setattr("gemma_tune.report.draw_curves", lambda panels, file: None)
    cases = json.loads(file.read_text("utf-8"))
    if any("parallel=fsdp2" in words for words in cases.values()):
        import fsdp_on_cpu

        fsdp_on_cpu.enable()
    for name, (recipe, *words) in cases.items():
        folder = file.parent / "gradients" / name
        folder.mkdir(parents=True, exist_ok=True)
        _keep_gradients(folder)
        if recipe == "grpo":
            _fix_completions()
        every = {w.split("=", 1)[0]: w for w in [*SHORT, f"output_dir={file.parent / name}", *words]}
        gemma_tune.run(recipe, list(every.values()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
