"""What parallel=fsdp2 refuses, by name, before a weight is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from every_recipe import write_rows

from gemma_tune.cli.compose import compose_config
from gemma_tune.errors import UserError
from gemma_tune.models.hardware import check_hardware

TWO = ["model=tiny", "launch.num_processes=2", "parallel=fsdp2"]


@pytest.mark.parametrize(
    ("recipe", "words", "said"),
    [
        ("qlora_sft", [], "4-bit base"),
        ("dpo", ["PAIRS", "adapter=lora"], "recipe=dpo: TRL computes the reference"),
        ("kto", ["LABELLED"], "recipe=kto: TRL computes the reference"),
        ("grpo", ["adapter=lora"], "can't write completions"),
        ("qat", [], "blocks are looked at as whole"),
        ("lora_sft", ["model.added_tokens=[<a>]"], "trained rows stand in the embedding"),
        ("lora_sft", ["adapter.trainable_token_indices=[7]"], "trained rows stand in the embedding"),
        ("lora_sft", ["adapter.init_lora_weights=pissa"], "init_lora_weights=pissa"),
        ("full_sft", ["train.optim=adamw_bnb_8bit"], "train.optim=adamw_bnb_8bit"),
        ("lora_sft", ["parallel.activation_checkpointing=true"], "checkpoints would hold none"),
        ("lora_sft", ["train.torch_compile=true"], "train.torch_compile"),
        ("full_sft", ["train.optim=adafactor"], "train.optim=adafactor"),
        (
            "full_sft",
            ["parallel.activation_checkpointing=true", "train.gradient_checkpointing=true"],
            "leave one of the two out",
        ),
    ],
)
def test_refused(recipe: str, words: list[str], said: str, tmp_path: Path) -> None:
    rows = {"PAIRS": "pairs", "LABELLED": "labelled"}
    given = [w for word in words for w in (write_rows(rows[word], tmp_path) if word in rows else [word])]
    with pytest.raises(UserError) as error:
        compose_config(recipe, [*TWO, *given])
    assert any("fsdp2" in problem or "parallel." in problem for problem in error.value.problems if said in problem)


@pytest.mark.parametrize(("words", "refused"), [([], True), (["dry_run=true"], False), (["model.device=cpu"], True)])
def test_needs_gpus(words: list[str], refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate passes over FSDP2 on a CPU without a word. A dry run may plan for another machine."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg = compose_config("lora_sft", [*TWO, *words])
    if not refused:
        return check_hardware(cfg)
    with pytest.raises(UserError, match="parallel=fsdp2 needs GPUs"):
        check_hardware(cfg)
    return check_hardware(compose_config("lora_sft", ["model=tiny", "parallel=fsdp2"]))  # one process shares nothing
