"""The known models, how to get one, and what is in one: `models`. No weights are loaded."""

from __future__ import annotations

from rich.console import Console

from gemma_tune.catalog.fetching import fetch, name_on_hub
from gemma_tune.catalog.inspection import inspect
from gemma_tune.catalog.listing import known_models, show_list
from gemma_tune.config import Config
from gemma_tune.plan.known_models import options
from gemma_tune.run.only_printed import only_printed
from gemma_tune.run.result import RunResult


def run(cfg: Config) -> RunResult:
    """Lists, fetches or inspects; there is no run folder."""
    asked, out = cfg.models, Console(highlight=False)
    result = RunResult(cfg.recipe, status="finished")
    if cfg.dry_run:
        return only_printed(cfg, out, "Nothing was fetched or looked at")
    if asked.fetch is not None:
        name = name_on_hub("models.fetch", asked.fetch)
        out.print(f"Fetching {name} …", markup=False)
        folder = fetch(name, asked.revision)
        out.print(f"It is here: {folder}", markup=False, soft_wrap=True)
        command = f"python -m gemma_tune recipe=qlora_sft model.model_name_or_path={name}"
        out.print(f"Next: {command}", markup=False, soft_wrap=True)
        result.artifacts["model"] = str(folder)
    elif asked.inspect is not None:
        facts, problems = inspect(options().get(asked.inspect, asked.inspect), asked.revision)
        for key, fact in facts.items():
            out.print(f"{key:12} {fact}", markup=False, soft_wrap=True)
        for problem in problems:
            out.print(f"✗ {problem}", markup=False, soft_wrap=True)
        if not problems:
            out.print("✓ Nothing is wrong with its files; numbers are looked at when it is loaded.")
        result.metrics = {"facts": facts, "problems": problems}
        result.failures = {"models.inspect": f"{len(problems)} problem(s), see above"} if problems else {}
    else:
        found = known_models()
        show_list(out, found)
        out.print("Take one with model=NAME; models.fetch=NAME downloads, models.inspect=NAME looks at one.")
        result.metrics["models"] = found
    return result
