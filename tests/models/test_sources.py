"""Where weights come from: folders, runs, adapters, checkpoints with an image tower; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from short_runs import short_run
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
)

from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models.estimate.size import size_of
from gemma_tune.models.load import check_vocabulary, load_config, load_tokenizer
from gemma_tune.models.load_weights import load_base
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"


def model_config(folder: Path) -> ModelConfig:
    return ModelConfig(model_name_or_path=str(folder), dtype="float32", device="cpu")


def base_of(folder: Path) -> Any:
    config = model_config(folder)
    source = find_source(config)
    return load_base(config, source, load_tokenizer(source))


def copy_of_tiny(folder: Path) -> Path:
    return Path(shutil.copytree(TINY, folder))


@pytest.fixture
def checkpoint_with_images(tmp_path: Path) -> Path:
    """A small random checkpoint of the form of the 4B and larger."""
    text = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    torch.manual_seed(1)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=13)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "whole")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def test_language_part_of_a_checkpoint_with_images(checkpoint_with_images: Path) -> None:
    """The 4B and larger: the text model alone gives the logits of the whole, and no weight stays random."""
    whole = Gemma3ForConditionalGeneration.from_pretrained(checkpoint_with_images, dtype=torch.float32).eval()
    part = base_of(checkpoint_with_images).eval()
    assert type(part).__name__ == "Gemma3ForCausalLM"
    ids = torch.arange(20, 60).unsqueeze(0)
    with torch.no_grad():
        assert torch.allclose(part(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-5)


@pytest.mark.slow
def test_adapter_fits_the_published_model_with_images(checkpoint_with_images: Path, tmp_path: Path) -> None:
    """Trained on the language part alone, put on the whole model by plain PEFT: the logits are those of the export."""
    words = [f"model.model_name_or_path={checkpoint_with_images}", "model.dtype=float32", "export.dtype=float32"]
    short_run("lora_sft", tmp_path / "run", *words, "train.learning_rate=1e-2", "eval.num_samples=0", steps=4)
    whole = Gemma3ForConditionalGeneration.from_pretrained(checkpoint_with_images, dtype=torch.float32).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export" / "merged").eval()
    ids = torch.arange(20, 60).unsqueeze(0)
    with torch.no_grad():
        base = whole(input_ids=ids).logits
        found = PeftModel.from_pretrained(whole, str(tmp_path / "run" / "adapter")).eval()(input_ids=ids).logits
        assert torch.allclose(found, merged(input_ids=ids).logits, atol=1e-4)
    assert (found - base).abs().max() > 0.05
    assert not any("vision" in n for n, _ in whole.named_modules() if "lora_A" in n)
    again = short_run("lora_sft", tmp_path / "more", f"model.model_name_or_path={tmp_path / 'run'}", words[1],
                      "eval.num_samples=0", "export=none", steps=1)  # fmt: skip
    first = json.loads((tmp_path / "run" / "eval" / "after.json").read_text("utf-8"))["figures"]["held_out_loss"]
    assert again.metrics["before"]["held_out_loss"] == pytest.approx(first, rel=1e-5)


def test_a_tokenizer_with_tokens_that_are_never_used(tmp_path: Path) -> None:
    """The published 270M and 1B: their tokenizers hold image tokens above the embedding's rows."""
    folder = copy_of_tiny(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    model = base_of(folder)
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings + 1
    with pytest.raises(UserError, match="token id 1536, and the embedding has only 1536 rows"):
        check_vocabulary(model, [5, 1536])


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing.*layers\.2\.mlp\.up_proj"):
        base_of(folder)


def test_a_folder_of_another_family_is_refused(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "m")
    LlamaConfig().save_pretrained(folder)
    with pytest.raises(UserError, match="model_type is llama; known are gemma, gemma2, gemma3_text"):
        base_of(folder)


def test_unloadable_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no config\.json"):
        find_source(model_config(tmp_path / "empty"))
    folder = copy_of_tiny(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer \(tokenizer\.json\); copy it"):
        find_source(model_config(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights"):
        base_of(folder)


def test_a_name_of_the_hub_says_what_to_do() -> None:
    """Without a network (HF_HUB_OFFLINE) a Hub name can't be loaded; tests/models/test_hub.py has one that answers."""
    config = ModelConfig(model_name_or_path="google/gemma-3-1b-it")
    with pytest.raises(UserError, match=r"^no network: model.model_name_or_path=google/gemma-3-1b-it: .*hf download"):
        load_tokenizer(find_source(config))


def test_the_template_is_ours_and_generation_stops() -> None:
    config = model_config(TINY)
    tokenizer = load_tokenizer(find_source(config))
    model = load_base(config, find_source(config), tokenizer)
    assert (
        "You have access to functions" in tokenizer.chat_template
        and "generation" not in tokenizer.chat_template.split("add_generation_prompt")[0]
    )
    stop = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, stop]


def test_shape() -> None:
    shape = size_of(load_config(find_source(model_config(TINY))))
    assert shape.parameters == sum(p.numel() for p in base_of(TINY).parameters())


@pytest.mark.parametrize("within", ["", "int4"])
def test_a_run_on_a_grid_is_never_taken_off_it(within: str, tmp_path: Path) -> None:
    """Its adapter belongs inside the quantizer; the exported weights are what was trained."""
    run = tmp_path / within
    for file in ("result.json", "manifest.json", "quant_plan.json", "adapter/adapter_config.json"):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_text("{}", encoding="utf-8")
    model = ModelConfig(model_name_or_path=str(tmp_path))
    with pytest.raises(UserError, match="which its adapter alone does not store"):
        find_source(model)
    shutil.copytree(TINY, run / "export" / "merged")
    assert find_source(model).folder == run / "export" / "merged"


def test_the_config_is_read_as_transformers_reads_it(tmp_path: Path, checkpoint_with_images: Path) -> None:
    """Each time an object of its own, opened once, and again after the file has changed."""
    for folder in (TINY, checkpoint_with_images):
        source = find_source(model_config(folder))
        config, theirs = load_config(source), AutoConfig.from_pretrained(folder)
        assert type(config) is type(theirs) and config.name_or_path == theirs.name_or_path
        assert config.to_dict() == theirs.to_dict()
        config.get_text_config().vocab_size = 7
        assert load_config(source).to_dict() == theirs.to_dict()
    folder = copy_of_tiny(tmp_path / "m")
    source = find_source(model_config(folder))
    stored = json.loads((folder / "config.json").read_text("utf-8"))
    assert load_config(source).max_position_embeddings != 77
    (folder / "config.json").write_text(json.dumps(stored | {"max_position_embeddings": 77}), encoding="utf-8")
    assert load_config(source).max_position_embeddings == 77
    for text, message in (("{", r"config\.json is not JSON"), ("{}", r"config\.json has no model_type")):
        (folder / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=f"can't be loaded .*{message}"):
            load_config(source)
