"""Runs that don't fit the machine are refused before anything is loaded, with settings that fit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import small_models
import torch

import gemma_tune
from gemma_tune.cli.compose import compose_config
from gemma_tune.config import Config
from gemma_tune.errors import UserError
from gemma_tune.models.estimate import capacity
from gemma_tune.models.estimate.memory import estimate
from gemma_tune.models.estimate.size import ModelSize, published_size
from gemma_tune.models.source import Source
from gemma_tune.rl.rewards import size_of_reward_model
from gemma_tune.run.paths import ASSETS

SAMPLE = ["data=messages", "data.train_file=assets://sample/train.jsonl"]


def composed(recipe: str, model: str, *words: str) -> tuple[Config, ModelSize]:
    cfg = compose_config(recipe, [f"model={model}", *SAMPLE, *words])
    shape = published_size(cfg.model.model_name_or_path)
    assert shape is not None
    return cfg, shape


def words_of(message: str) -> tuple[str | None, list[str]]:
    """The recipe and the other words that a message proposes."""
    words = message.split("What should fit: ")[1].split()
    recipe = next((w.removeprefix("recipe=") for w in words if w.startswith("recipe=")), None)
    return recipe, [w for w in words if not w.startswith("recipe=")]


@pytest.mark.parametrize(
    ("recipe", "model", "free", "expected"),
    [
        ("full_sft", "gemma3_4b_it", 40.0, "lora_sft"),
        ("full_sft", "gemma3_27b_it", 24.0, "qlora_sft"),
        ("lora_sft", "gemma3_27b_it", 24.0, "qlora_sft"),
        ("lora_sft", "gemma3_4b_it", 6.0, "qlora_sft"),
    ],
)
def test_too_large_for_the_memory(recipe: str, model: str, free: float, expected: str) -> None:
    cfg, shape = composed(recipe, model)
    with pytest.raises(UserError, match=rf"need about [\d.]+ GiB of memory, and {free} GiB are free") as error:
        capacity.check_memory(cfg, shape, False, free)
    proposed, words = words_of(str(error.value))
    assert proposed == expected
    # What is proposed is held against the estimate on its own
    cfg, shape = composed(proposed, model, *words)
    assert estimate(cfg, shape, False, cfg.train.max_length)["total"] <= free
    capacity.check_memory(cfg, shape, False, free)


def test_nothing_fits() -> None:
    cfg, shape = composed("qlora_sft", "gemma3_27b_it")
    with pytest.raises(UserError, match="No setting tried here makes it fit: take a smaller model"):
        capacity.check_memory(cfg, shape, False, 4.0)


def test_warning() -> None:
    cfg, shape = composed("lora_sft", "gemma3_1b_it", "train.per_device_train_batch_size=16")
    needs = estimate(cfg, shape, False, 1024)["total"]
    assert capacity.memory_warning(cfg, shape, False, 1024, needs + 0.1) is None
    said = capacity.memory_warning(cfg, shape, False, 1024, needs - 0.1)
    assert said is not None and said.startswith("warning: training needs about")
    recipe, words = words_of(said)
    assert (recipe, words) == (None, ["train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=16"])
    cfg, _ = composed("lora_sft", "gemma3_1b_it", *words)
    assert capacity.memory_warning(cfg, shape, False, 1024, needs - 0.1) is None


def test_free_memory_of_this_machine() -> None:
    assert 0.1 < capacity.free_memory(torch.device("cpu")) < 10_000


def test_too_large_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "free_disk", lambda path: 5 * 2**30)
    hub = Source("google/gemma-3-4b-it", None, None, "google/gemma-3-4b-it")
    cfg, shape = composed("lora_sft", "gemma3_4b_it")
    with pytest.raises(UserError) as error:
        capacity.check_disk(cfg, shape, hub, tmp_path / "run")
    exported, downloaded = error.value.problems
    size = 2 * (shape.parameters + 419_816_304) / 1024**3  # with the image tower, as it is published
    assert f"output_dir={tmp_path / 'run'}: checkpoints and exports need about" in exported
    assert abs(float(re.findall(r"about ([\d.]+) GiB", exported)[0]) - size) < 0.2  # and the adapter
    assert f"the checkpoint has about {size:.1f} GiB, and 5.0 GiB are free" in downloaded and "HF_HOME" in downloaded
    capacity.check_disk(compose_config("lora_sft", [*SAMPLE]), composed("lora_sft", "gemma3_270m_it")[1], hub, tmp_path)


def test_checkpoints_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "free_disk", lambda path: 20 * 2**30)
    local = Source(str(tmp_path), None, None, str(tmp_path))
    cfg, shape = composed("full_sft", "gemma3_1b_it")
    capacity.check_disk(cfg, shape, local, tmp_path)
    cfg, shape = composed("full_sft", "gemma3_1b_it", "train.save_steps=10")
    with pytest.raises(UserError, match="keep fewer checkpoints"):
        capacity.check_disk(cfg, shape, local, tmp_path)


def test_a_run_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    model = tmp_path / "huge"
    shutil.copytree(ASSETS / "tiny", model, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((model / "config.json").read_text("utf-8"))
    config |= {"num_hidden_layers": 40, "layer_types": ["full_attention"] * 40, "hidden_size": 163840}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    small_models.save_empty_weights(model)
    words = [f"model.model_name_or_path={model}", *SAMPLE, "tracker=none", f"output_dir={tmp_path / 'run'}"]
    with pytest.raises(UserError, match=r"of memory, and .* are free"):
        gemma_tune.run("full_sft", words)
    assert not (tmp_path / "run").exists()
    dry = gemma_tune.run("full_sft", [*words, "dry_run=true"])
    assert dry.status == "dry_run"


def test_int4_files_count_for_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The bits of each weight by hand: 4.5 on the grid, 16 beside it, 32 in the file that the GGUF is checked with."""
    cfg, shape = composed("export", "gemma3_270m_it", "export.formats=[gguf,w4a16]")
    beside = shape.parameters - shape.linear_parameters
    needed = 2 * (shape.linear_parameters * 4.5 / 8 + beside * 2) + shape.parameters * 4
    local = Source(str(ASSETS / "tiny"), None, None, str(ASSETS / "tiny"))
    monkeypatch.setattr(capacity, "free_disk", lambda path: needed * 1.001)
    capacity.check_disk(cfg, shape, local, tmp_path)
    monkeypatch.setattr(capacity, "free_disk", lambda path: needed * 0.999)
    with pytest.raises(UserError, match="exports need about"):
        capacity.check_disk(cfg, shape, local, tmp_path)


