"""Every kind of adapter trains, and what is saved is what was trained when plain PEFT puts it on the plain base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from every_recipe import write_rows
from peft import PeftModel
from reference import load_plain
from safetensors.torch import load_file
from short_runs import losses, short_run
from transformers import AutoModelForCausalLM

from gemma_tune.cli.compose import compose_config
from gemma_tune.errors import UserError
from gemma_tune.models.hardware import check_hardware
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
QUICK = ["eval=none", "eval.num_samples=0", "export.dtype=float32", "train.learning_rate=1e-3"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Nothing is measured, and rows are shorter than the sample's."""
    return [*QUICK, *write_rows("answers", tmp_path_factory.mktemp("rows")), "data.max_eval_samples=null"]


@pytest.mark.parametrize(
    ("recipe", "adapter"),
    [
        ("lora_sft", "lora"), ("qlora_sft", "loftq"), pytest.param("lora_sft", "pissa", marks=pytest.mark.slow),
        pytest.param("qlora_sft", "dora", marks=pytest.mark.slow),
        pytest.param("lora_sft", "dora", marks=pytest.mark.slow),
        pytest.param("lora_sft", "rslora", marks=pytest.mark.slow),
        pytest.param("lora_sft", "olora", marks=pytest.mark.slow),
        pytest.param("qlora_sft", "lora", marks=pytest.mark.slow),
        # Another rate for B alone, which test_loraplus_gives_b_its_own_rate shows
        pytest.param("lora_sft", "loraplus", marks=pytest.mark.slow),
        pytest.param("qlora_sft", "loraplus", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_saved_adapter_is_the_trained_one(recipe: str, adapter: str, quick: list[str], tmp_path: Path) -> None:
    """adapter/ on the base, by PEFT alone, gives the logits of export/merged, which the run has checked itself."""
    short_run(recipe, tmp_path / "run", f"adapter={adapter}", *quick, steps=4)
    base = load_plain(TINY, four_bit=recipe == "qlora_sft")
    ids = torch.arange(30, 90).unsqueeze(0)
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        model = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter")).train()
        found = model(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export" / "merged")(input_ids=ids).logits
    assert (found - merged).abs().max() < 2e-3
    assert (found - plain).abs().max() > 0.05  # the adapter does something


@pytest.mark.slow
def test_a_chain_of_pissa_runs_keeps_what_was_learned(tmp_path: Path) -> None:
    """A continued PiSSA adapter is a plain LoRA of twice the rank; nothing is subtracted a second time."""
    short_run("lora_sft", tmp_path / "one", "adapter=pissa", "adapter.r=4", "adapter.lora_alpha=8", steps=6)
    words = ["adapter=pissa", "adapter.r=8", "adapter.lora_alpha=16"]
    before = tmp_path / "one"
    for name in ("two", "three"):
        result = short_run("lora_sft", tmp_path / name, *words, f"model.model_name_or_path={before}", steps=2)
        after = json.loads((before / "eval" / "after.json").read_text("utf-8"))["figures"]["held_out_loss"]
        assert result.metrics["before"]["held_out_loss"] == pytest.approx(after, rel=1e-4), name
        before = tmp_path / name


@pytest.mark.slow
def test_adapters_that_cannot_be_trained_on(quick: list[str], tmp_path: Path) -> None:
    short_run("lora_sft", tmp_path / "one", "adapter=pissa", "train.save_steps=1", *quick, steps=1)
    checkpoint = tmp_path / "one" / "checkpoints" / "step-1"
    with pytest.raises(UserError, match="a pissa adapter fits only the base"):
        short_run("lora_sft", tmp_path / "two", "adapter=pissa", f"model.model_name_or_path={checkpoint}")
    broken = tmp_path / "one" / "adapter"
    (broken / "adapter_model.safetensors").write_bytes(b"half")
    words = ["adapter.r=32", "adapter.lora_alpha=64", f"model.model_name_or_path={broken}"]
    with pytest.raises(UserError, match=r"adapter_model\.safetensors can't be used"):
        short_run("lora_sft", tmp_path / "two", *words)
    assert not (tmp_path / "two").exists()


@pytest.mark.slow
def test_an_adapter_that_says_another_thing_is_refused(quick: list[str], tmp_path: Path) -> None:
    short_run("lora_sft", tmp_path / "one", "adapter.target_modules=[q_proj,v_proj]", *quick, steps=1)
    words = [
        f"model.model_name_or_path={tmp_path / 'one'}",
        "adapter.lora_dropout=0.1",
        "adapter.target_modules=[q_proj]",
    ]
    with pytest.raises(UserError, match=r"lora_dropout=0\.1, but .* has 0\.0") as caught:
        short_run("lora_sft", tmp_path / "two", *words)
    assert "adapter.target_modules=['q_proj'], but" in str(caught.value)


@pytest.mark.slow
def test_loraplus_gives_b_its_own_rate(quick: list[str], tmp_path: Path) -> None:
    """After one step of Adam a weight has moved by its learning rate: B sixteen times as far as without LoRA+."""
    moved = {}
    for adapter in ("lora", "loraplus"):
        words = [
            f"adapter={adapter}",
            "train.warmup_steps=0",
            "train.lr_scheduler_type=constant",
            *quick,
            "export=none",
        ]
        short_run("lora_sft", tmp_path / adapter, *words, steps=1)
        stored = load_file(tmp_path / adapter / "adapter" / "adapter_model.safetensors")
        moved[adapter] = torch.cat([w.abs().flatten() for n, w in stored.items() if "lora_B" in n]).max().item()
    assert moved["lora"] == pytest.approx(1e-3, rel=0.05)
    assert moved["loraplus"] == pytest.approx(16e-3, rel=0.05)


@pytest.mark.slow
def test_adapters_stay_float32_over_four_bit(quick: list[str], tmp_path: Path) -> None:
    """TRL rounds adapters over 4-bit weights to bfloat16; ours don't lose their small updates."""
    short_run("qlora_sft", tmp_path / "run", *quick)
    stored = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(w.dtype == torch.float32 for w in stored.values())
    assert any((w != w.bfloat16().float()).any() for w in stored.values())


@pytest.mark.slow
def test_target_modules(quick: list[str], tmp_path: Path) -> None:
    words = ["adapter.target_modules=[q_proj,v_proj]", "adapter.r=4", *quick]
    result = short_run("lora_sft", tmp_path / "run", *words, steps=1)
    assert result.metrics["weights"]["adapted_layers"] == 12
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"] and config["r"] == 4
    with pytest.raises(UserError, match=r"no layer is named qq_proj\. Linear layers: .*q_proj"):
        short_run("lora_sft", tmp_path / "two", "adapter.target_modules=[q_proj,qq_proj]", *quick)
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["train.optim=adamw_8bit"],
        ["model.dtype=bfloat16"],
        ["train.bf16=true"],
        pytest.param(["train.gradient_checkpointing=true"], marks=pytest.mark.slow),
        pytest.param(["train.optim=adafactor"], marks=pytest.mark.slow),
        pytest.param(["model.attn_implementation=eager"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_options_of_one_gpu_that_a_cpu_has(words: list[str], quick: list[str], tmp_path: Path) -> None:
    short_run("qlora_sft", tmp_path / "run", *quick, *words)
    assert len(losses(tmp_path / "run")) == 3


@pytest.mark.slow
def test_checkpointing_moves_no_loss(quick: list[str], tmp_path: Path) -> None:
    for name in ("false", "true"):
        short_run("lora_sft", tmp_path / name, *quick, f"train.gradient_checkpointing={name}")
    assert losses(tmp_path / "false") == pytest.approx(losses(tmp_path / "true"), rel=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU refuses")
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.device=cuda", "no GPU"),
        ("model.attn_implementation=flash_attention_2", "needs a GPU.*use sdpa"),
        ("train.optim=paged_adamw_8bit", r"pages between GPU and host.*use adamw_8bit"),
        ("train.extra.activation_offloading=true", r"asks for an accelerator.*on the CPU; leave it out"),
    ],
)
@pytest.mark.slow
def test_options_of_a_gpu_are_refused_without_one(word: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        short_run("lora_sft", tmp_path / "run", word)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU refuses")
@pytest.mark.slow
def test_weights_go_to_vllm_by_nccl() -> None:
    """Said before anything is trained, whether vLLM is installed or not."""
    cfg = compose_config("grpo", ["model=tiny"])
    cfg.train.use_vllm = True
    with pytest.raises(UserError, match=r"train\.use_vllm=true: .* NCCL, which needs a CUDA device"):
        check_hardware(cfg)
