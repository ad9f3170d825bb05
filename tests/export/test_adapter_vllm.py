"""Adapters on fused experts, written one by one as vLLM reads them, against what PEFT adds, in float64."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from int4_models import build, rows
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from slow import slow_after, slow_but_these

from gemma_tune.cli.compose import compose_config
from gemma_tune.engines.vllm_server import as_vllm_reads, serve_words, unservable
from gemma_tune.errors import UserError
from gemma_tune.export.adapter_vllm import added_line, export
from gemma_tune.export.int4_check import FAIL, OK, UNVERIFIED
from gemma_tune.export.vllm_check import LogProbs, base_of, vllm_lines
from gemma_tune.models.adapters.stored_adapter import read_adapter
from gemma_tune.models.source import Source

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_parameters": EXPERTS},
    "ranks and alphas": {
        "target_parameters": EXPERTS, "use_rslora": True,
        "rank_pattern": {"experts.gate_up_proj": 2, "q_proj": 6, "gate_proj": 3},
        "alpha_pattern": {r"layers\.1\.experts\.down_proj": 20, "up_proj": 5},
    },
    "down alone": {"target_parameters": EXPERTS[1:]},
}  # fmt: skip


def adapted(**options: Any) -> tuple[Any, Any]:
    """A small Gemma 4 with experts and an adapter as after training; `gate_proj` is that of the dense layers."""
    model, tokenizer = build("gemma4_26b")
    torch.manual_seed(2)
    modules = ["q_proj", "gate_proj", "up_proj"]
    found = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, target_modules=modules, **options)).eval()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.05)
    return found, tokenizer


def written(model: PeftModel, tokenizer: Any, folder: Path) -> Path:
    """The exported folder, beside the adapter as in a run."""
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    export(folder / "adapter", model, tokenizer, folder / "export" / "adapter_vllm")
    return folder / "export" / "adapter_vllm"


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """s·B·A of each module of the file in float64, by PEFT's rules of adapter_config.json."""
    config, stored = LoraConfig.from_pretrained(folder), load_file(folder / "adapter_model.safetensors")
    found = {}
    for key in (key for key in stored if ".lora_A." in key):
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        assert name.rpartition(".")[2] in config.target_modules
        a, b = stored[key].double(), stored[key.replace("lora_A", "lora_B")].double()
        r, alpha = (
            pattern.get(get_pattern_key(pattern.keys(), name), usual)
            for pattern, usual in ((config.rank_pattern, config.r), (config.alpha_pattern, config.lora_alpha))
        )
        assert len(a) == r
        found[name] = alpha / (r**0.5 if config.use_rslora else r) * b @ a
    return found


@pytest.mark.parametrize("kind", slow_but_these(["ranks and alphas"], KINDS))
def test_each_expert_gets_what_peft_adds(kind: str, tmp_path: Path) -> None:
    """PEFT's `get_delta_weight` of the fused tensors, computed in float64, is the reference."""
    model, tokenizer = adapted(**KINDS[kind])
    folder = written(model, tokenizer, tmp_path)
    assert added_line(folder, model).verdict == OK
    found, base = deltas(folder), model.double().get_base_model()
    for number, block in enumerate(base.model.layers):
        module = block.experts
        while hasattr(module, "parameter_name"):
            expected = module.get_delta_weight("default")
            for expert, delta in enumerate(expected):
                stem = f"model.layers.{number}.experts.{expert}."
                layers = ("gate_proj", "up_proj") if module.parameter_name == "gate_up_proj" else ("down_proj",)
                parts = torch.cat([found.pop(stem + layer) for layer in layers])
                assert delta.any() and torch.allclose(parts, delta, rtol=1e-12, atol=1e-15), (stem, layers)
            module = module.base_layer
        for layer in (block.self_attn.q_proj, block.mlp.gate_proj, block.mlp.up_proj):
            name = next(name for name, other in base.named_modules() if other is layer)
            assert torch.allclose(found.pop(name), layer.get_delta_weight("default"), rtol=1e-12, atol=1e-15), name
    # vLLM needs all three layers of an expert: those of a tensor that isn't adapted add nothing
    assert len(found) == (4 * 4 * 2 if kind == "down alone" else 0) and not any(delta.any() for delta in found.values())
    if kind == "ranks and alphas":
        described = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        assert described["rank_pattern"][r"model\.layers\.0\.experts\.\d+\.up_proj"] == 2
        assert described["alpha_pattern"][r"model\.layers\.1\.experts\.\d+\.down_proj"] == 20
        hold_to_failures(folder, model)


