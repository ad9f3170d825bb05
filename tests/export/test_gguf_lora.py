"""A GGUF LoRA file adds to each layer what PEFT's adapter adds, in llama.cpp, too; a wrong one fails by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from grid_models import ROWS, TINY, source_of
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemma_tune.chat import Rendered
from gemma_tune.cli.compose import compose_config
from gemma_tune.engines.llama_server import EngineUnavailable, LlamaServer
from gemma_tune.engines.open import open_engine
from gemma_tune.errors import UserError
from gemma_tune.export.gguf_lora import added_line, export
from gemma_tune.export.int4_check import FAIL, OK, UNVERIFIED, CheckLine
from gemma_tune.export.lora_check import ON_SERVED, ON_TRAINED, lora_lines, served_base, served_line
from gemma_tune.export.transformers_check import TrainedForward, layers_in_float32
from gemma_tune.models.gguf_header import read_gguf_header

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"lora_alpha": 8},
    "rsLoRA and patterns": {
        "lora_alpha": 6, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"o_proj": 20}
    },
}  # fmt: skip


def adapted(seed: int = 2, **options: Any) -> Any:
    """The embedded model with an adapter as after training."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    torch.manual_seed(seed)
    found = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "o_proj", "down_proj"], **options))
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.02)
    return found.eval()


