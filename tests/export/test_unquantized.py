"""GGUF files of a tuned model in no quantization format: every type is read back, run in llama.cpp, and can fail."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants
from grid_models import ROWS, TINY, logits_of, with_adapter
from slow import slow_but_these
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemma_tune.cli.compose import compose_config
from gemma_tune.engines.llama_cpp import LlamaCppEngine
from gemma_tune.errors import UserError
from gemma_tune.export.engine_lines import ROUNDED
from gemma_tune.export.gguf import tensor_type
from gemma_tune.export.gguf_files import ONE_TYPE, one_type_lines, write_gguf
from gemma_tune.export.int4_check import FAIL, OK, WARN, CheckLine, raise_failed
from gemma_tune.export.tensors import float_tensors
from gemma_tune.export.transformers_check import TrainedForward, layers_in_float32
from gemma_tune.export.verify import ArtifactDiffers
from gemma_tune.models.family import FAMILIES
from gemma_tune.quant.plan import KEPT_32, Plan

UP = "model.layers.1.mlp.up_proj.weight"
LONG = torch.randint(10, 1500, (2, 300), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def tuned() -> Any:
    """The embedded model in bfloat16 with a LoRA adapter in float32, as after training."""
    return with_adapter(AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16), None)


@pytest.fixture(scope="module")
def merged(tuned: Any) -> Any:
    """The same model, merged by PEFT in float32: the independent reference."""
    return copy.deepcopy(tuned).float().merge_and_unload()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


def written(name: str, folder: Path, model: Any, tokenizer: Any) -> Path:
    return write_gguf(name, "tiny", folder, model, tokenizer, float_tensors(model), ONE_TYPE[name])


def lines_of(name: str, folder: Path, model: Any, tokenizer: Any, rows: Any = ROWS) -> list[CheckLine]:
    weights = float_tensors(model)
    forward = TrainedForward(model, rows, layers_in_float32)
    plan = Plan({}, dict.fromkeys(weights, KEPT_32), {})
    return one_type_lines(name, folder, forward, tokenizer, weights, plan)


@pytest.mark.parametrize("name", slow_but_these(("gguf_f16",), ONE_TYPE))
def test_every_type_holds_the_merged_weights(
    name: str, tuned: Any, merged: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Against PEFT's own merge, rounded by torch or quantized by the formula of Q8_0; and each line of the check."""
    file = written(name, tmp_path / name, tuned, tokenizer)
    assert file.name == f"tiny-{name.removeprefix('gguf_')}.gguf" and (file.parent / "Modelfile").is_file()
    stored = {t.name: t for t in GGUFReader(file).tensors}
    kind, layer = ONE_TYPE[name], merged.model.layers[1]
    for its, weight in (
        ("blk.1.attn_q.weight", layer.self_attn.q_proj.weight),
        ("token_embd.weight", merged.model.embed_tokens.weight),
    ):
        assert stored[its].tensor_type == kind
        found = torch.from_numpy(np.array(quants.dequantize(stored[its].data, kind)))
        weight = weight.detach()
        if kind == GGMLQuantizationType.Q8_0:
            step = weight.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
            difference = (found - weight).unflatten(-1, (-1, 32)).abs()
            assert (difference <= step * 0.5 + step * 127 * 2**-11).all() and difference.max() > 0
        else:
            dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind.name]
            assert torch.allclose(found, weight.to(dtype).float(), rtol=2**-8 if dtype == torch.bfloat16 else 2**-10)
    norm = stored["blk.1.attn_norm.weight"]
    assert norm.tensor_type == GGMLQuantizationType.F32
    assert torch.equal(torch.from_numpy(np.array(norm.data)), 1 + layer.input_layernorm.weight.detach())
    pytest.importorskip("xllamacpp")
    lines = lines_of(name, file.parent, tuned, tokenizer, LONG)
    assert {line.verdict for line in lines} == {OK}, lines
    assert [line.name for line in lines][-1] == f"{name} in llama.cpp"


