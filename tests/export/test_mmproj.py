"""mmproj files: what is in them, and what llama.cpp makes of pictures and sounds with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forms_at_hand import text_of, tokenizer_of
from gguf import GGMLQuantizationType, GGUFReader
from slow import slow_after
from tower_models import Seeing, build

import gemma_tune
from gemma_tune.errors import UserError
from gemma_tune.export import gguf, mmproj
from gemma_tune.export.int4_check import FAIL, OK, UNVERIFIED, WARN
from gemma_tune.export.media_check import AS_SERVED, EXACT, WholeModel, media_lines
from gemma_tune.export.media_template import template_for_llama_cpp
from gemma_tune.export.mmproj_tensors import F16, F32
from gemma_tune.report.use import use_commands
from gemma_tune.run.paths import gguf_models

SLOW = pytest.mark.slow


def written(seeing: Seeing, folder: Path, kind: GGMLQuantizationType = F16) -> Path:
    file = folder / mmproj.file_name("x", kind)
    mmproj.export(seeing.towers, seeing.model.config, file, name="x", kind=kind)
    return file


def stored(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(file).tensors}


def test_gemma3_read_back(tmp_path: Path) -> None:
    """Every tensor to the bit, by names and roundings that stand here and not in the exporter's tables."""
    seeing = build("gemma3")
    file = written(seeing, tmp_path)
    found, reader, own = stored(file), GGUFReader(file), seeing.towers
    layer = "model.vision_tower.encoder.layers.2."
    same = {
        "v.patch_embd.weight": own["model.vision_tower.embeddings.patch_embedding.weight"],
        "v.position_embd.weight": own["model.vision_tower.embeddings.position_embedding.weight"],
        "v.blk.2.ln1.weight": own[f"{layer}layer_norm1.weight"],
        "v.blk.2.attn_q.weight": own[f"{layer}self_attn.q_proj.weight"].half(),
        "v.blk.2.attn_out.bias": own[f"{layer}self_attn.out_proj.bias"],
        "v.blk.2.ffn_up.weight": own[f"{layer}mlp.fc1.weight"].half(),
        "v.blk.2.ffn_down.weight": own[f"{layer}mlp.fc2.weight"].half(),
        "v.post_ln.bias": own["model.vision_tower.post_layernorm.bias"],
        "mm.input_projection.weight": own["model.multi_modal_projector.mm_input_projection_weight"].half(),
        "mm.soft_emb_norm.weight": 1 + own["model.multi_modal_projector.mm_soft_emb_norm.weight"],
    }
    for name, tensor in same.items():
        assert found[name].dtype == tensor.numpy().dtype and np.array_equal(found[name], tensor.numpy()), name
    assert len(found) == len(own) == 7 + 16 * 3
    assert mmproj.stored_mmproj_line("mmproj", file, own, seeing.model.config, F16).verdict == OK
    values = {key: field.contents() for key, field in reader.fields.items() if key.startswith("clip")}
    assert values == {
        "clip.projector_type": "gemma3", "clip.has_vision_encoder": True, "clip.use_gelu": True,
        "clip.vision.projection_dim": 256, "clip.vision.image_size": 64, "clip.vision.patch_size": 8,
        "clip.vision.embedding_length": 128, "clip.vision.feed_forward_length": 256, "clip.vision.block_count": 3,
        "clip.vision.attention.head_count": 4, "clip.vision.image_mean": [0.5] * 3, "clip.vision.image_std": [0.5] * 3,
        "clip.vision.attention.layer_norm_epsilon": pytest.approx(1e-6), "clip.vision.projector.scale_factor": 2,
    }  # fmt: skip


def test_a_changed_tensor_is_found(tmp_path: Path) -> None:
    seeing = build("gemma3")
    file = written(seeing, tmp_path)
    tensors = {tensor.name: tensor for tensor in GGUFReader(file, "r+").tensors}
    tensors["v.blk.1.ffn_up.bias"].data[0] += 1e-3
    line = mmproj.stored_mmproj_line("mmproj", file, seeing.towers, seeing.model.config, F16)
    assert line.verdict == FAIL and line.problem.startswith("v.blk.1.ffn_up.bias") and "54 of 55" in line.found


