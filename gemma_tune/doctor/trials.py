"""Runs the trials of `child.py`, all at once, and says what they found."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from gemma_tune.child import python_module
from gemma_tune.doctor.findings import Finding, broken, limits, works

_INSTALL_TORCH = "Install a build for this machine: https://pytorch.org/get-started/locally"
_GIB = 2**30
_OF_4_BIT = 0.2  # relative error of a product with NF4 weights; about 0.1 where it works


@dataclass(frozen=True)
class Trial:
    """What a child process has said.

    Attributes:
        answers: Its lines, by name.
        problem: Why it ended early, in one line; None where it went to its end.
        slow: Whether it was ended because its time was up.
    """

    answers: dict[str, dict[str, Any]]
    problem: str | None = None
    slow: bool = False


def run_trials(names: Sequence[str], seconds: float) -> dict[str, Trial]:
    """Runs trials at once.

    Args:
        names: Those of `child.TRIALS`.
        seconds: How long each may take.
    """
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(lambda name: _run(name, seconds), names), strict=True))


def _run(name: str, seconds: float) -> Trial:
    command = python_module("gemma_tune.doctor.child", name)
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = child.communicate(timeout=seconds)
        slow = False
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
        slow = True
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    answers = {line["name"]: line for line in lines}
    if slow:
        return Trial(answers, f"no answer within {seconds:g} seconds", slow=True)
    if child.returncode:
        last = next((line for line in reversed(err.splitlines()) if line.strip()), "")
        signal = f"killed by signal {-child.returncode}" if child.returncode < 0 else last.strip()
        return Trial(answers, signal or f"exit status {child.returncode}")
    return Trial(answers)


def of_torch(trial: Trial, driver: str | None) -> Iterator[Finding]:
    """PyTorch, the GPUs or their absence, types, and 4-bit weights.

    Args:
        trial: What was found.
        driver: What nvidia-smi says of the driver; None without one.
    """
    torch = trial.answers.get("torch")
    if torch is None:
        yield _failed("PyTorch", trial, broken, _INSTALL_TORCH)
        return
    build = f"for CUDA {torch['cuda']}" if torch["cuda"] else "for CPUs"
    yield works("PyTorch", f"{torch['version']}, {build}")
    if (gpus := trial.answers.get("gpus")) is None:
        yield _failed("GPU", trial, broken, "Compare the driver with PyTorch's CUDA; CUDA_VISIBLE_DEVICES= hides it.")
        return
    yield from _gpus(gpus, driver, bool(torch["cuda"]))
    yield from _types(trial, gpus)
    yield _four_bit(trial)


def _gpus(found: dict[str, Any], driver: str | None, for_cuda: bool) -> Iterator[Finding]:
    for number, gpu in enumerate(found["devices"]):
        said = f"{gpu['name']}, {gpu['total'] / _GIB:.1f} GiB, {gpu['free'] / _GIB:.1f} free, capability "
        said += f"{gpu['capability']}{f', driver {driver}' if driver else ''}"
        if gpu["free"] < 0.5 * gpu["total"]:
            yield limits(f"GPU {number}", said, "Another program holds much of its memory: nvidia-smi lists them.")
        else:
            yield works(f"GPU {number}", said)
    if found["devices"]:
        return
    if driver and not for_cuda:
        yield limits("GPU", f"driver {driver}, but this PyTorch is for CPUs", _INSTALL_TORCH)
    elif driver:
        yield limits(
            "GPU",
            f"driver {driver}, but PyTorch can't use it",
            "Update the driver, or install the PyTorch build for it; look at CUDA_VISIBLE_DEVICES, too.",
        )
    elif found["mps"]:
        yield limits("GPU", "Apple's, by MPS", "gemma_tune trains on the CPU there: models up to 1B are practical.")
    else:
        yield limits("GPU", "none", "The embedded model and 270M train on a CPU; larger ones want a GPU.")


def _types(trial: Trial, gpus: dict[str, Any]) -> Iterator[Finding]:
    products = trial.answers.get("products")
    if products is None:
        yield _failed("dtypes", trial, broken, "A product of two matrices fails: compare the driver with PyTorch.")
        return
    if wrong := [name for name, right in products["types"].items() if not right]:
        yield broken("dtypes", f"products in {' and '.join(wrong)} are wrong", _INSTALL_TORCH)
        return
    gpus_have = [("bfloat16", all(g["bf16"] for g in gpus["devices"])), ("fp8", all(g["fp8"] for g in gpus["devices"]))]
    if not gpus["devices"]:
        fast = any(name in gpus["cpu"] for name in ("avx512_bf16", "amx_bf16", "bf16"))
        yield works("dtypes", f"float32, bfloat16 ({'fast' if fast else 'slower than float32'} on this processor)")
    elif not gpus_have[0][1]:
        yield limits("dtypes", "float32; this GPU has no bfloat16", "Set model.dtype=float32.")
    else:
        yield works("dtypes", f"float32, bfloat16{', fp8 (which no recipe uses)' if gpus_have[1][1] else ''}")


def _four_bit(trial: Trial) -> Finding:
    found = trial.answers.get("four_bit")
    way = "recipe=qlora_sft, model.load_in_4bit and 8-bit optimizers need it: pip install -U bitsandbytes"
    if found is None:
        return _failed("4-bit", trial, limits, way)
    if not found["error"] < _OF_4_BIT:
        return limits("4-bit", f"a product with NF4 weights is off by {100 * found['error']:.0f} %", way)
    off = f"is off by {100 * found['error']:.0f} %, as expected of 4 bit"
    return works("4-bit", f"bitsandbytes' NF4 product on the {found['device']} {off}")


def of_trainers(trial: Trial) -> Finding:
    """TRL with Transformers and PEFT, or the torchvision that keeps them from being imported."""
    if found := trial.answers.get("torchvision"):
        return broken("torchvision", found["problem"], found["way"])
    if found := trial.answers.get("trainers"):
        return works("trainers", f"TRL {found['version']}, imported in {found['seconds']:.1f} s")
    if trial.slow:
        return limits("trainers", f"importing TRL: {trial.problem}", "Is the disk or the machine busy? Try again.")
    return _failed(
        "trainers", trial, broken, "pip install -U trl transformers peft, or the versions of constraints.txt"
    )


def of_llama(trial: Trial) -> Finding:
    """llama.cpp by xllamacpp."""
    way = "Exports aren't run in llama.cpp without it: pip install 'gemma_tune[gguf]'"
    if found := trial.answers.get("llama"):
        return works("llama.cpp", f"xllamacpp {found['version']}".rstrip() + " can be loaded")
    return _failed("llama.cpp", trial, limits, way)


def of_sandbox(trial: Trial) -> Finding:
    """The sandbox for `reward.code`."""
    found = trial.answers.get("sandbox")
    if found is None:
        return _failed("sandbox", trial, limits, "Only reward.code needs it.")
    if found["problem"]:
        return limits("sandbox", "code rewards can't be used here", found["problem"].removeprefix("reward.code: "))
    return works("sandbox", "runs a program, for reward.code")


def of_wandb(trial: Trial) -> Finding:
    """W&B's key."""
    found = trial.answers.get("wandb")
    if found is None:
        return _failed("W&B", trial, limits, "Set tracker=none, or pip install -U wandb")
    if not found["key"]:
        return limits("W&B", "no key: runs are logged offline, in their folders", "wandb login, or tracker=none")
    return works("W&B", "a key is configured")


