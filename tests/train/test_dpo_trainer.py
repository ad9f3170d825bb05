"""DPO's loss against a computation by hand, and its reference: the model as it began, whatever that is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from gemma_tune.cli.compose import compose_config
from gemma_tune.config import Config
from gemma_tune.data.pairs import Pairs, load_pairs
from gemma_tune.models.adapters import adapter as adapters
from gemma_tune.models.contexts import training_attention
from gemma_tune.models.kernels.training_layers import training_layers
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_base
from gemma_tune.models.source import find_source
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import ASSETS
from gemma_tune.train.dpo import GemmaDPOTrainer, dpo_arguments, dpo_trainer, likelihood_warning

CPU = torch.device("cpu")
ROWS = [
    {"prompt": "What is 12 plus 5?", "chosen": "That makes 17.", "rejected": "That makes 18, I would say."},
    {"prompt": "Where do I cook?", "chosen": "In the kitchen you can cook.", "rejected": "No."},
    {"prompt": "What does a timer do?", "chosen": "A timer counts.", "rejected": "It is yellow."},
    {"prompt": "Hello!", "chosen": "Hello there.", "rejected": "Cool then, on Friday at nine."},
]


# Fewer layers to take apart.
FEW = ["adapter.target_modules=[q_proj]"]


def configured(folder: Path, *words: str) -> Config:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    more = ["data=preference", f"data.train_file={file}", "tracker=none", f"output_dir={folder / 'run'}"]
    own = ["model.dtype=float32", "train.per_device_train_batch_size=4", "train.learning_rate=1e-3"]
    return compose_config("dpo", [*more, *own, *words])


def built(folder: Path, *words: str, attention: str | None = "sdpa") -> tuple[GemmaDPOTrainer, Any, Pairs]:
    """A trainer on the embedded model, the model, and its pairs; with the kernels that a run has, None."""
    cfg = configured(folder, *words)
    source = find_source(cfg.model)
    tokenizer = load_tokenizer(source)
    train, _ = load_pairs(cfg.data, tokenizer, cfg.train.max_length, 0)
    torch.manual_seed(0)
    base = load_base(cfg.model, source, tokenizer)
    model = adapters.attach(base, cfg.adapter, source)
    with training_attention(base, attention), training_layers(base, attention is None, None):
        trainer = dpo_trainer(cfg, dpo_arguments(cfg, RunFolder.open(cfg), CPU), model, tokenizer, train)
    return trainer, model, train


def sums(model: Any, train: Any, side: str) -> torch.Tensor:
    """Log-likelihood of each answer, one row at a time, without padding, with the whole logits; float64, [N]."""
    found = []
    for pair in getattr(train, "dataset", train):
        ids = [*pair["prompt_ids"], *pair[f"{side}_ids"]]
        log_probs = model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        picked = log_probs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        found.append(picked[len(pair["prompt_ids"]) - 1 :].sum())
    return torch.stack(found)


def plain(dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(ASSETS / "tiny", dtype=dtype).eval()


def shaken(model: Any) -> None:
    """Moves every trained weight a little, as training would."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("words", [pytest.param([], marks=pytest.mark.slow), ["adapter=lora"]], ids=["full", "lora"])
def test_loss_is_the_papers(tmp_path: Path, words: list[str]) -> None:
    """Equation 7 of https://arxiv.org/abs/2305.18290, from log-likelihoods summed by hand; and its gradient."""
    trainer, model, train = built(tmp_path, "train.beta=0.3", *words)
    batch = trainer.data_collator([train.dataset[i] | trainer.train_dataset[i] for i in range(4)])
    first = trainer.compute_loss(model, dict(batch)).item()
    assert first == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-5), "policy and reference are one model"
    shaken(model)
    reference = plain()
    with torch.no_grad():
        theirs = sums(reference, train, "chosen") - sums(reference, train, "rejected")
    ours = sums(model, train, "chosen") - sums(model, train, "rejected")
    expected = -torch.nn.functional.logsigmoid(0.3 * (ours - theirs)).mean()
    (gradient,) = torch.autograd.grad(expected, [next(p for p in model.parameters() if p.requires_grad)])
    loss = trainer.compute_loss(model, dict(batch))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4) and abs(loss.item() - first) > 1e-3
    found = next(p.grad for p in model.parameters() if p.requires_grad)
    assert torch.allclose(found, gradient, rtol=1e-3, atol=1e-6)


