"""Keys of fused layers that would be passed over are refused."""

from __future__ import annotations

import pytest

from gemma_tune.cli.compose import compose_config
from gemma_tune.errors import UserError

DECODED, FUSED = "model.keep_decoded=true", "model.fused_layers=true"


@pytest.mark.parametrize(
    ("recipe", "words", "said"),
    [
        ("qlora_sft", [FUSED, "train.torch_compile=true"], f"{FUSED}: train.torch_compile=true"),
        ("qlora_sft", [DECODED, "train.torch_compile=true"], f"{DECODED}: train.torch_compile=true"),
        ("qlora_sft", [DECODED, "model.fused_layers=false"], f"{DECODED}: it needs fused layers"),
        ("lora_sft", [DECODED], f"{DECODED}: no weights are in 4 bit"),
    ],
)
def test_what_would_be_passed_over(recipe: str, words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        compose_config(recipe, words)
    assert said in str(error.value) and "leave one of them out" in str(error.value)


def test_what_goes_together() -> None:
    assert compose_config("qlora_sft", [DECODED, FUSED]).model.keep_decoded
