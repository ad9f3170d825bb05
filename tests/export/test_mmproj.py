"""mmproj files: what is in them, and what llama.cpp makes of pictures and sounds with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from forms_at_hand import text_of, tokenizer_of
from gguf import GGMLQuantizationType, GGUFReader
from media_models import tokenizer_at
from PIL import Image
from slow import slow_after
from tower_models import Seeing, build

import gemma_tune
from gemma_tune.data.records import Record
from gemma_tune.engines.llama_cpp import TopTokens
from gemma_tune.engines.llama_media import ChatAnswer
from gemma_tune.errors import RunError, UserError
from gemma_tune.export import gguf, media_check, mmproj
from gemma_tune.export.int4_check import FAIL, OK, UNVERIFIED, WARN
from gemma_tune.export.media_check import (
    AS_SERVED,
    EXACT,
    agreement,
    compared,
    media_lines,
)
from gemma_tune.export.media_questions import conversations_with_media, questions_of
from gemma_tune.export.media_reference import Question, WholeModel
from gemma_tune.export.media_rows_check import rows_line, scaled_otherwise
from gemma_tune.export.media_template import template_for_llama_cpp
from gemma_tune.export.mmproj_tensors import F16, F32
from gemma_tune.models.towers.image_attention import (
    STORED,
    ImageAttention,
    image_attention,
    named_attention,
)
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


def test_gemma4_12b_read_back(tmp_path: Path) -> None:
    """By names that stand here; both names of a checkpoint give one file. Colours come last in a patch of training."""
    seeing = build("gemma4_12b")
    found, own = stored(file := written(seeing, tmp_path)), {**seeing.towers}
    assert len(found) == len(own) == 11
    assert mmproj.stored_mmproj_line("mmproj", file, own, seeing.model.config, F16).verdict == OK
    part = "model.embed_vision."
    pixels = torch.rand(48, 48, 3)
    as_convolved = pixels.permute(2, 0, 1).flatten()
    for name, tensor in (("norm.1.weight", "ln1.weight"), ("norm.1.bias", "ln1.bias"), ("embd.weight", "dense.weight")):
        theirs = torch.from_numpy(found[f"v.patch_{name}"]).float() @ as_convolved
        ours = own[f"{part}patch_{tensor}"]
        ours = (ours.half().float() if ours.ndim > 1 else ours) @ pixels.flatten()
        assert torch.allclose(theirs, ours, rtol=1e-4, atol=1e-3), name
    same = {
        "v.patch_embd.bias": own[f"{part}patch_dense.bias"],
        "v.patch_norm.2.weight": own[f"{part}patch_ln2.weight"],
        "v.patch_norm.2.bias": own[f"{part}patch_ln2.bias"],
        "v.patch_norm.3.weight": own[f"{part}pos_norm.weight"],
        "v.patch_norm.3.bias": own[f"{part}pos_norm.bias"],
        "mm.input_projection.weight": own[f"{part}multimodal_embedder.embedding_projection.weight"].half(),
        "mm.a.input_projection.weight": own["model.embed_audio.embedding_projection.weight"].half(),
        "v.position_embd.weight": torch.stack([own[f"{part}pos_embedding"][:, axis] for axis in (0, 1)]),
    }
    for name, tensor in same.items():
        assert found[name].dtype == tensor.numpy().dtype and np.array_equal(found[name], tensor.numpy()), name
    values = {key: f.contents() for key, f in GGUFReader(file).fields.items() if key.startswith("clip")}
    assert values["clip.vision.projector_type"] == "gemma4uv" and values["clip.audio.projector_type"] == "gemma4ua"
    assert (values["clip.vision.patch_size"], values["clip.audio.num_mel_bins"]) == (16, 640)
    assert (values["clip.vision.block_count"], values["clip.audio.block_count"]) == (0, 0)
    in_memory = ("embed_vision.", "vision_embedder."), ("vision_embedder.multimodal_embedder.", "embed_vision.")
    published = {}
    for name, tensor in own.items():
        for ours, theirs in in_memory:
            name = name.replace(ours, theirs)
        published[name] = tensor
    mmproj.export(published, seeing.model.config, tmp_path / "published.gguf", name="x")
    assert (tmp_path / "published.gguf").read_bytes() == file.read_bytes()
    seeing.model.config.audio_config.audio_embed_dim = 320
    assert "audio_embed_dim is 320" in (mmproj.check_mmproj(seeing.model.config, own) or "")


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
    [
        ("gemma3", "picture"),
        ("gemma4_26b", "picture"),
        ("gemma4_e2b", "picture"),
        ("gemma4_e2b", "sound"),
        ("gemma4_12b", "picture"),
        ("gemma4_12b", "sound"),
    ],
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
        assert not more or (name, medium) in (("gemma4_e2b", "picture"), ("gemma4_12b", "picture"))  # see below


@pytest.mark.parametrize(
    ("trained", "noise", "warns"), [("vision", 0.01, False), (None, 0.01, True), (None, 2.0, False)]
)
def test_which_attention_is_served_is_told_from_the_answers(trained: str | None, noise: float, warns: bool) -> None:
    """An engine that has that of "vision"; where rounding hides the difference nothing is said of it."""
    torch.manual_seed(0)
    config = SimpleNamespace(model_type="gemma4_text", use_bidirectional_attention=trained)
    seen = {value: torch.randn(1, 50).log_softmax(-1) for value in (None, "vision")}
    tops = TopTokens(*reversed(torch.randn(1, 50).mul(noise).add(seen["vision"]).topk(20)))
    reference: Any = SimpleNamespace(
        text_config=config, stops=[1], log_probs=lambda *_: seen[config.use_bidirectional_attention]
    )
    question = Question([], [1, 2], {"pixel_values": torch.zeros(1)})
    answer = ChatAnswer([int(tops.ids[0, 0])], TopTokens(tops.ids, tops.log_probs), 2)
    line, *more = compared("x", reference, [question], [answer], EXACT)
    assert [warning.verdict for warning in more] == [WARN] * warns and config.use_bidirectional_attention == trained
    assert line.verdict == (OK if noise < 1 else FAIL)
    assert not more or ("in training causal." in more[0].problem and "image_attention=bidirectional" in more[0].problem)


@pytest.mark.parametrize(
    ("has", "way"),
    [
        (ImageAttention(False, False), "answer images with export/merged"),
        (None, "train with model.image_attention=causal"),
        (ImageAttention(True, True), ""),
    ],
)
def test_which_of_three_attentions_is_served(has: ImageAttention | None, way: str) -> None:
    """Of 12B: llama.cpp's, which no setting trains, the causal one, and that of training."""
    torch.manual_seed(0)
    config = SimpleNamespace(model_type="gemma4_unified_text", use_bidirectional_attention="vision")
    kept = {**vars(config)}
    every = (ImageAttention(False, False), None, ImageAttention(True, True))
    seen = {attention: torch.randn(1, 50).log_softmax(-1) for attention in every}
    tops = TopTokens(*reversed(seen[has].topk(20)))
    reference: Any = SimpleNamespace(text_config=config, stops=[1], log_probs=lambda *_: seen[image_attention(config)])
    question = Question([], [1, 2], {"pixel_values": torch.zeros(1)})
    answer = ChatAnswer([int(tops.ids[0, 0])], TopTokens(tops.ids, tops.log_probs), 2)
    line, *more = compared("x", reference, [question], [answer], EXACT)
    assert line.verdict == OK and len(more) == bool(way) and vars(config) == kept
    assert all(way in warning.problem for warning in more)