def test_float16_in_llama_cpp_against_transformers(tuned: Any, merged: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Mean KL over the whole vocabulary from plain Transformers in float32, by formula: at most 1e-4."""
    pytest.importorskip("xllamacpp")
    file = written("gguf_f16", tmp_path / "f16", tuned, tokenizer)
    expected = logits_of(merged).double().log_softmax(-1)
    with LlamaCppEngine(file, tokenizer, [1], max_length=64) as engine:
        found = torch.stack(list(engine.log_probs(ROWS, "llama.cpp"))).double()
    kl = (expected.exp() * (expected - found.view(expected.shape))).sum(-1).mean()
    assert 0 <= kl < ROUNDED[GGMLQuantizationType.F16][1] == 1e-4


@pytest.mark.parametrize("name", list(ONE_TYPE))
def test_a_changed_tensor_fails_by_name(name: str, tuned: Any, tokenizer: Any, tmp_path: Path) -> None:
    file = written(name, tmp_path / name, tuned, tokenizer)
    tensor = next(t for t in GGUFReader(file).tensors if t.name == "blk.1.ffn_up.weight")
    with file.open("r+b") as stored:
        stored.seek(tensor.data_offset + 9)
        before = stored.read(1)[0]
        stored.seek(tensor.data_offset + 9)
        stored.write(bytes([before ^ 0x11]))
    failed = [line for line in lines_of(name, file.parent, tuned, tokenizer, [[2, 3]]) if line.verdict == FAIL]
    assert failed and all(line.problem.startswith(f"{UP}: 1 of 196,608 ") for line in failed)


def test_the_file_of_another_model_fails(tuned: Any, tokenizer: Any, tmp_path: Path) -> None:
    """The base without the adapter: the weights differ by name, and so does what llama.cpp computes."""
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16)
    file = written("gguf_f16", tmp_path / "base", base, tokenizer)
    with pytest.raises(ArtifactDiffers, match=r"gguf_f16: decoded weights: must be .*, found 56 of 80 tensors"):
        raise_failed(lines_of("gguf_f16", file.parent, tuned, tokenizer))
    pytest.importorskip("xllamacpp")
    *_, line = lines_of("gguf_f16", file.parent, tuned, tokenizer)
    assert (line.name, line.verdict) == ("gguf_f16 in llama.cpp", FAIL)


def test_few_positions_only_warn(tuned: Any, tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    file = written("gguf_q8_0", tmp_path / "q8", tuned, tokenizer)
    assert lines_of("gguf_q8_0", file.parent, tuned, tokenizer)[-1].verdict == WARN


def test_rows_that_no_block_divides_are_float16_as_in_llama_cpps_converter() -> None:
    q8 = GGMLQuantizationType.Q8_0
    assert tensor_type(FAMILIES["gemma3_text"], UP, (8, 48), q8) == GGMLQuantizationType.F16
    assert tensor_type(FAMILIES["gemma3_text"], UP, (8, 64), q8) == q8
    assert tensor_type(FAMILIES["gemma3_text"], "model.norm.weight", (64,), q8) == GGMLQuantizationType.F32


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        ("qlora_sft", ["export=gguf"], r"models in a quantization format: .* use gguf_q8_0 or gguf_f16"),
        ("lora_sft", ["export.formats=[q4_k_m]"], r"llama-quantize MODEL-f16\.gguf MODEL-Q4_K_M\.gguf Q4_K_M"),
        ("lora_sft", ["export.formats=[q8_0]"], r"export\.formats: there is no q8_0; write export=gguf_q8_0\."),
        (
            "export",
            ["export.formats=[awq]"],
            r"there is no awq; export=w4a16 is int4 in the form of compressed-tensors",
        ),
        ("export", ["quant=none"], r"quant=none with export\.formats=gguf,w4a16: choose .*gguf_f16,gguf_q8_0"),
        ("export", ["quant=q4_0", "export=gguf_q8_0"], r"round the int4 numbers once more; .* quant=none"),
        ("qat", ["export.formats=[gguf_q8_0]"], "round the int4 numbers once more"),
        ("reward_model", ["export=gguf_f16"], "a classifier is no file of llama.cpp"),
    ],
)
def test_what_cannot_be_written(recipe: str, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_config(recipe, words)


@pytest.mark.parametrize(
    ("words", "grid"),
    [
        (["export=gguf_f16"], "none"),
        (["export.formats=[merged,gguf_q8_0]"], "none"),
        (["export=gguf_f16", "quant=q4_0"], "q4_0"),
        (["export=gguf_f16", "quant.embedding=q8_0"], "q4_0"),
        (["export.formats=[gguf,gguf_f16]"], "q4_0"),
        (["export=merged"], "q4_0"),
        ([], "q4_0"),
    ],
)
def test_who_asks_for_float16_gets_the_weights_as_they_are(words: list[str], grid: str) -> None:
    """`recipe=export` rounds to int4 by itself, and would put the rounded numbers into such a file."""
    assert compose_config("export", words).quant.grid == grid
