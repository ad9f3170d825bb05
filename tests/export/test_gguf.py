"""The GGUF file: its blocks, types, metadata and tokenizer, read with the format's own library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf.quants
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, LlamaFileType, TokenType
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GemmaConfig,
    GenerationConfig,
)

from gemma_tune.errors import UserError
from gemma_tune.export.gguf import export, tensor_shapes
from gemma_tune.export.gguf_metadata import check_config
from gemma_tune.export.gguf_tokenizer import GgufVocabulary
from gemma_tune.quant.grid import GRIDS, Encoded
from gemma_tune.quant.plan import Plan, plan_of
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
# Names as llama.cpp has them, by ours
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.layers.5.self_attn.o_proj.weight": "blk.5.attn_output.weight",
    "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
}


# A part of the dimensions turns in `proportional` alone
OTHER_ROTARY = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
}


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def encoded(model: Any, plan: Plan) -> dict[str, torch.Tensor | Encoded]:
    weights = weights_of(model)
    return {n: plan.grids[n].encode(w) if n in plan.grids else w for n, w in weights.items()}


def write(
    file: Path, model: Any, tokenizer: Any, types: Plan | torch.dtype, weights: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The tensors of the file, by llama.cpp's names."""
    weights = weights or (weights_of(model) if isinstance(types, torch.dtype) else encoded(model, types))
    export(weights, model.config, tokenizer, model.generation_config, types, file, name="tiny", license="apache-2.0")
    return {t.name: t for t in GGUFReader(file).tensors}