@SLOW
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize(("width", "served"), [(256, "bidirectional"), (1536, "causal")])
def test_the_attention_that_llama_cpp_has(attention: str, width: int, served: str, tmp_path: Path) -> None:
    """It has one for the width of E2B (1536), and another for any but E4B's; what was trained otherwise gets a warning.

    The image has 272 tokens, and the window 64.
    """
    seeing = build("gemma4_e2b", width)
    config, generation = seeing.model.config, seeing.model.generation_config
    config.get_text_config().use_bidirectional_attention = STORED[attention]
    text, file = tmp_path / "x.gguf", written(seeing, tmp_path, F32)
    gguf.export(seeing.language, config, seeing.tokenizer, generation, torch.float32, text, name="x", media=True)
    question = seeing.picture(tmp_path)
    line, *more = media_lines("picture", text, file, WholeModel(seeing.model), [question], EXACT, threads=1)
    assert line.verdict == OK and float(line.found.split()[2].rstrip(",")) < 0.02, line
    assert [x.verdict for x in more] == [WARN] * (attention != served)
    for warning in more:
        assert f"train with model.image_attention={served}" in warning.problem and "at most 0" not in warning.found
    assert named_attention(config.get_text_config()) == attention


@SLOW
def test_the_attention_that_llama_cpp_has_for_12b(tmp_path: Path) -> None:
    """In training images see each other in all layers and beyond the window (64; the image has 272 tokens)."""
    seeing = build("gemma4_12b")
    config, generation = seeing.model.config, seeing.model.generation_config
    text, file = tmp_path / "x.gguf", written(seeing, tmp_path, F32)
    gguf.export(seeing.language, config, seeing.tokenizer, generation, torch.float32, text, name="x", media=True)
    reference, question = WholeModel(seeing.model), seeing.picture(tmp_path)
    line, warning = media_lines("picture", text, file, reference, [question], EXACT, threads=1)
    assert line.verdict == OK and float(line.found.split()[2].rstrip(",")) < 0.02, line
    assert (
        warning.verdict == WARN
        and "there bidirectional in sliding layers, within the window; in training bidirectional in all"
        in warning.problem
    )
    assert "answer images with export/merged" in warning.problem and "at most 0" not in warning.found
    assert image_attention(reference.text_config) == ImageAttention(in_full_layers=True, beyond_window=True)