def hold_to_failures(folder: Path, model: Any) -> None:
    """What is wrong in a file is found: other numbers, swapped layers, a layer that isn't there, another alpha."""
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole, described = load_file(file), json.loads(config.read_text("utf-8"))
    stem = "base_model.model.model.layers.2.experts.3."
    moved = whole[f"{stem}down_proj.lora_B.weight"].clone()
    moved[5, 1] *= 1 + 1e-6
    gate, up = (f"{stem}{layer}.lora_B.weight" for layer in ("gate_proj", "up_proj"))
    for other in ({f"{stem}down_proj.lora_B.weight": moved}, {gate: whole[up], up: whole[gate]}):
        save_file(whole | other, file)
        line = added_line(folder, model)
        assert line.verdict == FAIL and line.problem.startswith("model.layers.2.experts.3."), line
    save_file({name: tensor for name, tensor in whole.items() if f"{stem}up_proj" not in name}, file)
    assert added_line(folder, model).problem.startswith("model.layers.2.experts.3.up_proj")
    save_file(whole, file)
    config.write_text(json.dumps(described | {"lora_alpha": 7}), encoding="utf-8")
    assert added_line(folder, model).verdict == FAIL
    file.write_bytes(file.read_bytes()[:-9])
    assert "it can't be read" in added_line(folder, model).problem


def described(folder: Path, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    stored = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "b", **more}
    (folder / "adapter_config.json").write_text(json.dumps(stored), encoding="utf-8")
    return folder