@SLOW
def test_gemma4_read_back(tmp_path: Path) -> None:
    seeing = build("gemma4_e2b")
    found, own = stored(written(seeing, tmp_path)), seeing.towers
    assert len(found) == len(own)
    patches = own["model.vision_tower.patch_embedder.input_proj.weight"]
    pixels = torch.rand(16, 16, 3)  # rows, columns, colours, as the processor flattens a patch
    kernel = torch.from_numpy(found["v.patch_embd.weight"]).float()
    convolved = torch.nn.functional.conv2d(pixels.permute(2, 0, 1)[None], kernel)[0, :, 0, 0]
    assert torch.allclose(convolved, patches.half().float() @ pixels.flatten(), atol=1e-5)
    layer = "model.audio_tower.layers.1."
    scale = own[f"{layer}self_attn.per_dim_scale"]
    assert np.allclose(found["a.blk.1.per_dim_scale.weight"], np.log1p(np.exp(scale.double().numpy())), rtol=1e-6)
    assert np.array_equal(found["a.blk.1.conv_dw.weight"], own[f"{layer}lconv1d.depthwise_conv1d.weight"][:, 0].numpy())
    bound = own["model.vision_tower.encoder.layers.0.mlp.up_proj.output_max"]
    assert found["v.blk.0.ffn_up.output_max"].tolist() == [bound.item()]
    assert np.array_equal(
        found["v.blk.0.ffn_up.weight"],
        own["model.vision_tower.encoder.layers.0.mlp.up_proj.linear.weight"].half().numpy(),
    )


def test_what_has_no_place_is_named(tmp_path: Path) -> None:
    seeing = build("gemma3")
    other = {**seeing.towers, "model.vision_tower.embeddings.probe": torch.zeros(1, 1, 4)}
    with pytest.raises(UserError, match=r"no place for the tower's tensor model\.vision_tower\.embeddings\.probe"):
        mmproj.export(other, seeing.model.config, tmp_path / "x.gguf", name="x")
    large = {**seeing.towers}
    name = "model.vision_tower.encoder.layers.0.mlp.fc1.weight"
    large[name] = large[name] * 1e7
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.fc1\.weight: F16 can't hold its numbers"):
        mmproj.export(large, seeing.model.config, tmp_path / "x.gguf", name="x")
    assert list(tmp_path.iterdir()) == []
    seeing.model.config.vision_config.hidden_act = "gelu"
    assert "hidden_act is gelu" in (mmproj.check_mmproj(seeing.model.config, seeing.towers) or "")
    with pytest.raises(UserError, match="hidden_act is gelu"):
        mmproj.export(seeing.towers, seeing.model.config, tmp_path / "x.gguf", name="x")


@SLOW
@pytest.mark.parametrize(
    ("name", "medium"),
    [("gemma3", "picture"), ("gemma4_26b", "picture"), ("gemma4_e2b", "picture"), ("gemma4_e2b", "sound")],
)
def test_llama_cpp_answers_as_the_whole_model(name: str, medium: str, tmp_path: Path) -> None:
    """Through the chat endpoint, with the file's own template; the reference rounds where ggml does."""
    seeing = build(name)
    config, generation = seeing.model.config, seeing.model.generation_config
    text = tmp_path / "x.gguf"
    gguf.export(seeing.language, config, seeing.tokenizer, generation, torch.float32, text, name="x", media=True)
    question = getattr(seeing, medium)(tmp_path)
    for kind, bounds, most in ((F32, EXACT, 0.02), (F16, AS_SERVED, 0.3)):
        file = written(seeing, tmp_path, kind)
        line, *more = media_lines(medium, text, file, WholeModel(seeing.model), [question], bounds, threads=1)
        assert line.verdict == OK and float(line.found.split()[2].rstrip(",")) < most, line
        assert line.found.endswith("1 of 1 answers the same")
        if name == "gemma4_e2b" and medium == "picture":  # causal in training, and not there
            assert [x.verdict for x in more] == [WARN] and "use_bidirectional_attention" in more[0].problem
        assert name == "gemma4_e2b" or not more