class Says:
    """A reference that always writes 5, 6, 7 and the end."""

    text_config, stops = None, frozenset({1, 3})

    def log_probs(self, question: Question, answer: Sequence[int]) -> torch.Tensor:
        logits = torch.zeros(len(answer), 10)
        logits[range(len(answer)), [5, 6, 7, 3][: len(answer)]] = 1.0
        return logits.log_softmax(-1)


@pytest.mark.parametrize(
    ("ids", "stopped", "same"), [([5, 6, 7], True, 1), ([5, 6], False, 1), ([5, 6], True, 0), ([5, 8], False, 0)]
)
def test_an_answer_that_ends_elsewhere_is_another_one(ids: list[int], stopped: bool, same: int) -> None:
    """With any of the tokens that end one; what the limit cut off is no other answer, and an empty one can be right."""
    reference = Says()
    tops = reference.log_probs(None, ids)[:, :4]  # type: ignore[arg-type]
    answer = ChatAnswer(ids, TopTokens(torch.arange(4).expand(len(ids), 4), tops), 2, stopped)
    asked = Question([], [2, 4], {})
    found = agreement(reference, [asked, asked], [answer, answer._replace(prompt_tokens=3)])
    assert (found.questions, found.same, found.longer) == (2, same, (3, 2)) and found.worst == 0.0


def test_pictures_that_llama_cpp_scales_otherwise_are_named() -> None:
    parts = [{"type": "image", "image": "here/a.png"}, {"type": "text", "text": "Read."}]
    rows = [Question([{"role": "user", "content": parts}], [2] * length, {}) for length in (10, 20)]
    served = [ChatAnswer([], TopTokens(torch.zeros(0, 4), torch.zeros(0, 4)), 20)] * 2
    said = scaled_otherwise(rows, served, (1008, 1120))
    assert said.startswith(
        " 1 of 2 rows have another number of tokens there, for example that with a.png: 20 in all, 10"
    )
    assert "(1120 tokens: 2,580,480)" in said  # squares of 48 × 48 pixels
    assert scaled_otherwise(rows[1:], served[1:], (252, 280)) == ""
    for limits, kind in ((None, "image"), ((252, 280), "audio")):
        parts[0] = {"type": kind, kind: "here/a"}
        assert "rows have another number" in (said := scaled_otherwise(rows, served, limits)) and "ixels" not in said


