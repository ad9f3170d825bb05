"""Whether this machine can train, measure and export: `doctor`. It changes nothing."""

from __future__ import annotations

import time

from huggingface_hub.constants import HF_HUB_CACHE
from rich.console import Console

from gemma_tune.config import Config
from gemma_tune.doctor import machine, packages, trials
from gemma_tune.doctor.driver import nvidia_driver
from gemma_tune.doctor.findings import Finding, State, show
from gemma_tune.models.hub import no_network
from gemma_tune.run.only_printed import only_printed
from gemma_tune.run.paths import resolve
from gemma_tune.run.result import RunResult


def run(cfg: Config) -> RunResult:
    """Prints what works; `metrics["findings"]` of the result holds it. There is no run folder."""
    doctor, out, start = cfg.doctor, Console(highlight=False), time.monotonic()
    if cfg.dry_run:
        return only_printed(cfg, out, "Nothing was tried")

    # What may crash or hang is tried in processes of its own, all at once
    why = no_network() if doctor.hub else None
    asked = ["hub"] if doctor.hub and not why else []
    tried = trials.run_trials(["torch", "trainers", "llama", "sandbox", "wandb", *asked], doctor.timeout)

    found: list[Finding] = [
        *machine.machine(),
        *trials.of_torch(tried["torch"], nvidia_driver(doctor.timeout)),
        *packages.packages(),
        trials.of_trainers(tried["trainers"]),
        trials.of_hub(tried.get("hub"), why),
        *machine.disks(resolve(HF_HUB_CACHE)),
        trials.of_llama(tried["llama"]),
        *packages.engines(),
        trials.of_sandbox(tried["sandbox"]),
        trials.of_wandb(tried["wandb"]),
    ]
    show(found, out)

    # A run can work where nothing is broken; what is missing for some recipes alone is no failure
    bad = [one for one in found if one.state is State.BROKEN]
    few = sum(one.state is State.LIMITS for one in found)
    out.print(f"\n{len(found) - few - len(bad)} work, {few} limit what can be used, {len(bad)} are broken.", end=" ")
    out.print(f"{time.monotonic() - start:.1f} seconds.")
    if not bad:
        out.print("A first run: python -m gemma_tune recipe=qlora_sft")
    result = RunResult(cfg.recipe, status="failed" if bad else "finished")
    result.metrics["findings"] = [one.row() for one in found]
    result.failures = {one.name: one.said for one in bad}
    return result
