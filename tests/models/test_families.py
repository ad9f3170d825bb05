"""Every Gemma class: the same loss, the same gradients, the same tensors as plain Transformers.

Numbers of the traps are those of the list in docs/traps.md.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from safetensors.torch import load_file
from short_runs import losses, short_run

from gemma_tune.chat import render_chat
from gemma_tune.config import ModelConfig
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.source import find_source

_WORDS = "the kitchen light goes on at seven and Anna reads a long letter from Oslo".split()  # noqa: SIM905
# One step of plain gradient descent at a high rate: what the weights lose is the gradient, little rounded.
_GRADIENT = [
    "eval=none", "train.optim=sgd", "train.learning_rate=1000", "train.lr_scheduler_type=constant",
    "train.warmup_steps=0", "train.max_grad_norm=0", "export.dtype=float32", "data=messages", "eval.max_new_tokens=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight conversations of unequal length, some longer than the sliding window."""
    rng, file = random.Random(0), tmp_path_factory.mktemp("rows") / "rows.jsonl"
    chats = []
    for n in (3, 40, 7, 25, 4, 60, 12, 18):
        said = [" ".join(rng.choices(_WORDS, k=k)) for k in (n, max(2, n // 2), 3, n // 3 + 1)]
        turns = said[: 4 if n % 2 else 2]
        chats.append({"messages": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)]})
    file.write_text("".join(json.dumps(c) + "\n" for c in chats), encoding="utf-8")
    return file


def slow_but(*kept: str) -> list[Any]:
    """Every class, as parameters of a test: all but these are slow."""
    return [pytest.param(n, id=n, marks=() if n in kept else pytest.mark.slow) for n in small_models.MODELS]


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each class."""
    return small_models.save(request.param, tmp_path_factory.mktemp(request.param) / request.param)


def gradients(folder: Path, rows: Path, run: Path, *words: str) -> dict[str, torch.Tensor]:
    """What one step takes from each weight of the checkpoint, float32; those that aren't trained give zeros."""
    short_run(
        "full_sft", run, f"model.model_name_or_path={folder}", f"data.train_file={rows}", *_GRADIENT, *words, steps=1
    )
    before, after = load_file(folder / "model.safetensors"), load_file(run / "export" / "merged" / "model.safetensors")
    # Bounds of the towers' layers are infinite
    return {n: torch.where(before[n] == after[n], 0.0, before[n].float() - after[n].float()) for n in before}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of any tensor's gradient, relative to the tensor's largest gradient."""
    gaps = [((a[n] - b[n]).norm() / b[n].norm()).item() for n in b if b[n].norm() > 1e-4]
    assert gaps
    return max(gaps)


def plain_loss(folder: Path, rows: Path) -> float:
    """Mean over all trained tokens of all rows, each row by itself, by the original class in float32."""
    tokenizer = load_tokenizer(find_source(ModelConfig(model_name_or_path=str(folder))))
    model = small_models.original(folder)
    total, tokens = 0.0, 0
    for line in rows.read_text("utf-8").splitlines():
        row = render_chat(tokenizer, json.loads(line)["messages"])
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
        for i, label in enumerate(row.labels[1:]):
            if label != -100:
                total, tokens = total - log_probs[i, label].item(), tokens + 1
    return total / tokens


_ONE_BATCH = ["train.per_device_train_batch_size=8", "train.train_sampling_strategy=random", "train.packing=false"]


@pytest.mark.parametrize("folder", slow_but("gemma4_e2b"), indirect=True)
def test_full(folder: Path, rows: Path, tmp_path: Path) -> None:
    """First loss as plain Transformers has it (1e-5); gradients with accumulation (trap 1) and packed (trap 7)."""
    batch = gradients(folder, rows, tmp_path / "batch", *_ONE_BATCH)
    expected = plain_loss(folder, rows)
    assert losses(tmp_path / "batch")[0] == pytest.approx(expected, rel=1e-5)

    one_by_one = ["train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=8", "train.packing=false"]
    apart = gradients(folder, rows, tmp_path / "apart", *one_by_one)
    assert same(batch, apart) < 1e-4
    assert losses(tmp_path / "apart")[0] == pytest.approx(expected, rel=1e-5)

    packed = gradients(
        folder, rows, tmp_path / "packed", "train.per_device_train_batch_size=8", "train.packing=true",
        "train.max_length=256",
    )  # fmt: skip
    assert same(packed, apart) < 1e-4  # rounding; rows that see each other differ a thousand times as much
    assert losses(tmp_path / "packed")[0] == pytest.approx(expected, rel=1e-5)

    untouched = [n for n, g in batch.items() if not g.any()]
    towers = [n for n in batch if "tower" in n or "embed_vision" in n or "embed_audio" in n or "projector" in n]
    assert set(towers) <= set(untouched)


@pytest.mark.parametrize(
    ("recipe", "folder"),
    [
        *(
            pytest.param(recipe, *p.values, id=f"{p.id}-{recipe}", marks=p.marks)
            for recipe, kept in (
                ("lora_sft", ("gemma2", "gemma3n", "gemma4_e2b", "gemma4_26b")),
                ("qlora_sft", ("gemma3", "gemma4_26b")),
            )
            for p in slow_but(*kept)
        ),
    ],
    indirect=["folder"],
)
def test_adapters(recipe: str, folder: Path, rows: Path, tmp_path: Path) -> None:
    """Placed on the language model's linear layers alone; merged, saved and loaded again by the original class."""
    words = [f"model.model_name_or_path={folder}", f"data.train_file={rows}", "data=messages", "export.dtype=float32"]
    result = short_run(
        recipe,
        tmp_path / "run",
        *words,
        "train.learning_rate=1e-2",
        "adapter.r=4",
        "adapter.lora_alpha=8",
        "eval=none",
        "eval.max_new_tokens=1",
    )
    weights = result.metrics["weights"]
    names, shapes = small_models.linear_layers(folder)
    assert weights["adapted_layers"] == len(names)
    assert weights["trainable"] == sum(4 * (i + o) for o, i in shapes)
    if recipe == "qlora_sft":
        assert weights["four_bit"] == sum(i * o for o, i in shapes)
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    placed = {k.removeprefix("base_model.model.").split(".lora_")[0] for k in adapter}
    assert placed == {small_models.published_layer(n) for n in names}

    merged = tmp_path / "run" / "export" / "merged"
    stored, source = load_file(merged / "model.safetensors"), load_file(folder / "model.safetensors")
    assert {n: t.shape for n, t in stored.items()} == {n: t.shape for n, t in source.items()}
    changed = {n.removesuffix(".weight") for n in source if not torch.equal(stored[n], source[n].float())}
    assert changed <= set(names)
    if recipe == "lora_sft":
        assert changed == set(names)
    model = small_models.original(merged)
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    # Logits: the checkpoint by the original class, with the adapter's products added by hand
    expected = small_models.original(folder)
    own: dict[str, Any] = dict(expected.named_modules())
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        for name in names:
            layer = own.get(module := small_models.published_layer(name)) or own[module.replace("language_model.", "")]
            key = f"base_model.model.{small_models.published_layer(name)}"
            delta = adapter[f"{key}.lora_B.weight"] @ adapter[f"{key}.lora_A.weight"] * 2
            base = layer.weight if recipe == "lora_sft" else stored[f"{name}.weight"] - delta
            layer.weight.copy_(base + delta)
        torch.testing.assert_close(model(input_ids=ids).logits, expected(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", small_models.MODELS)
def test_form_of_the_norm(name: str) -> None:
    """`(1 + w)·x` or `w·x`: with weights of zero the one gives x, the other nothing."""
    model = small_models.build(name)
    norm = model.get_decoder().layers[0].input_layernorm
    with torch.no_grad():
        norm.weight.zero_()
        kept = bool(norm(torch.ones(1, 64)).any())
    assert FAMILIES[model.config.model_type].norm_adds_one == kept


def test_files_for_images_go_along(rows: Path, tmp_path: Path) -> None:
    folder = small_models.save("gemma3", tmp_path / "model")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).write_text(json.dumps({"of": name}), encoding="utf-8")
    words = [f"model.model_name_or_path={folder}", f"data.train_file={rows}", "data=messages", "eval=none"]
    short_run("lora_sft", tmp_path / "run", *words, "eval.max_new_tokens=1", steps=1)
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert (tmp_path / "run" / "export" / "merged" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma4_e2b", "gemma3n", "gemma4_26b"])
def test_recomputation_changes_no_gradient(name: str, rows: Path, tmp_path: Path) -> None:
    """Layers that share keys and values, and experts, under gradient checkpointing."""
    folder = small_models.save(name, tmp_path / name)
    plain = gradients(folder, rows, tmp_path / "plain", *_ONE_BATCH)
    again = gradients(folder, rows, tmp_path / "again", *_ONE_BATCH, "train.gradient_checkpointing=true")
    assert same(again, plain) < 1e-4


def test_experts_are_spoken_of(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trap 11: what of the experts is neither adapted nor in 4 bit is said in numbers."""
    folder = small_models.save("gemma4_26b", tmp_path / "model")
    words = [
        f"model.model_name_or_path={folder}",
        f"data.train_file={rows}",
        "data=messages",
        "export=none",
        "eval=none",
    ]
    result = short_run("qlora_sft", tmp_path / "run", *words, steps=1)
    experts = sum(t.numel() for n, t in load_file(folder / "model.safetensors").items() if ".experts." in n)
    assert result.metrics["weights"]["experts"] == experts == 4 * (4 * 64 * 64 + 4 * 64 * 32)
    assert f"experts: {experts:,} weights" in capsys.readouterr().out