def test_a_row_that_llama_cpp_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are compared; the room is for what llama.cpp makes of each image beyond training."""
    rooms: list[int] = []

    class Server:
        def __init__(self, file: Path, room: int, *_: Any, **__: Any) -> None:
            rooms.append(room)

        def close(self) -> None:
            pass

    def answer(server: Server, messages: Any, *_: Any) -> ChatAnswer:
        if len(messages[0]["content"]) > 1:
            raise RunError("llama.cpp refused /v1/chat/completions: too long")
        return ChatAnswer([5], TopTokens(torch.tensor([[5]]), Says().log_probs(row, [5])[:, 5:6]), 100)

    monkeypatch.setattr(media_check, "LlamaServer", Server)
    monkeypatch.setattr(media_check, "ask_with_media", answer)
    image = {"type": "image", "image": "here/a.png"}
    row, several = (Question([{"role": "user", "content": [image] * n}], [2] * n * 100, {}) for n in (1, 4))
    files = (Path("x.gguf"), Path("mmproj-x.gguf"))
    line = rows_line("rows", *files, Says(), [several, row], (252, 280))
    assert (line.verdict, line.found) == (WARN, "1 of 2")
    assert line.problem.startswith("1 of 2 were not answered, for example that with a.png, a.png") and (
        "too long" in line.problem
    )
    assert rooms[0] > 400 + 4 * 62 + 8
    line = rows_line("rows", *files, Says(), [several], (252, 280))
    assert line.verdict == UNVERIFIED and "too long" in line.problem
    (line,) = media_lines("image", *files, Says(), [several])
    assert line.verdict == UNVERIFIED and "too long" in line.problem


@SLOW
def test_rows_with_pictures_in_the_chat(tmp_path: Path) -> None:
    """Each is asked with its own pictures and its other messages; towers of other weights are found."""
    seeing = build("gemma3")
    with torch.no_grad():  # else a tied head says again what it has read last
        for name, weight in seeing.model.named_parameters():
            if "language_model" in name and "post_" in name and "norm" in name:
                weight.add_(4.0).copy_(weight.bfloat16())
    config, generation, text = seeing.model.config, seeing.model.generation_config, tmp_path / "x.gguf"
    gguf.export(seeing.language, config, seeing.tokenizer, generation, torch.float32, text, name="x", media=True)
    seeing.save(tmp_path)
    tokenizer = tokenizer_at(tmp_path)
    image = {"type": "image", "image": seeing.picture(tmp_path).messages[0]["content"][0]["image"]}
    other = {"type": "image", "image": str(tmp_path / "other.png")}
    Image.effect_noise((64, 64), 90).convert("RGB").save(other["image"])
    words = {"type": "text", "text": " Read it. "}
    one, two = {"role": "user", "content": [image, words]}, {"role": "user", "content": [words, other, words, image]}
    said = {"role": "assistant", "content": "12", "weight": 0}
    system = {"role": "system", "content": "Be brief."}
    chats = [[one, said], [system, two, said, one, said], [{"role": "user", "content": "Hi"}, said]]
    records = [Record("r:1", messages=chat) for chat in chats]
    with_tools = Record("r:2", messages=chats[0], tools=[{}])
    asked = [
        replace(q, kinds={"token_type_ids": (torch.tensor([q.input_ids]) == config.image_token_id).long()})
        for q in questions_of(tokenizer, [*conversations_with_media([*records, with_tools])])
    ]
    assert [len(question.messages) for question in asked] == [1, 4]
    line = rows_line("rows", text, written(seeing, tmp_path, F32), WholeModel(seeing.model), asked)
    assert (line.verdict, line.found) == (OK, "2 of 2")
    with torch.no_grad():
        for name, weight in seeing.model.named_parameters():
            if "vision_tower" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    line = rows_line("rows", text, tmp_path / "mmproj-x-f32.gguf", WholeModel(seeing.model), asked)
    assert line.verdict == WARN and line.found != "2 of 2" and "recipe=evaluate" in line.problem


@SLOW
@pytest.mark.parametrize(("name", "tensors"), [("gemma4_e2b", 258), ("gemma4_12b", 11)])
def test_an_export_of_a_checkpoint_with_towers(name: str, tensors: int, tmp_path: Path) -> None:
    """What the recipe writes, checks and says; the report's command has what llama.cpp must be told."""
    seeing = build(name)
    base = seeing.save(tmp_path / "base")
    words = ["tracker=none", "data.max_train_samples=24", "data.max_eval_samples=8", "export.quality_samples=0"]
    words += [f"model.model_name_or_path={base}", "export=gguf_f16", f"output_dir={tmp_path / 'run'}"]
    result = gemma_tune.run("export", words)
    lines = {line["name"]: line for line in result.metrics["verify"]}
    assert lines["gguf_f16: towers"]["found"] == f"{tensors} of {tensors} tensors (100%)"
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
