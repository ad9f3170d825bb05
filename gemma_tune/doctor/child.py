"""What is tried in a process of its own, since it may crash or hang: by its name in `TRIALS`.

Each result is one line of JSON on stdout, written as soon as it is known: `{"name": …, …}`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any


def torch() -> Iterator[dict[str, Any]]:
    """The build, the GPUs, what the processor computes fast, products in each type, and one in 4 bit."""
    import torch

    yield {"name": "torch", "version": torch.__version__, "cuda": torch.version.cuda or torch.version.hip}
    devices = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        major, minor = torch.cuda.get_device_capability(number)
        free, total = torch.cuda.mem_get_info(number)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        devices.append(
            {"name": properties.name, "capability": f"{major}.{minor}", "free": free, "total": total, "bf16": bf16}
            | {"fp8": (major, minor) >= (8, 9)}
        )
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "bf16") if capabilities.get(name)]
    yield {"name": "gpus", "devices": devices, "mps": torch.backends.mps.is_available(), "cpu": fast}
    device = "cuda" if devices else "cpu"
    yield {"name": "products", "device": device, "types": _products(torch, device)}
    yield {"name": "four_bit", "device": device, "error": _four_bit(torch, device)}


def _products(torch: Any, device: str) -> dict[str, bool]:
    """Whether a matrix product in each type is close to the one in float32."""
    found = {}
    torch.manual_seed(0)
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    for name in ("float32", "bfloat16"):
        kind = getattr(torch, name)
        product = (a.to(device, kind) @ b.to(device, kind)).float().cpu()
        found[name] = bool((product - a @ b).norm() < 0.02 * (a @ b).norm())
    return found


def _four_bit(torch: Any, device: str) -> float:
    """Relative error of a product with NF4 weights; about 0.1 where bitsandbytes works, with a backward pass."""
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(256, 128, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    weight = layer.weight.data.clone()
    layer = layer.to(device)
    x = torch.randn(8, 256, device=device, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    exact = x.detach().cpu() @ weight.T
    return float((y.detach().cpu() - exact).norm() / exact.norm())


def trainers() -> Iterator[dict[str, Any]]:
    """The libraries behind every training recipe can be imported together, with torchvision where it is installed."""
    from gemma_tune.models.towers.image_packages import broken_torchvision, torchvision_way

    start = time.monotonic()
    if said := broken_torchvision():
        yield {"name": "torchvision", "problem": said, "way": torchvision_way()}
        return
    import peft  # noqa: F401
    import transformers  # noqa: F401
    import trl
    from trl import SFTTrainer  # noqa: F401  (TRL imports lazily)

    yield {"name": "trainers", "version": trl.__version__, "seconds": time.monotonic() - start}


def llama() -> Iterator[dict[str, Any]]:
    """llama.cpp's library can be loaded."""
    import xllamacpp  # type: ignore[import-untyped]

    yield {"name": "llama", "version": getattr(xllamacpp, "__version__", ""), "server": hasattr(xllamacpp, "Server")}


def sandbox() -> Iterator[dict[str, Any]]:
    """The sandbox for code rewards runs a program."""
    from gemma_tune.errors import UserError
    from gemma_tune.rewards.sandbox_setup import find_sandbox

    try:
        find_sandbox()
        yield {"name": "sandbox", "problem": None}
    except UserError as error:
        yield {"name": "sandbox", "problem": str(error)}


def wandb() -> Iterator[dict[str, Any]]:
    """Whether a key of W&B is configured; nobody is asked."""
    os.environ.setdefault("WANDB_SILENT", "true")
    from gemma_tune.run.trackers import has_wandb_key

    yield {"name": "wandb", "key": has_wandb_key()}


def hub() -> Iterator[dict[str, Any]]:
    """The token, and whether it may read a gated Gemma."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    token = get_token()
    if token is None:
        yield {"name": "hub", "token": False, "user": None, "gated": None}
        return
    try:
        user = HfApi().whoami(token=token)["name"]
    except HfHubHTTPError as error:
        yield {"name": "hub", "token": True, "user": None, "problem": str(error).splitlines()[0], "gated": None}
        return
    try:
        HfApi().auth_check("google/gemma-3-1b-it", token=token)
        gated = True
    except GatedRepoError:
        gated = False
    except HfHubHTTPError:
        gated = None
    yield {"name": "hub", "token": True, "user": user, "gated": gated}


TRIALS = {trial.__name__: trial for trial in (torch, trainers, llama, sandbox, wandb, hub)}


def main(name: str) -> None:
    """Tries one thing, and writes what it finds."""
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print, too
    for found in TRIALS[name]():
        print(json.dumps(found), file=answer, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