def test_the_first_margins_are_0(tmp_path: Path) -> None:
    """With every speed-up, to the bit, where the reference was computed with the same rows in a batch."""
    trainer, model, _ = built(tmp_path, "adapter=lora", attention=None)
    batch, widths = trainer.data_collator([trainer.train_dataset[i] for i in range(4)]), []
    base = model.get_base_model()
    base.model.layers[0].register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[:2]))
    with training_attention(base, None), training_layers(base, True, None):
        loss = trainer.compute_loss(model.train(), dict(batch))
    assert widths[0][0] == 1 and widths[0][1] < 0.9 * batch["attention_mask"].sum()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)
    logged = trainer._metrics["train"]
    assert {logged[f"rewards/{name}"][-1] for name in ("chosen", "rejected", "margins")} == {0.0}
    with torch.no_grad():
        theirs = [sums(plain(), trainer.train_dataset, side).mean().item() for side in ("chosen", "rejected")]
    assert [logged[f"logps/{side}"][-1] for side in ("chosen", "rejected")] == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(
    "init",
    [pytest.param("true", marks=pytest.mark.slow), "pissa_niter_4", pytest.param("olora", marks=pytest.mark.slow)],
)
def test_the_reference_is_the_model_as_it_began(tmp_path: Path, init: str) -> None:
    """With an adapter: the base without it. The trainer changes nothing in the model and leaves no second adapter."""
    trainer, model, train = built(tmp_path, "adapter=lora", f"adapter.init_lora_weights={init}", *FEW)
    base = plain()
    with torch.no_grad():
        for side in ("chosen", "rejected"):
            stored = torch.tensor(trainer.train_dataset[f"ref_{side}_logps"], dtype=torch.float64)
            assert torch.allclose(stored, sums(base, train, side), atol=2e-3)
            assert torch.allclose(sums(model, train, side), sums(base, train, side), atol=2e-3)
    assert list(model.peft_config) == ["default"] and str(model.peft_config["default"].init_lora_weights) in (
        init,
        "True",
    )
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_pissa_would_change_the_base_in_trl() -> None:
    """What the trainer's `__init__` is there for: a second adapter takes its start out of the base, too."""
    model = get_peft_model(plain(), LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa", r=4))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    before = layer.base_layer.weight.detach().clone()
    model.add_adapter("ref", model.peft_config["default"])
    assert not torch.allclose(layer.base_layer.weight, before, atol=1e-3)


def test_four_bit(tmp_path: Path) -> None:
    """QLoRA: the adapter keeps its float32, and the reference is the 4-bit base."""
    trainer, model, train = built(tmp_path, "adapter=lora", "model.load_in_4bit=true")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    with torch.no_grad(), model.disable_adapter():
        expected = sums(model, train, "chosen")
    stored = torch.tensor(trainer.train_dataset["ref_chosen_logps"], dtype=torch.float64)
    assert torch.allclose(stored, expected, atol=2e-2)


def test_options_arrive(tmp_path: Path) -> None:
    words = ["train.loss_type=robust+sft", "train.extra.loss_weights=[1.0,0.5]", "train.extra.label_smoothing=0.1"]
    trainer, *_ = built(tmp_path, *words, "train.beta=0.2", "train.max_length=64")
    assert trainer.loss_types == ["robust", "sft"] and trainer.loss_weights == [1.0, 0.5]
    assert (trainer.beta, trainer.label_smoothing, trainer.args.max_length) == (0.2, 0.1, 64)
    assert trainer.args.report_to == [] and trainer.ref_model is None


def test_dropout_that_was_asked_for_stays(tmp_path: Path) -> None:
    """TRL switches the adapter's dropout off without a word."""
    _, model, _ = built(tmp_path, "adapter=lora", "adapter.lora_dropout=0.2")
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.2}


def test_dropout_is_not_in_the_reference(tmp_path: Path) -> None:
    """Of an adapter that doesn't begin at nothing."""
    words = ["adapter=lora", "adapter.lora_dropout=0.5", "adapter.init_lora_weights=pissa"]
    trainer, model, train = built(tmp_path, *words)
    with torch.no_grad():
        expected = sums(model.eval(), train, "chosen")
    stored = torch.tensor(trainer.train_dataset["ref_chosen_logps"], dtype=torch.float64)
    assert torch.allclose(stored, expected, atol=2e-2)


def test_chosen_answers_that_become_less_likely_are_said() -> None:
    name = "preference_chosen_loss"
    assert likelihood_warning({}, {name: 1.0}) is None
    assert likelihood_warning({name: 2.0}, {name: 1.0}) is None
    said = str(likelihood_warning({name: 1.0}, {name: 2.0}))
    assert "less likely" in said and "rejected" not in said
    margin = "preference_margin"
    said = str(likelihood_warning({name: 1.0, margin: 0.0}, {name: 2.0, margin: 0.5}))
    assert "the rejected ones still more so" in said