def written(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return export(folder / "adapter", model.config, folder / "tiny-lora.gguf", "tiny")


@pytest.mark.parametrize("kind", list(KINDS))
def test_it_is_the_trained_adapter(kind: str, tmp_path: Path) -> None:
    model = adapted(**KINDS[kind])
    file = written(model, tmp_path)
    reader = GGUFReader(file)
    said = {key: field.contents() for key, field in reader.fields.items()}
    assert (said["general.type"], said["adapter.type"], said["general.architecture"]) == ("adapter", "lora", "gemma3")
    tensors = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    assert len(tensors) == 2 * 3 * 6
    for its, layer in (
        ("attn_q", "self_attn.q_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_down", "mlp.down_proj"),
    ):
        a, b = (tensors[f"blk.3.{its}.weight.lora_{part}"] for part in "ab")
        module = model.base_model.model.model.layers[3].get_submodule(layer)
        own = module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight
        assert torch.allclose(b @ a * said["adapter.lora.alpha"] / len(a), own, rtol=1e-5, atol=1e-8)
    assert added_line(file, model).verdict == OK
    pytest.importorskip("xllamacpp")
    rows = torch.randint(10, 1500, (2, 260), generator=torch.Generator().manual_seed(0)).tolist()
    forward = TrainedForward(model, rows, layers_in_float32)
    lines = lora_lines(file, forward, AutoTokenizer.from_pretrained(TINY), source_of(TINY))
    assert [line.verdict for line in lines] == [OK, OK], lines
    assert [f.name for f in sorted(tmp_path.iterdir())] == ["adapter", "tiny-lora.gguf"]


@pytest.mark.slow
def test_another_adapter_fails_by_name(tmp_path: Path) -> None:
    """One of another training; one with another alpha; one of another architecture, which llama.cpp refuses."""
    model, tokenizer = adapted(**KINDS["plain"]), AutoTokenizer.from_pretrained(TINY)
    forward = TrainedForward(model, ROWS[:1], layers_in_float32)
    for other in (adapted(seed=3, lora_alpha=8), adapted(lora_alpha=10)):
        line = added_line(written(other, tmp_path), model)
        assert (line.verdict, line.found) == (FAIL, "0 of 18 layers")
        assert line.problem.startswith("model.layers.0.self_attn.q_proj: it adds other numbers")
    pytest.importorskip("xllamacpp")
    lines = lora_lines(tmp_path / "tiny-lora.gguf", forward, tokenizer, source_of(TINY))
    assert [(line.name, line.verdict) for line in lines][1:] == [(ON_TRAINED, FAIL)]
    file = written(model, tmp_path)
    file.write_bytes(file.read_bytes().replace(b"gemma3", b"gemma2", 1))
    lines = lora_lines(file, forward, tokenizer, source_of(TINY))
    assert [line.verdict for line in lines] == [FAIL, FAIL]
    assert "it is of type adapter, lora, gemma2" in lines[0].problem and "can't load it" in lines[1].problem


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    model = adapted(lora_alpha=8)
    file = written(model, tmp_path)
    file.write_bytes(file.read_bytes()[:-4000])
    line = added_line(file, model)
    assert (line.verdict, line.found) == (FAIL, "not read") and "tiny-lora.gguf: it can't be read" in line.problem


def test_it_is_measured_on_a_file_of_its_base(tmp_path: Path) -> None:
    """The engine that measures it: the published base in float16, and the adapter on it."""
    pytest.importorskip("xllamacpp")
    model, tokenizer = adapted(**KINDS["plain"]), AutoTokenizer.from_pretrained(TINY)
    file, rows = written(model, tmp_path), [[2, *ROWS[0][:31]]]
    rendered, cfg = [Rendered(rows[0], rows[0])], compose_config("evaluate", ["model=tiny", "data=sample"])
    with torch.no_grad():
        own = model(torch.tensor(rows)).logits[0, :-1].float().log_softmax(-1)
        with model.disable_adapter():
            base_alone = model(torch.tensor(rows)).logits[0, :-1].float().log_softmax(-1)
    trained, untuned = (-p.gather(1, torch.tensor(rows[0][1:])[:, None]).sum().item() for p in (own, base_alone))
    with served_base(file, model, tokenizer, source_of(TINY)) as base:
        source = replace(source_of(TINY), base=str(base), adapter=file)
        with open_engine(cfg, source, tokenizer) as engine:
            (found,) = engine.losses(rendered, "x")
    assert abs(found - trained) < 0.1 * abs(untuned - trained) and abs(untuned - trained) > 0.1
    assert [f.name for f in sorted(tmp_path.iterdir())] == ["adapter", "tiny-lora.gguf"]


@pytest.mark.slow
def test_a_check_that_cannot_be_made_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such file; no published weights; no room for the base; an engine that does not start, or dies on the way."""
    model, tokenizer = adapted(**KINDS["plain"]), AutoTokenizer.from_pretrained(TINY)
    forward = TrainedForward(model, ROWS[:1], layers_in_float32)
    lines = lora_lines(tmp_path / "tiny-lora.gguf", forward, tokenizer, source_of(TINY))
    assert [(line.verdict, line.found) for line in lines] == [(UNVERIFIED, "not read")]
    assert "tiny-lora.gguf: No such file" in lines[0].problem
    file = written(model, tmp_path)
    copy_without(TINY, tmp_path / "base", "model.safetensors")
    line = served_line(file, forward, tokenizer, source_of(tmp_path / "base"))
    assert (line.name, line.verdict, line.found) == (ON_SERVED, UNVERIFIED, "not run")
    assert "base: it holds no model.embed_tokens.weight" in line.problem

    def last_line() -> CheckLine:
        return lora_lines(file, forward, tokenizer, source_of(TINY))[-1]

    def raising(error: Exception) -> Any:
        def instead(*_: Any, **__: Any) -> Any:
            raise error

        return instead

    with monkeypatch.context() as broken:
        broken.setattr("gemma_tune.export.gguf.export", raising(OSError(28, "No space left on device")))
        assert (last_line().verdict, last_line().problem) == (UNVERIFIED, "[Errno 28] No space left on device")
    with monkeypatch.context() as broken:
        broken.setattr(LlamaServer, "__init__", raising(EngineUnavailable("it was killed")))
        assert (last_line().verdict, last_line().problem) == (UNVERIFIED, "it was killed")
    pytest.importorskip("xllamacpp")
    with monkeypatch.context() as broken:
        broken.setattr(LlamaServer, "post", raising(EngineUnavailable("it has died")))
        assert (last_line().verdict, last_line().problem) == (UNVERIFIED, "it has died")
    assert [f.name for f in sorted(tmp_path.iterdir())] == ["adapter", "base", "tiny-lora.gguf"]


def copy_without(folder: Path, into: Path, left_out: str) -> None:
    into.mkdir()
    for file in folder.iterdir():
        if file.name != left_out:
            (into / file.name).symlink_to(file)


def test_it_is_no_model_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is an adapter, and no model"):
        read_gguf_header(written(adapted(lora_alpha=8), tmp_path))


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"trainable_token_indices": [7]}, {"modules_to_save": ["norm"]}]
)
def test_stored_adapters_that_no_such_file_holds(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds products of two matrices alone, and .* use gguf_f16"):
        written(adapted(lora_alpha=8, **options), tmp_path)


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        ("full_sft", [], "there is no adapter"),
        ("lora_sft", ["adapter=dora"], "DoRA rescales the rows"),
        ("lora_sft", ["adapter.modules_to_save=[norm]"], "modules_to_save are whole layers"),
        ("lora_sft", ["model.added_tokens=[<x>]"], "rows of the embedding are trained"),
        ("lora_sft", ["adapter=pissa"], r"afterwards, recipe=export export=gguf_lora"),
        ("qlora_sft", ["adapter=loftq"], "makes up for the rounding of its 4-bit base"),
        ("export", ["quant=q4_0"], r"quant=none export\.formats=\[gguf_lora\]"),
    ],
)
def test_what_is_refused_before_training(recipe: str, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_config(recipe, ["export=gguf_lora", *words])
    assert compose_config("export", ["export=gguf_lora"]).quant.grid == "none"
