"""Quantization-aware training on rows with images: teacher and student see them, in figures and exports, too."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from media_models import folders_once, processor_of, tokenizer_at
from media_plain import picture, processed, stop, text_of
from PIL import Image
from safetensors.torch import load_file, save_file
from short_runs import metrics, short_run
from transformers import AutoModelForCausalLM

import gemma_tune
from gemma_tune.chat import Rendered, render_chat
from gemma_tune.config import ModelConfig, QuantConfig
from gemma_tune.errors import RunError
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.source import Source
from gemma_tune.models.towers.towers import open_towers
from gemma_tune.quant import activations
from gemma_tune.quant.channels import channel_plan
from gemma_tune.quant.layers import off_grid, put_on_grid
from gemma_tune.quant.load_float32 import load_float32
from gemma_tune.quant.plan import plan_of
from gemma_tune.run.paths import ON_GRID, TUNED
from gemma_tune.train.distill import Teacher

ROWS = 4
Q4_0 = gguf.GGMLQuantizationType.Q4_0
FILES = ["export.formats=[gguf,w4a16,merged]", "eval.evaluators=[held_out_loss]", "quant=q4_0"]
FolderOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows whose tokens are equal and whose images aren't, one with two images, and one without."""
    folder, draw, chats = tmp_path_factory.mktemp("rows"), random.Random(0), []
    for number, (count, said) in enumerate(((1, "12 kWh"), (1, "12 kWh"), (2, "The left one"), (0, "A meter"))):
        pictures = [picture(folder / f"{number}-{i}.png", draw) for i in range(count)]
        content: list[dict[str, Any]] = [{"type": "image", "image": path} for path in pictures]
        asked = {"type": "text", "text": "What is on the meter" if number < 2 else f"Which {number}"}
        chats.append(
            {"messages": [{"role": "user", "content": [*content, asked]}, {"role": "assistant", "content": said}]}
        )
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, chats)) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> FolderOf:
    """A small model with weights that bfloat16 holds, so that what stays in 16 bit is the same in the teacher."""
    return folders_once(tmp_path_factory, _for_quantization)