def of_hub(trial: Trial | None, why: str | None) -> Finding:
    """The Hub: network, token, and the licence of Gemma.

    Args:
        trial: What was found; None where it wasn't asked.
        why: Why it can't be asked; None where it can.
    """
    if why:
        return limits(
            "Hub", f"no network ({why})", "Models must be on this machine already: local folders, or the Hub's cache."
        )
    if trial is None:
        return limits("Hub", "not asked: doctor.hub=false", "Leave it out to know whether models can be fetched.")
    found = trial.answers.get("hub")
    if found is None:
        return _failed("Hub", trial, limits, "pip install -U huggingface_hub, or try again")
    if not found["token"]:
        return limits(
            "Hub", "answers; no token", "Gemma 1 to 3n are gated: hf auth login, or HF_TOKEN=…; Gemma 4 needs none."
        )
    if found["user"] is None:
        return limits("Hub", f"answers; the token is refused ({found['problem']})", "Make another one: hf auth login")
    page = "https://huggingface.co/google/gemma-3-1b-it"
    if found["gated"]:
        return works("Hub", f"answers; logged in as {found['user']}; the licence of Gemma 3 is accepted")
    return limits("Hub", f"answers; logged in as {found['user']}; Gemma 3 is not open to it", f"Accept it at {page}")


def _failed(name: str, trial: Trial, kind: Any, fix: str) -> Finding:
    if trial.slow:  # says nothing of the thing itself
        return limits(name, str(trial.problem), "The machine or its disk is busy, or it hangs: try doctor.timeout=120.")
    found: Finding = kind(name, trial.problem or "no answer", fix)
    return found
