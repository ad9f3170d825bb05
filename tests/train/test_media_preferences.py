"""Preferences on rows with images equal the losses' formulas with the checkpoint's own class and processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from media_models import media_folder, processor_folder, tokenizer_at
from media_plain import answer_ids, conversations, log_probs, passes_without_images, processor_of_folder, prompt_inputs
from short_runs import losses, metrics, short_run
from slow import slow_after
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from gemma_tune.cli.compose import compose_config
from gemma_tune.data.pairs import load_pairs
from gemma_tune.data.unpaired import load_labelled
from gemma_tune.errors import UserError
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_base
from gemma_tune.models.source import find_source
from gemma_tune.run.folder import RunFolder
from gemma_tune.train.dpo import dpo_arguments, dpo_trainer
from gemma_tune.train.kto import kto_arguments, kto_trainer

CPU = torch.device("cpu")
BETA, MOVED = 0.3, 1.2
LOAD = {"dpo": load_pairs, "kto": load_labelled}
MAKE: dict[str, Any] = {"dpo": (dpo_arguments, dpo_trainer), "kto": (kto_arguments, kto_trainer)}


def pairs_of(folder: Path) -> tuple[list[dict[str, Any]], Path]:
    """Pairs with one image, two images, none and one; and their file."""
    rows = conversations(folder, answers=2)
    file = folder / "pairs.jsonl"
    lines = [
        {"prompt": r["messages"], **{n: _said(a) for n, a in zip(("chosen", "rejected"), r["answers"], strict=True)}}
        for r in rows
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return rows, file


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def first_step(recipe: str, model: Path, file: Path, folder: Path, batch: int) -> tuple[float, float, Any]:
    """Loss and norm of the gradients of a step, each weight being 1.2 times what it is in the reference."""
    words = [f"model.model_name_or_path={model}", "data=preference", f"data.train_file={file}", f"output_dir={folder}"]
    more = ["model.dtype=float32", f"train.per_device_train_batch_size={batch}", f"train.beta={BETA}", "tracker=none"]
    cfg = compose_config(recipe, [*words, *more])
    source = find_source(cfg.model)
    tokenizer = load_tokenizer(source)
    train, _ = LOAD[recipe](cfg.data, tokenizer, cfg.train.max_length, 0)
    net = load_base(cfg.model, source, tokenizer)
    arguments, make = MAKE[recipe]
    trainer = make(cfg, arguments(cfg, RunFolder.open(cfg), CPU), net, tokenizer, train)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(MOVED)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.training_step(net.train(), next(iter(trainer.get_train_dataloader())))
    return loss.item(), norm(p.grad for p in net.parameters() if p.grad is not None), trainer


def norm(gradients: Any) -> float:
    return torch.stack([g.norm() for g in gradients]).norm().item()


def moved(model: Path) -> tuple[Any, Any]:
    """The checkpoint's own class, and another one whose language part has been moved; their towers are alike."""
    reference, net = (AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        for parameter in language(net):
            parameter.mul_(MOVED)
    return reference, net.train()


def language(net: Any) -> list[Any]:
    is_tower = FAMILIES[net.config.model_type].is_tower
    return [p for n, p in net.named_parameters() if not is_tower(n)]


@pytest.mark.parametrize("family", slow_after(1, ["gemma3", "gemma4_31b"]))
def test_dpo(family: str, tmp_path: Path) -> None:
    """Loss and gradients of a padded batch: -log σ(β (log π/π_ref of the chosen answer - that of the rejected one))."""
    model = media_folder(family, tmp_path / "model")
    rows, file = pairs_of(tmp_path)
    loss, size, _ = first_step("dpo", model, file, tmp_path / "run", batch=len(rows))

    processor, _ = processor_of_folder(model)
    reference, net = moved(model)
    total, seen = torch.zeros(()), []
    for row in rows:
        inputs = prompt_inputs(processor, row["messages"])
        ratios = []
        for answer in row["answers"]:
            ids = answer_ids(processor, answer)
            with torch.no_grad():
                before = log_probs(reference, inputs, ids).sum()
            ratios.append(log_probs(net, inputs, ids).sum() - before)
        seen += [abs(ratio.item()) for ratio in ratios]
        total = total - logsigmoid(BETA * (ratios[0] - ratios[1]))
    (total / len(rows)).backward()
    assert min(seen) > 0.01, "the reference is another model"
    assert loss == pytest.approx((total / len(rows)).item(), rel=1e-5)
    assert size == pytest.approx(norm(p.grad for p in language(net)), rel=1e-5)


@pytest.mark.slow
def test_kto(tmp_path: Path) -> None:
    """Equations 6 to 8 of https://arxiv.org/abs/2402.01306; answers to other prompts are given this prompt's images."""
    model = media_folder("gemma3", tmp_path / "model")
    rows, file = pairs_of(tmp_path)
    loss, size, trainer = first_step("kto", model, file, tmp_path / "run", batch=2 * len(rows))

    processor, _ = processor_of_folder(model)
    reference, net = moved(model)
    prompts = [prompt_inputs(processor, row["messages"]) for row in rows]
    by_ids = {tuple(inputs["input_ids"][0].tolist()): inputs for inputs in prompts}
    ratios, others = [], []
    for row in trainer.train_dataset:
        inputs = by_ids[tuple(row["prompt_ids"])]
        with torch.no_grad():
            before, other = (
                log_probs(reference, inputs, row[n]).sum() for n in ("completion_ids", "KL_completion_ids")
            )
            others.append(log_probs(net, inputs, row["KL_completion_ids"]).sum() - other)
        ratios.append(log_probs(net, inputs, row["completion_ids"]).sum() - before)
    zero = torch.stack(others).mean().clamp(min=0)
    signs = [1 if row["label"] else -1 for row in trainer.train_dataset]
    whole = torch.stack([1 - torch.sigmoid(BETA * s * (r - zero)) for s, r in zip(signs, ratios, strict=True)]).mean()
    whole.backward()
    assert loss == pytest.approx(whole.item(), rel=1e-5)
    assert size == pytest.approx(norm(p.grad for p in language(net)), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("dpo", ["adapter=lora"]),
        ("dpo", ["model.train_towers=full", "adapter=lora"]),
        ("dpo", ["model.train_towers=lora", "adapter=lora"]),
        ("kto", ["adapter=lora"]),
    ],
    ids=["dpo", "dpo with towers", "dpo with their adapters", "kto"],
)
def test_runs_lose_no_image(recipe: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all forward passes over image tokens one has none: that of the check that images change the loss."""
    model = media_folder("gemma3", tmp_path / "model")
    _, file = pairs_of(tmp_path)
    without = passes_without_images(monkeypatch)
    given = [f"model.model_name_or_path={model}", "data=preference", f"data.train_file={file}", "export=none"]
    held = [f"data.validation_file={file}", "eval.evaluators=[preference]", "train.learning_rate=1e-2"]
    short_run(
        recipe,
        tmp_path / "run",
        *given,
        *held,
        "eval.num_samples=0",
        "train.per_device_train_batch_size=4",
        *words,
        steps=6,
    )
    found = losses(tmp_path / "run")
    first = next(line for line in metrics(tmp_path / "run") if "loss" in line)
    assert found[0] == pytest.approx(0.6931 if recipe == "dpo" else 0.5, abs=1e-3), "reference and policy are alike"
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-4) and first["rewards/rejected"] == pytest.approx(
        0, abs=1e-4
    )
    assert found[-1] < found[0]
    assert without == [1]


def test_a_reward_model_refuses_images(tmp_path: Path) -> None:
    tokenizer = tokenizer_at(processor_folder("gemma3", tmp_path / "model"))
    _, file = pairs_of(tmp_path)
    data = compose_config("reward_model", ["data=preference", f"data.train_file={file}"]).data
    with pytest.raises(UserError, match=r"pairs.jsonl:1: .* an image, and recipe=reward_model knows text alone"):
        load_pairs(data, tokenizer, 512, 0, for_reward=True)