def test_which_adapter_vllm_is_given(tmp_path: Path) -> None:
    """The one beside it, where PEFT's is of experts; else the reason names the command that writes it."""
    adapter = described(tmp_path / "run" / "adapter", target_parameters=EXPERTS)
    source = Source("b", None, adapter, str(adapter))
    why = unservable(source)
    assert why and f"recipe=export export=adapter_vllm model.model_name_or_path={adapter}" in why
    assert "export/merged" in why and as_vllm_reads(source) == source
    each = described(tmp_path / "run" / "export" / "adapter_vllm")
    assert unservable(source) is None and as_vllm_reads(source).adapter == each
    assert serve_words(source, "tuned", None)[-1] == f"tuned={each}"
    assert unservable(Source("b", None, each, "b")) is None  # named itself
    described(adapter, target_parameters=EXPERTS, modules_to_save=["norm"])
    assert as_vllm_reads(source).adapter == each
    described(adapter)  # an adapter of linear layers is served as it is
    assert as_vllm_reads(source) == source


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    slow_after(
        1,
        [
            (
                "export",
                ["quant=q4_0"],
                r"use w4a16, or write .* quant=none export\.formats=\[adapter_vllm\]",
            ),
            ("full_sft", [], "there is no adapter"),
            ("lora_sft", ["adapter=dora"], "vLLM serves no adapter with DoRA"),
            ("lora_sft", ["model.added_tokens=[<x>]"], "rows of the embedding"),
        ],
    ),
)
def test_what_is_refused_before_training(recipe: str, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_config(recipe, ["export=adapter_vllm", *words])


@pytest.mark.slow
def test_what_is_no_adapter_of_experts(tmp_path: Path) -> None:
    """An adapter of linear layers alone is refused, and PEFT's side says what the folder is."""
    model, tokenizer = adapted()
    with pytest.raises(UserError, match="vLLM serves it as it is, so leave adapter_vllm out"):
        written(model, tokenizer, tmp_path / "linear")
    model, tokenizer = adapted(**KINDS["plain"])
    folder = written(model, tokenizer, tmp_path / "experts")
    with pytest.raises(UserError, match="the adapter of each expert by itself, as vLLM serves it"):
        read_adapter(folder, model.unload())
    assert compose_config("export", ["export=adapter_vllm"]).quant.grid == "none"  # as the adapter is


# vLLM's own code, without a model: what it makes of the folder for its kernels, s·B·A of w1, w2 and w3 of each block
IN_VLLM = """
import sys
from safetensors.torch import save_file
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import PackedLoRALayerWeights
from vllm.lora.peft_helper import PEFTHelper

folder, out, blocks, experts = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
names = [f"experts.{e}.{layer}" for e in range(experts) for layer in ("gate_proj", "down_proj", "up_proj")]
helper, expected = PEFTHelper.from_local_dir(folder, 512), {*names, "q_proj", "gate_proj", "up_proj"}
read = LoRAModel.from_local_checkpoint(folder, expected, helper, lora_model_id=1, device="cpu")
found = {}
for block in range(blocks):
    stem = f"model.layers.{block}."
    packed = PackedLoRALayerWeights.pack_moe([read.loras[stem + name] for name in names], stem + "experts")
    for which, a, b, scale in zip(("w1", "w2", "w3"), packed.lora_a, packed.lora_b, packed.scaling):
        found[f"{block}.{which}"] = (scale * b.double() @ a.double()).contiguous()
save_file(found, out)
"""


@pytest.mark.vllm
@pytest.mark.parametrize("kind", KINDS)
def test_what_vllm_reads(kind: str, vllm: Path, tmp_path: Path) -> None:
    """What its kernels would be given is what PEFT adds, and nothing for a tensor that isn't adapted."""
    model, tokenizer = adapted(**KINDS[kind])
    folder, blocks = written(model, tokenizer, tmp_path), model.double().get_base_model().model.layers
    command = [
        str(vllm.with_name("python")),
        "-c",
        IN_VLLM,
        str(folder),
        str(tmp_path / "found"),
        str(len(blocks)),
        "4",
    ]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=300)
    found = load_file(tmp_path / "found")
    for number, block in enumerate(blocks):
        parts = {"gate_up_proj": torch.cat([found[f"{number}.{which}"] for which in ("w1", "w3")], 1)}
        parts["down_proj"], module = found[f"{number}.w2"], block.experts
        while hasattr(module, "parameter_name"):
            delta = module.get_delta_weight("default")
            assert delta.any() and torch.allclose(parts.pop(module.parameter_name), delta, rtol=1e-12, atol=1e-15)
            module = module.base_layer
        assert not any(part.any() for part in parts.values())


@pytest.mark.vllm
def test_what_vllm_says_on_a_cpu(vllm: Path, tmp_path: Path) -> None:
    """Its build for CPUs reads the adapter, starts, and dies with the first request: experts with LoRA need Triton."""
    wide = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "global_head_dim": 128}
    model, tokenizer = build("gemma4_26b", **wide, num_experts=8, moe_intermediate_size=64)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=8, target_modules=["q_proj"], target_parameters=EXPERTS)
    peft = get_peft_model(model, config).eval()
    peft.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    written(peft, tokenizer, tmp_path)
    cfg = compose_config("lora_sft", [f"model.model_name_or_path={tmp_path / 'base'}", f"engine.vllm={vllm}"])
    some = rows(8, 64)
    trained, base = LogProbs.of(peft, tokenizer, some, "reference"), base_of(peft, tokenizer, some)
    (line,) = vllm_lines(cfg, vllm, {"adapter": str(tmp_path / "adapter")}, trained, tokenizer, base)
    assert line.verdict == UNVERIFIED and "EngineCore encountered an issue" in line.problem, line