def _for_quantization(folder: Path) -> None:
    described = json.loads((folder / "config.json").read_text("utf-8"))
    described["text_config"]["query_pre_attn_scalar"] = described["text_config"]["head_dim"]  # for llama.cpp
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    file = folder / "model.safetensors"
    tensors = {n: t.bfloat16().float() if t.is_floating_point() else t for n, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def messages_in(rows: Path) -> list[list[dict[str, Any]]]:
    return [json.loads(line)["messages"] for line in rows.read_text("utf-8").splitlines()]


def run(recipe: str, model: Path, rows: Path, folder: Path, *words: str, steps: int = 1) -> Any:
    given = [
        f"model.model_name_or_path={model}", "data=messages", f"data.train_file={rows}",
        f"data.validation_file={rows}", "eval.num_samples=0", f"train.per_device_train_batch_size={ROWS}",
        "export=merged",
    ]  # fmt: skip
    return short_run(recipe, folder, *given, *words, steps=steps)


def plain_row(processor: Any, messages: list[dict[str, Any]]) -> tuple[dict[str, Any], int]:
    """What the family's processor makes of a row, and where its answer begins."""
    images = [Image.open(p["image"]).convert("RGB") for p in messages[0]["content"] if p["type"] == "image"]
    text = text_of(processor, messages[:1], prompt=True)
    texts = (f"{text}{messages[1]['content']}{stop(processor)}", text)
    whole, begun = (processed(processor, text, images) for text in texts)
    return whole, begun["input_ids"].shape[1]


def plain_log_probs(net: Any, processor: Any, messages: list[dict[str, Any]]) -> torch.Tensor:
    inputs, begin = plain_row(processor, messages)
    found: torch.Tensor = net(**inputs).logits[0, begin - 1 : -1].log_softmax(-1)
    return found


def plain_class(model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def plain_kl(family: str, model: Path, rows: Path, plan: dict[str, str]) -> tuple[float, float]:
    """KL of the checkpoint's own class from itself with llama.cpp's rounding, nats a token, and its gradient's norm."""
    processor, teacher, student = processor_of(family, model), plain_class(model), plain_class(model)
    trained = []
    for name, weight in student.named_parameters():
        own = plan.get(f"model.{name.partition('language_model.')[2]}", "")
        if own.startswith("q4_0"):
            weight.data = torch.from_numpy(
                gguf.quants.dequantize(gguf.quants.quantize(weight.data.numpy(), Q4_0), Q4_0)
            )
        if own.startswith("q4_0") or own == "float32":
            trained.append(weight)
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for messages in messages_in(rows):
        with torch.no_grad():
            wanted = plain_log_probs(teacher, processor, messages).double()
        found = plain_log_probs(student, processor, messages).double()
        total = total + (wanted.exp() * (wanted - found)).sum()
        tokens += len(wanted)
    (total / tokens).backward()
    return total.item() / tokens, torch.stack([w.grad.norm() for w in trained if w.grad is not None]).norm().item()


def vocabulary(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text("utf-8"))["text_config"]["vocab_size"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("gemma3", []),
        ("gemma3", ["train.packing=true", "train.max_length=512"]),
        ("gemma3", ["adapter=lora"]),
        ("gemma4_e2b", []),
        ("gemma4_31b", ["train.packing=true", "train.max_length=2048"]),
    ],
    ids=["gemma3", "packed", "adapter", "gemma4_e2b", "gemma4_31b"],
)
def test_first_loss_is_the_divergence_from_the_original_class(
    family: str, words: list[str], rows: Path, folder_of: FolderOf, tmp_path: Path
) -> None:
    """So is the divergence of validation rows; and without an adapter the gradient is that of the same classes."""
    model = folder_of(family)
    every = ["quant=q4_0_fp16", "quant.teacher=live", f"quant.teacher_top_k={vocabulary(model)}"]
    result = run("qat", model, rows, tmp_path, *every, "train.max_grad_norm=1e9", *words)
    line = next(line for line in metrics(tmp_path) if "loss" in line)
    plan = json.loads((tmp_path / "quant_plan.json").read_text("utf-8"))
    kl, norm = plain_kl(family, model, rows, plan)
    assert line["loss"] == pytest.approx(kl, rel=1e-5)
    assert result.metrics["quality"]["plain_kl"] == pytest.approx(kl, rel=1e-5)
    if "adapter=lora" not in words:
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)


def rendered(tokenizer: Any, rows: Path) -> list[Rendered]:
    return [render_chat(tokenizer, messages) for messages in messages_in(rows)]


def loaded(model: Path, tokenizer: Any) -> Any:
    source = Source(str(model), None, None, str(model))
    options = ModelConfig(model_name_or_path=str(model), dtype="float32", device="cpu")
    return load_float32(options, source, tokenizer, [])


def test_the_teacher_tells_equal_tokens_with_other_images_apart(
    rows: Path, folder_of: FolderOf, tmp_path: Path
) -> None:
    model = folder_of("gemma3")
    tokenizer = tokenizer_at(model)
    base, found = loaded(model, tokenizer), rendered(tokenizer, rows)
    assert found[0].input_ids == found[1].input_ids and found[0].media != found[1].media
    open_towers(base)
    teacher, live = Teacher(base, tokenizer, 8, cache=tmp_path / "t"), Teacher(base, tokenizer, 8, live=True)
    put_on_grid(base, plan_of(base, "q4_0", "q4_0"))  # the embedding, too, which soft tokens stand among
    with off_grid(base):
        teacher.prepare(found)
    processor, net = processor_of("gemma3", model), plain_class(model)
    for row, messages in zip(found, messages_in(rows), strict=True):
        with torch.no_grad():
            wanted = plain_log_probs(net, processor, messages).topk(8).values
        assert torch.allclose(live(row).log_probs, wanted, atol=1e-4)
        assert torch.allclose(teacher(row).log_probs, wanted, atol=5e-3)  # kept in float16
    assert (teacher(found[0]).log_probs - teacher(found[1]).log_probs).abs().max() > 0.05


