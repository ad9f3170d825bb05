"""The options of `model` with what is known of them before anything is downloaded."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoConfig

from gemma_tune.models.estimate.size import published_size
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.published import licence_of, published
from gemma_tune.plan.fits import Planner
from gemma_tune.plan.known_models import PlannedModel, options
from gemma_tune.plan.tables import parameters


def known_models() -> list[dict[str, Any]]:
    """Name, place on the Hub, family, parameters, context in tokens, licence and the least GB that QLoRA fits in."""
    planner, found = Planner(lambda cfg: cfg.model.dtype == "float32"), []
    for option, hub in options().items():
        entry, size = published(hub), published_size(hub)
        if entry is None or size is None:  # the embedded one
            continue
        family = FAMILIES[entry.model_type]
        smallest = planner.smallest_gpu(PlannedModel(f"model={option}", option, size, family), "qlora_sft")
        context = AutoConfig.for_model(entry.model_type, **entry.text).max_position_embeddings
        found.append(
            {"model": option, "hub": hub, "family": family.name, "parameters": size.parameters}
            | {"context": context, "licence": licence_of(hub, family.licence), "qlora_gb": smallest and smallest[0]}
        )
    return found


def show_list(out: Console, models: list[dict[str, Any]]) -> None:
    """Prints the models in 80 columns."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("model", "on the Hub: google/", "size", "context", "licence", "QLoRA"):
        table.add_column(name, justify="left" if name in ("model", "on the Hub: google/", "licence") else "right")
    for one in models:
        gb = f"{one['qlora_gb']} GB" if one["qlora_gb"] else "–"
        cells = (one["model"], one["hub"].removeprefix("google/"), parameters(one["parameters"]))
        table.add_row(*map(Text, (*cells, f"{one['context'] // 1024}K", one["licence"], gb)))
    out.print(table)
    out.print("Gemma's licence is accepted once, on the model's page. QLoRA: the least of 8, 16, 24, 32 and 80 GB.")
    out.print("HAI-DEF: Google's terms for Health AI Developer Foundations, accepted there likewise.")
