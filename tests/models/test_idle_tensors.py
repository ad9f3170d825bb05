"""Keys and values of layers that use those of others: checkpoints hold them or don't, and both load."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_models
import torch
from grid_models import source_of
from safetensors.torch import load_file, save_file

from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.export.transformers_folder import whole_checkpoint
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.language_part import check_files
from gemma_tune.models.load import family_of, load_config, load_tokenizer
from gemma_tune.models.load_weights import load_base

SHARING = [f".layers.{i}.self_attn." for i in (4, 5)]
IDS = torch.arange(10, 40)[None]


@pytest.mark.parametrize("name", ["gemma3n", "gemma4_e2b"])
def test_checkpoints_with_and_without_them(name: str, tmp_path: Path) -> None:
    """As most checkpoints are published, and as Google's QAT checkpoints are; an export has what its checkpoint has."""
    folder = small_models.save(name, tmp_path)
    file, source = folder / "model.safetensors", source_of(folder)
    options = ModelConfig(str(folder), dtype="float32", device="cpu")
    whole = load_file(file)
    idle = [
        n for n in whole if any(part in n for part in SHARING) and n.split(".")[-2] in ("k_proj", "v_proj", "k_norm")
    ]
    assert len(idle) == 6
    logits = []
    for kept in (whole, {n: t for n, t in whole.items() if n not in idle}):
        save_file(kept, file, metadata={"format": "pt"})
        check_files(options, source, load_config(source))
        model = load_base(options, source, load_tokenizer(source))
        with torch.no_grad():
            logits.append(model(input_ids=IDS).logits)
        own = {n: p for n, p in model.named_parameters() if n != "lm_head.weight"}
        written = dict(whole_checkpoint(own, CheckpointFiles.of(source, family_of(source))))
        assert written.keys() == kept.keys()
        assert all(torch.equal(written[n], kept[n]) for n in kept)
    assert torch.equal(*logits)

    used = next(n for n in whole if "language_model.layers.0.self_attn.k_proj" in n)
    save_file({n: t for n, t in whole.items() if n != used}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing in the files .*layers.0.self_attn.k_proj"):
        check_files(options, source, load_config(source))