@pytest.mark.slow
def test_what_another_sight_has_seen_is_computed_again(rows: Path, folder_of: FolderOf, tmp_path: Path) -> None:
    """Other settings of the processor, other towers, and another image under an old name; text is kept."""
    model, files = folder_of("gemma3"), tmp_path / "t"
    tokenizer = tokenizer_at(model)
    base, found = loaded(model, tokenizer), rendered(tokenizer, rows)
    asked: list[int] = []

    def filled(tokenizer: Any, base: Any) -> int:
        teacher = Teacher(base, tokenizer, 8, cache=files)
        teacher.prepare(found)
        asked.append(sum(1 for _ in files.glob("*.arrow")))
        return len({teacher(row).log_probs.numpy().tobytes() for row in found})

    assert filled(tokenizer, base) == ROWS and filled(tokenizer, base) == ROWS and asked == [1, 1]
    filled(tokenizer_at(model, do_pan_and_scan=True, pan_and_scan_min_ratio_to_activate=9.0), base)
    assert asked == [1, 1, 2]
    other = loaded(model, tokenizer)
    with torch.no_grad():
        next(iter(open_towers(other).stored().values())).add_(0.5)
    filled(tokenizer, other)
    assert asked == [1, 1, 2, 3]
    teacher = Teacher(base, tokenizer, 8, cache=files)
    teacher.prepare(found)
    image = Path(found[0].media[0]["path"])
    kept = image.read_bytes()
    try:
        Image.effect_noise((200, 200), 20).convert("RGB").save(image)
        with pytest.raises(RunError, match="a file of it has changed"):
            teacher(found[0])
    finally:
        image.write_bytes(kept)
    teacher(found[0])


@pytest.mark.slow
def test_files_hold_the_towers_to_the_bit_and_are_measured_with_images(
    rows: Path, folder_of: FolderOf, tmp_path: Path
) -> None:
    """A GGUF file isn't asked for losses behind images, which is said."""
    model = folder_of("gemma3")
    result = run("qat", model, rows, tmp_path / "qat", *FILES, "train.learning_rate=1e-4", steps=2)
    assert result.status == "finished" and not result.failures
    for name in ("w4a16", "merged"):
        assert_towers(tmp_path / "qat" / "export" / name, model)
    exported = result.metrics["exported"]
    means = {file["name"]: file.get("mean") for file in exported["files"]}
    assert means["gguf"] is None and any("gguf was not measured" in note for note in exported["notes"])
    after = result.metrics["after"]["held_out_loss"]
    assert (means["w4a16"], means["merged"]) == pytest.approx((after, after), rel=1e-4)
    words = [f"eval.kl.reference={model}", "eval.evaluators=[kl]", "model.dtype=float32"]
    found = measured("evaluate", tmp_path / "qat" / "export" / "merged", rows, tmp_path / "kl", *words)
    assert found.metrics["after"]["mean_kl"] == pytest.approx(result.metrics["quality"]["trained_kl"], rel=1e-4)


@pytest.mark.slow
def test_tuned_with_its_towers_then_trained_for_int4(rows: Path, folder_of: FolderOf, tmp_path: Path) -> None:
    """The first training trains towers, the second has them as they are then; and all files hold those."""
    model = folder_of("gemma3")
    words = [*FILES, "model.train_towers=projector", "adapter=lora", "quant.stage2.max_steps=2"]
    words += [f"data.test_files={{test: {rows}}}", "eval.evaluators=[held_out_loss,answers]"]
    result = run("tune_to_int4", model, rows, tmp_path, *words, steps=3)
    assert result.status == "finished" and not result.failures
    tuned, before = (load_file(place / "model.safetensors") for place in (tmp_path / TUNED / "export/merged", model))
    projector = [name for name in before if "projector" in name]
    assert projector and not any(torch.equal(tuned[name], before[name]) for name in projector)
    for name in ("w4a16", "merged"):
        assert_towers(tmp_path / ON_GRID / "export" / name, tmp_path / TUNED / "export/merged")
    said = (tmp_path / "report.md").read_text("utf-8")
    assert "GGUF in llama.cpp" in said and "int4, trained" in said