def test_experts_count_for_the_disk_as_they_are_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """26B-A4B in docs/int4.md: 14 to 17 GB in int4, and 49 GB where the experts are dense."""
    local = Source(str(ASSETS / "tiny"), None, None, str(ASSETS / "tiny"))
    monkeypatch.setattr(capacity, "free_disk", lambda path: 20e9)
    for name in ("w4a16", "mlx"):
        cfg, shape = composed("export", "gemma4_26b_a4b_it", f"export.formats=[{name}]")
        capacity.check_disk(cfg, shape, local, tmp_path)
    cfg, shape = composed("export", "gemma4_26b_a4b_it", "export.formats=[w4a16_transformers]")
    with pytest.raises(UserError, match=r"exports need about 45\.9 GiB"):
        capacity.check_disk(cfg, shape, local, tmp_path)


def test_weights_alone_must_fit() -> None:
    cfg, shape = composed("export", "gemma3_4b_it")
    capacity.check_weights(cfg, shape, shape.parameters * 4.01 / 1024**3)
    with pytest.raises(UserError, match="in float32 need about"):
        capacity.check_weights(cfg, shape, shape.parameters * 3.99 / 1024**3)


def test_the_models_beside_the_trained_one_count() -> None:
    """A second copy where every weight is trained with a pull to it, and a reward model's files."""
    words = ["data=arithmetic"]
    cfg, shape = composed("grpo", "gemma3_270m_it", "train.beta=0.04", *words)
    pulled = estimate(cfg, shape, False, 300, beside=1.5)
    cfg, _ = composed("grpo", "gemma3_270m_it", *words)
    plain = estimate(cfg, shape, False, 300)
    assert pulled["reference"] == plain["weights"] and pulled["reward model"] == 1.5
    assert pulled["total"] == pytest.approx(plain["total"] + plain["weights"] + 1.5)
    cfg, _ = composed("grpo", "gemma3_270m_it", "train.beta=0.04", *words)
    with pytest.raises(
        UserError, match=r"state, with the reference of 1022\.7 MiB and the reward model of 1\.5 GiB, need"
    ):
        capacity.check_memory(cfg, shape, False, 1.0, beside=1.5)
    cfg, _ = composed("grpo", "gemma3_270m_it", "train.beta=0.04", "adapter=lora", *words)
    assert "reference" not in estimate(cfg, shape, False, 300)


@pytest.mark.parametrize(
    ("recipe", "data"),
    [
        ("grpo", "arithmetic"),
        ("gspo", "arithmetic"),
        ("dpo", "sample_preferences"),
        ("reward_model", "sample_preferences"),
        ("qat", "sample"),
    ],
)
def test_what_is_proposed_is_of_the_same_recipe(recipe: str, data: str) -> None:
    words = ["model=gemma3_1b_it", f"data={data}"]
    cfg = compose_config(recipe, words)
    shape = published_size(cfg.model.model_name_or_path)
    assert shape is not None
    with pytest.raises(UserError, match="What should fit:") as error:
        capacity.check_memory(cfg, shape, False, 7.0)
    proposed, more = words_of(str(error.value))
    assert proposed is None and "adapter=lora" in more
    capacity.check_memory(compose_config(recipe, [*words, *more]), shape, False, 7.0)


def test_the_size_of_a_reward_model(tmp_path: Path) -> None:
    folder = tmp_path / "run/export/reward_model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"0" * 2**20)
    words = ["reward.model.weight=1", f"reward.model.model_name_or_path={tmp_path / 'run'}"]
    assert size_of_reward_model(compose_config("grpo", words)) == 1 / 1024
    assert (
        size_of_reward_model(compose_config("grpo", [words[0], "reward.model.model_name_or_path=a-team/a-model"])) == 0
    )
    assert size_of_reward_model(compose_config("grpo")) == 0


def test_a_live_teacher_is_a_second_model() -> None:
    """`quant.teacher=live` keeps a float32 copy of the unquantized model; the cache keeps its answers on disk."""
    words = ["model=gemma3_1b_it", *SAMPLE, "train.per_device_train_batch_size=1", "train.gradient_checkpointing=true"]
    cached, live = (compose_config("qat", [*words, f"quant.teacher={name}"]) for name in ("cache", "live"))
    size = published_size(cached.model.model_name_or_path)
    assert size is not None
    plain, more = (estimate(cfg, size, False, 512) for cfg in (cached, live))
    assert "teacher" not in plain and more["teacher"] == size.parameters * 4 / 2**30
    assert more["total"] == pytest.approx(plain["total"] + more["teacher"], rel=1e-12)
    free = plain["total"] + 0.1
    assert capacity.memory_warning(cached, size, False, 512, free) is None
    warning = capacity.memory_warning(live, size, False, 512, free)
    assert warning is not None and "quant.teacher=cache" in warning