@SLOW
def test_an_export_of_a_checkpoint_with_towers(tmp_path: Path) -> None:
    """What the recipe writes, checks and says; the report's command has what llama.cpp must be told."""
    seeing = build("gemma4_e2b")
    base = seeing.save(tmp_path / "base")
    words = ["tracker=none", "data.max_train_samples=24", "data.max_eval_samples=8", "export.quality_samples=0"]
    words += [f"model.model_name_or_path={base}", "export=gguf_f16", f"output_dir={tmp_path / 'run'}"]
    result = gemma_tune.run("export", words)
    lines = {line["name"]: line for line in result.metrics["verify"]}
    assert lines["gguf_f16: towers"]["found"] == "258 of 258 tensors (100%)"
    assert {line["verdict"] for line in lines.values()} <= {OK, WARN, UNVERIFIED}
    place = tmp_path / "run/export/gguf_f16"
    assert (place / "Modelfile").read_text("utf-8").startswith("FROM ./base-f16.gguf\nFROM ./mmproj-base-f16.gguf\n")
    assert [file.name for file in gguf_models(place)] == ["base-f16.gguf"]


def test_the_commands_name_the_towers(tmp_path: Path) -> None:
    seeing = build("gemma4_26b")
    config, generation, text = seeing.model.config, seeing.model.generation_config, tmp_path / "x-f16.gguf"
    gguf.export(seeing.language, config, seeing.tokenizer, generation, torch.float16, text, name="x", media=True)
    written(seeing, tmp_path)
    ((engine, command),) = use_commands("gguf_f16", tmp_path)
    assert engine == "llama.cpp" and command.endswith(
        f"-m {text} --mmproj {tmp_path / 'mmproj-x-f16.gguf'} --image-min-tokens 252 --image-max-tokens 280"
    )


@SLOW
def test_missing_line_breaks_are_found(tmp_path: Path) -> None:
    """As llama.cpp writes an image where the template of a text-only file knows nothing of it."""
    seeing = build("gemma3")
    config, generation, text = seeing.model.config, seeing.model.generation_config, tmp_path / "x.gguf"
    gguf.export(seeing.language, config, seeing.tokenizer, generation, torch.float32, text, name="x")
    file, question = written(seeing, tmp_path, F32), seeing.picture(tmp_path)
    (line,) = media_lines("picture", text, file, WholeModel(seeing.model), [question], EXACT, threads=1)
    assert line.verdict == FAIL and "its chat template or its media are others" in line.problem


@pytest.mark.parametrize("name", slow_after(2, ["gemma3", "gemma4_v5", "gemma4_v2", "gemma4_large_v4"]))
def test_the_template_writes_round_a_marker_what_training_writes_round_an_image(name: str) -> None:
    """Of parts as training has them, with the processor's text in the placeholder's place; text-only as before."""
    tokenizer = tokenizer_of(name)
    plain = template_for_llama_cpp(tokenizer, media=False)
    assert plain == tokenizer.chat_template
    words, marker = [" Look: ", "  and ", "what is it?\n"], "<__media_x1__>"
    image = {"type": "image"}
    parts = [{"type": "text", "text": words[0]}, image, {"type": "text", "text": words[1]}, image]
    chat = [{"role": "user", "content": [*parts, {"type": "text", "text": words[2]}]}]
    as_trained = text_of(tokenizer, plain, chat, prompt=True)
    placeholder = "<start_of_image>" if name == "gemma3" else "<|image|>"
    between = f"\n\n{marker}\n\n" if name == "gemma3" else marker
    one = [{"role": "user", "content": marker.join(words)}]
    served = template_for_llama_cpp(tokenizer, media=True)
    assert as_trained.count(placeholder) == 2
    assert text_of(tokenizer, served, one, prompt=True) == as_trained.replace(placeholder, between)
    for text in ("No image <__media here", "a __> b ", "x"):
        bare = [{"role": "user", "content": text}]
        assert text_of(tokenizer, served, bare, prompt=True) == text_of(tokenizer, plain, bare, prompt=True)