@pytest.mark.slow
def test_a_gguf_file_that_nothing_is_asked_of_is_no_failure(rows: Path, folder_of: FolderOf, tmp_path: Path) -> None:
    """Losses behind images alone: the other models are compared, and why this one isn't is said on the page."""
    words = ["export.formats=[gguf]", "eval.evaluators=[held_out_loss]", "quant=q4_0", "adapter=lora"]
    result = run("tune_to_int4", folder_of("gemma3"), rows, tmp_path, *words, "quant.stage2.max_steps=1")
    assert result.status == "finished" and not result.failures
    assert result.headline["name"] == "held_out_loss"
    assert result.headline["after"] == result.metrics[ON_GRID]["after"]["held_out_loss"]
    said = (tmp_path / "report.md").read_text("utf-8")
    assert "GGUF in llama.cpp was not measured" in said and "int4, trained" in said
    assert not (tmp_path / "eval").exists()


@pytest.mark.slow
def test_an_export_has_the_trained_towers_of_an_adapter(rows: Path, folder_of: FolderOf, tmp_path: Path) -> None:
    """Rounded or not, and where no row that is measured has an image, too."""
    model, text = folder_of("gemma3"), tmp_path / "text.jsonl"
    text.write_text(json.dumps({"messages": messages_in(rows)[3]}) + "\n", encoding="utf-8")
    tuned = tmp_path / "tuned"
    run("lora_sft", model, rows, tuned, "model.train_towers=projector", "export=none", steps=3)
    beside, before = load_file(tuned / "adapter" / "towers.safetensors"), load_file(model / "model.safetensors")
    assert beside and not any(torch.equal(tensor, before[name]) for name, tensor in beside.items())
    for name, words in {"w4a16": ["quant=q4_0"], "merged": ["quant=none"]}.items():
        words += [f"export.formats=[{name}]", "export.dtype=float32", "export.quality_samples=2"]
        measured("export", tuned, text if name == "merged" else rows, tmp_path / name, *words)
        stored = load_file(tmp_path / name / "export" / name / "model.safetensors")
        assert all(torch.equal(stored[n].float(), t.to(stored[n].dtype).float()) for n, t in beside.items())


@pytest.mark.slow
def test_activations_are_calibrated_with_images(
    rows: Path, folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest input of a layer is that of the original class, which an image makes larger."""
    monkeypatch.setattr(activations, "_SHARES", (1.0,))  # nothing is clipped
    model = folder_of("gemma3")
    tokenizer = tokenizer_at(model)
    base, found = loaded(model, tokenizer), rendered(tokenizer, rows)
    quant = QuantConfig(grid="int4_channel", calibration_samples=ROWS)
    activations.quantize(base, channel_plan(base, quant), quant, found, tokenizer)
    processor, net = processor_of("gemma3", model), plain_class(model)
    seen: list[float] = []
    first = net.model.language_model.layers[0].self_attn.q_proj
    first.register_forward_hook(lambda _, given, __: seen.append(float(given[0].abs().max())))
    with torch.no_grad():
        for messages in messages_in(rows):
            net(**plain_row(processor, messages)[0])
    scale = activations.activation_scales(base)["model.layers.0.self_attn.q_proj.weight"].input
    assert max(seen) <= scale * 127 * (1 + 1e-6) and scale * 127 < max(seen) * (1 + 2**-7)


def assert_towers(folder: Path, of: Path) -> None:
    stored, wanted = (load_file(place / "model.safetensors") for place in (folder, of))
    names = [name for name in wanted if FAMILIES["gemma3"].is_tower(name)]
    assert len(names) > 10 and all(torch.equal(stored[name], wanted[name]) for name in names)


def measured(recipe: str, model: Path, rows: Path, folder: Path, *words: str) -> Any:
    given = [
        f"model.model_name_or_path={model}", "data=messages", f"data.validation_file={rows}",
        "eval.num_samples=0", f"output_dir={folder}",
    ]  # fmt: skip
    return gemma_tune.run(recipe, [*given, *words])