def fields(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


@pytest.mark.parametrize("grid", ["q4_0", "q4_0_fp16"])
def test_blocks_are_the_grids_codes(tmp_path: Path, model: Any, tokenizer: Any, grid: str) -> None:
    """Bytes as llama.cpp's own quantizer makes them of the decoded weights, and numbers equal to the bit."""
    plan = plan_of(model, grid, grid)
    weights = encoded(model, plan)
    name = "model.layers.0.mlp.down_proj.weight"
    dead = model.get_parameter(name).detach().clone()
    dead[3, 32:64] = 0  # a block of zeros
    weights[name] = GRIDS[grid].encode(dead)
    tensors = write(tmp_path / "x.gguf", model, tokenizer, plan, weights)
    for ours, theirs in NAMES.items():
        values = GRIDS[grid].decode(weights[ours])
        stored = tensors[theirs]
        assert stored.tensor_type == GGMLQuantizationType.Q4_0
        assert np.array_equal(gguf.quants.dequantize(stored.data, stored.tensor_type), values.numpy())
        assert np.array_equal(gguf.quants.quantize(values.numpy(), stored.tensor_type), stored.data)
    block = tensors[NAMES[name]].data[3].reshape(-1, 18)[1]
    assert block[:2].view(np.uint16) == 0x8000 and (block[2:] == 0x88).all()


def test_an_embedding_of_eight_bits(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    plan = plan_of(model, "q4_0", "q8_0")
    stored = write(tmp_path / "x.gguf", model, tokenizer, plan)["token_embd.weight"]
    values = GRIDS["q8_0"].decode(GRIDS["q8_0"].encode(model.get_input_embeddings().weight))
    assert stored.tensor_type == GGMLQuantizationType.Q8_0
    assert np.array_equal(gguf.quants.dequantize(stored.data, stored.tensor_type), values.numpy())


def test_an_embedding_of_sixteen_bits(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    stored = write(tmp_path / "x.gguf", model, tokenizer, plan_of(model, "q4_0", None))["token_embd.weight"]
    assert stored.tensor_type == GGMLQuantizationType.BF16
    values = gguf.quants.dequantize(stored.data, stored.tensor_type)
    assert np.array_equal(values, model.get_input_embeddings().weight.bfloat16().float().detach().numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dense_files(tmp_path: Path, model: Any, tokenizer: Any, dtype: torch.dtype) -> None:
    """All weights in one type, norms as 1 + w in float32; the tied head is not written again."""
    tensors = write(tmp_path / "x.gguf", model, tokenizer, dtype)
    assert len(tensors) == len(weights_of(model)) and "output.weight" not in tensors
    for ours, theirs in NAMES.items():
        values = gguf.quants.dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
        assert np.array_equal(values, model.get_parameter(ours).to(dtype).float().detach().numpy())
    norm = tensors["blk.2.attn_q_norm.weight"]
    assert norm.tensor_type == GGMLQuantizationType.F32
    assert np.array_equal(norm.data, (1 + model.model.layers[2].self_attn.q_norm.weight).detach().numpy())


def test_metadata(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    write(tmp_path / "x.gguf", model, tokenizer, plan_of(model, "q4_0", "q4_0"))
    found = fields(tmp_path / "x.gguf")
    expected = {
        "general.architecture": "gemma3", "general.name": "tiny", "general.license": "apache-2.0",
        "general.file_type": LlamaFileType.MOSTLY_Q4_0, "general.quantization_version": 2,
        "gemma3.context_length": 2048, "gemma3.embedding_length": 256, "gemma3.block_count": 6,
        "gemma3.feed_forward_length": 768, "gemma3.attention.head_count": 4, "gemma3.attention.head_count_kv": 2,
        "gemma3.attention.key_length": 64, "gemma3.attention.value_length": 64,
        "gemma3.attention.layer_norm_rms_epsilon": pytest.approx(1e-6), "gemma3.vocab_size": 1536,
        "gemma3.rope.freq_base": 1e6, "gemma3.rope.freq_base_swa": 1e4, "gemma3.attention.sliding_window": 256,
        "gemma3.attention.sliding_window_pattern": 6, "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 6,
        "tokenizer.ggml.unknown_token_id": 3, "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": tokenizer.chat_template,
    }  # fmt: skip
    assert {key: found.get(key) for key in expected} == expected
    assert "gemma3.rope.scaling.type" not in found and "gemma3.final_logit_softcapping" not in found


def changed(model: Any, **values: Any) -> Any:
    return Gemma3TextConfig.from_dict({**model.config.to_dict(), **values})


def rope(model: Any, **values: Any) -> dict[str, Any]:
    parameters = model.config.rope_parameters
    return {**parameters, "full_attention": {**parameters["full_attention"], **values}}


def test_a_27b_scales_its_queries_otherwise(model: Any) -> None:
    """llama.cpp goes by the number of layers: there it divides by the width a head has of the hidden state."""
    layers = {"num_hidden_layers": 62, "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 11}
    layers["layer_types"] = layers["layer_types"][:62]
    large = {**layers, "hidden_size": 5376, "num_attention_heads": 32, "head_dim": 128}
    check_config(changed(model, **large, query_pre_attn_scalar=168))
    with pytest.raises(UserError, match="query_pre_attn_scalar=128"):
        check_config(changed(model, **large, query_pre_attn_scalar=128))


@pytest.mark.parametrize(
    "values",
    [
        {"query_pre_attn_scalar": 256}, {"hidden_activation": "silu"}, {"attention_bias": True},
        {"attn_logit_softcapping": 50.0}, {"use_bidirectional_attention": True},
        {"layer_types": ["full_attention"] * 6},
        {"layer_types": ["full_attention", *["sliding_attention"] * 5]},
    ],
)  # fmt: skip
def test_what_llama_cpp_computes_otherwise_is_refused(
    tmp_path: Path, model: Any, tokenizer: Any, values: dict[str, Any]
) -> None:
    config = changed(model, **values)
    with pytest.raises(UserError, match=next(iter(values))):
        export(weights_of(model), config, tokenizer, model.generation_config, torch.float32, tmp_path / "x", name="x")
    assert not list(tmp_path.iterdir())


def test_names_and_shapes_are_those_of_the_model(model: Any) -> None:
    """In the order of the forward pass, which files had from the beginning."""
    shapes = tensor_shapes(model.config)
    assert shapes == {name: tuple(p.shape) for name, p in model.named_parameters()}
    names = list(shapes)
    assert (names[0], names[-1]) == ("model.embed_tokens.weight", "model.norm.weight")
    assert [n.removeprefix("model.layers.0.").removesuffix(".weight") for n in names[1:14]] == [
        "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "self_attn.q_norm", "self_attn.k_norm", "post_attention_layernorm", "pre_feedforward_layernorm",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "post_feedforward_layernorm",
    ]  # fmt: skip
    untied = tensor_shapes(changed(model, tie_word_embeddings=False))
    assert list(untied)[-1] == "lm_head.weight" and untied["lm_head.weight"] == shapes[names[0]]


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (GemmaConfig(rope_parameters={"rope_type": "default", "rope_theta": 1e6}), "rope_parameters"),
        (Gemma2Config(query_pre_attn_scalar=144), "query_pre_attn_scalar"),
        (Gemma2Config(layer_types=["sliding_attention"] * 26), "layer_types"),
        (Gemma3nTextConfig(num_kv_shared_layers=10), "num_kv_shared_layers"),
        (Gemma3nTextConfig(laurel_rank=32), "laurel_rank"),
        (Gemma3nTextConfig(activation_sparsity_pattern=[0.5] * 35), "activation_sparsity_pattern"),
        (Gemma4TextConfig(use_bidirectional_attention="all"), "use_bidirectional_attention"),
        (Gemma4TextConfig(hidden_activation="relu"), "hidden_activation"),
        (Gemma4TextConfig(rope_parameters=OTHER_ROTARY), "rope_parameters"),
    ],
)
def test_what_llama_cpp_has_built_in_for_a_family_is_asked_for(config: Any, key: str) -> None:
    check_config(type(config)())
    with pytest.raises(UserError, match=f"llama.cpp can't compute {key}="):
        check_config(config)


def test_other_rotary_scaling_is_refused(model: Any) -> None:
    check_config(changed(model, rope_parameters=rope(model, rope_type="linear", factor=8.0)))
    with pytest.raises(UserError, match="rope_parameters"):
        check_config(changed(model, rope_parameters=rope(model, rope_type="dynamic", factor=8.0)))


def test_the_vocabulary(tokenizer: Any) -> None:
    found = GgufVocabulary.of(tokenizer, len(tokenizer) + 2)
    ids = tokenizer.get_vocab()
    kinds = {text: found.types[ids[text]] for text in ("<unk>", "<end_of_turn>", "<0x09>", "▁the")}
    assert list(kinds.values()) == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE, TokenType.NORMAL]
    assert found.types.count(TokenType.BYTE) == 256
    assert found.tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert found.tokens[len(tokenizer) :] == ["[PAD1536]", "[PAD1537]"]
    assert found.types[-1] == TokenType.UNUSED
    merged = [found.scores[ids["".join(pair)]] for pair in (('"', ":"), ("e", "r"), ("i", "n"))]
    assert merged == [0, -1, -2]


def test_tokens_without_a_row_are_left_out(tokenizer: Any) -> None:
    """Language models lack the row of the image token that their tokenizer has."""
    found = GgufVocabulary.of(tokenizer, len(tokenizer) - 3)
    assert len(found.tokens) == len(found.scores) == len(found.types) == len(tokenizer) - 3


def test_added_tokens(tokenizer: Any) -> None:
    """Those that are not special are matched in every text; runs of spaces by merges alone, as Transformers does it."""
    own = AutoTokenizer.from_pretrained(TINY)
    own.add_tokens(["<h1>", "▁the"])
    found = GgufVocabulary.of(own, len(own))
    assert found.types[own.convert_tokens_to_ids("<h1>")] == TokenType.USER_DEFINED
    assert found.types[own.convert_tokens_to_ids("▁the")] == TokenType.NORMAL
    assert "▁the" in found.tokens


def test_no_gemma_tokenizer(tokenizer: Any) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(UserError, match="WordLevel"):
        GgufVocabulary.of(PreTrainedTokenizerFast(tokenizer_object=other, unk_token="<unk>"), 2)


def test_stop_tokens(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    def written(*stops: int) -> dict[str, Any]:
        generation = GenerationConfig(eos_token_id=list(stops), do_sample=True, top_k=64, top_p=0.95)
        file = tmp_path / "x.gguf"
        export(weights_of(model), model.config, tokenizer, generation, torch.bfloat16, file, name="x")
        return fields(file)

    response = tokenizer.convert_tokens_to_ids("<start_function_response>")
    found = written(1, response, 6)
    assert (found["tokenizer.ggml.eot_token_id"], found["tokenizer.ggml.eom_token_id"]) == (6, response)
    assert found["general.sampling.top_k"] == 64 and found["general.sampling.temp"] == 1
    with pytest.raises(UserError, match=r"three stop tokens.*<escape>"):
        written(1, 6, response, tokenizer.convert_tokens_to_ids("<escape>"))


class Once(Mapping[str, Any]):
    """Tensors that are made when they are asked for."""

    def __init__(self, tensors: dict[str, Any], fails_at: str = "") -> None:
        self._tensors, self._fails_at = tensors, fails_at
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> Any:
        if name == self._fails_at:
            raise KeyboardInterrupt
        self.asked.append(name)
        return self._tensors[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def test_each_tensor_is_asked_for_once(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    weights = Once(weights_of(model))
    write(tmp_path / "x.gguf", model, tokenizer, torch.float32, weights)
    assert sorted(weights.asked) == sorted(weights)


def test_nothing_half_written(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    """Ctrl-C in the middle leaves the file that was there."""
    (tmp_path / "x.gguf").write_text("the old one")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "x.gguf", model, tokenizer, torch.float32, Once(weights_of(model), "model.norm.weight"))
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
    assert (tmp_path / "x.gguf").read_text() == "the old one"


def test_tensors_that_are_not_the_plans(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    plan, file = plan_of(model, "q4_0", "q4_0"), tmp_path / "x.gguf"
    name = "model.layers.0.mlp.up_proj.weight"
    good = encoded(model, plan)
    codes, scales = good[name]
    for wrong, message in (
        ({n: w for n, w in good.items() if n != name}, name),
        ({**good, "model.layers.0.mlp.bias": scales}, "mlp.bias"),
        ({**good, name: weights_of(model)[name]}, r"Q4_0.*Tensor"),
        ({**good, name: Encoded(codes[:4], scales[:4])}, "shape"),
        ({**good, name: Encoded(codes, scales * 1.0001)}, "can't hold"),
        ({**good, name: Encoded(codes + 1, scales)}, "can't hold"),
        ({**good, "model.norm.weight": torch.full((256,), torch.nan)}, "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            write(file, model, tokenizer, plan, wrong)
        assert not list(tmp_path.iterdir())
