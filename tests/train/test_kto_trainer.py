"""KTO's loss against the paper's formula in float64, its mismatched answers, and its reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from gemma_tune.cli.compose import compose_config
from gemma_tune.data.unpaired import Labelled, load_labelled
from gemma_tune.models.adapters import adapter as adapters
from gemma_tune.models.contexts import training_attention
from gemma_tune.models.kernels.training_layers import training_layers
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_base
from gemma_tune.models.source import find_source
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import ASSETS
from gemma_tune.train.kto import GemmaKTOTrainer, in_batches, kto_arguments, kto_trainer
from gemma_tune.train.kto_answers import balance_warning

CPU = torch.device("cpu")
ROWS = [
    {"prompt": "What is 12 plus 5?", "completion": "That makes 17.", "label": True},
    {"prompt": "Where do I cook?", "completion": "No.", "label": False},
    {"prompt": "What does a timer do?", "completion": "A timer counts.", "label": True},
    {"prompt": "Hello!", "completion": "Cool then, on Friday at nine.", "label": False},
    {"prompt": "What is 3 plus 4?", "completion": "That makes 7.", "label": True},
]
FEW = ["adapter=lora", "adapter.target_modules=[q_proj]"]


def built(folder: Path, *words: str, attention: str | None = "sdpa") -> tuple[GemmaKTOTrainer, Any, Labelled]:
    """A trainer on the embedded model, the model, and its rows; with the kernels that a run has, None."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    more = ["data=unpaired_preference", f"data.train_file={file}", "tracker=none", f"output_dir={folder / 'run'}"]
    own = ["model.dtype=float32", "train.per_device_train_batch_size=5", "train.learning_rate=1e-3"]
    cfg = compose_config("kto", [*more, *own, *words])
    source = find_source(cfg.model)
    tokenizer = load_tokenizer(source)
    train, _ = load_labelled(cfg.data, tokenizer, cfg.train.max_length, 0)
    torch.manual_seed(0)
    base = load_base(cfg.model, source, tokenizer)
    model = adapters.attach(base, cfg.adapter, source)
    with training_attention(base, attention), training_layers(base, attention is None, None):
        trainer = kto_trainer(cfg, kto_arguments(cfg, RunFolder.open(cfg), CPU), model, tokenizer, train)
    return trainer, model, train


def likelihoods(model: Any, rows: Any, answer: str = "completion_ids") -> torch.Tensor:
    """Log-likelihood of each answer, one row at a time, without padding, with the whole logits; float64, [N]."""
    found = []
    for row in rows:
        ids = [*row["prompt_ids"], *row[answer]]
        log_probs = model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        found.append(log_probs.gather(1, torch.tensor(ids[1:])[:, None])[len(row["prompt_ids"]) - 1 :].sum())
    return torch.stack(found)


def test_the_first_rewards_and_kl_are_0(tmp_path: Path) -> None:
    """With every speed-up, to the bit: batches of the reference are those of training."""
    trainer, model, _ = built(tmp_path, *FEW, attention=None)
    rows = trainer.train_dataset
    base = model.get_base_model()
    with training_attention(base, None), training_layers(base, True, None):
        loss = trainer.compute_loss(model.train(), trainer.data_collator([rows[i] for i in range(5)]))
    logged = trainer._metrics["train"]
    assert loss.item() == pytest.approx(0.5, abs=1e-7) and logged["kl"] == [0.0]
    assert logged["rewards/chosen"] == logged["rewards/rejected"] == logged["rewards/margins"] == [0.0]


def plain(dtype: torch.dtype = torch.float64) -> Any:
    return AutoModelForCausalLM.from_pretrained(ASSETS / "tiny", dtype=dtype).eval()


@pytest.mark.parametrize("words", [pytest.param([], marks=pytest.mark.slow), FEW], ids=["full", "lora"])
def test_loss_is_the_papers(tmp_path: Path, words: list[str]) -> None:
    """Equations 6 to 8 of https://arxiv.org/abs/2402.01306 with unequal weights, in float64; and its gradient.

    z₀ = max(0, mean over the batch of log π(y'|x) - log π_ref(y'|x)) with answers y' to other prompts; no gradient.
    """
    weights = ["train.desirable_weight=1.5", "train.undesirable_weight=0.4", "train.beta=0.3"]
    trainer, model, _ = built(tmp_path, *weights, *words)
    rows = trainer.train_dataset
    batch = trainer.data_collator([rows[i] for i in range(5)])
    first = trainer.compute_loss(model, dict(batch)).item()
    assert first == pytest.approx(0.5 * (3 * 1.5 + 2 * 0.4) / 5, abs=1e-5), "policy and reference are one model"
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    reference = plain()
    with torch.no_grad():
        theirs, others = likelihoods(reference, rows), likelihoods(reference, rows, "KL_completion_ids")
        reached = likelihoods(model, rows, "KL_completion_ids")
    reward = likelihoods(model, rows) - theirs
    good = torch.tensor(rows["label"])
    for sign in (1, -1):  # the estimate is negative in one of the two, and then 0
        z = (sign * (reached - others)).mean().clamp(min=0)
        if sign == -1:
            batch["ref_KL_logps"] = (2 * reached - others).float()
        value = torch.where(good, 1.5 * torch.sigmoid(0.3 * (reward - z)), 0.4 * torch.sigmoid(0.3 * (z - reward)))
        expected = (torch.where(good, 1.5, 0.4) - value).mean()
        loss = trainer.compute_loss(model, dict(batch))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4) and loss.item() != first
    weight = next(p for p in model.parameters() if p.requires_grad)
    (gradient,) = torch.autograd.grad(expected, [weight], retain_graph=True)
    loss.backward()
    assert weight.grad is not None and torch.allclose(weight.grad, gradient.float(), rtol=2e-3, atol=1e-6)


def test_the_reference_is_the_model_as_it_began(tmp_path: Path) -> None:
    """Also of an adapter that doesn't begin at zero; no second adapter is left."""
    trainer, model, _ = built(tmp_path, *FEW, "adapter.init_lora_weights=pissa", "adapter.lora_dropout=0.5")
    base, rows = plain(torch.float32), trainer.train_dataset
    with torch.no_grad():
        for name, answer in (("ref_logps", "completion_ids"), ("ref_KL_logps", "KL_completion_ids")):
            stored = torch.tensor(rows[name], dtype=torch.float64)
            assert torch.allclose(stored, likelihoods(base, rows, answer), atol=2e-2)
    assert list(model.peft_config) == ["default"] and trainer.ref_model is None


def test_options_arrive(tmp_path: Path) -> None:
    words = ["train.loss_type=apo_zero_unpaired", "train.beta=0.2", "train.desirable_weight=2", *FEW]
    trainer, *_ = built(tmp_path, *words)
    assert (trainer.loss_type, trainer.beta, trainer.desirable_weight) == ("apo_zero_unpaired", 0.2, 2.0)
    assert trainer.args.train_sampling_strategy == "sequential" and not trainer.calculate_KL


@pytest.mark.parametrize(("n", "size"), [(12, 4), (10, 4), (9, 4), (2, 8), (8, 3)])
def test_every_answer_meets_another_prompt(n: int, size: int) -> None:
    """Within its batch; a last row that is alone takes an answer of the batch before. The order is the seed's."""
    rows = [{"prompt_ids": [i], "completion_ids": [100 + i], "label": i % 2 == 0} for i in range(n)]
    made = in_batches(Dataset.from_list(rows), size, seed=3)
    asked = [row["prompt_ids"][0] for row in made]
    assert sorted(asked) == list(range(n)) and (n < 4 or asked != sorted(asked))
    assert all(row["completion_ids"] == [100 + row["prompt_ids"][0]] for row in made)
    for start in range(0, n, size):
        batch = made[start : start + size]
        own = [ids[0] for ids in batch["completion_ids"]]
        others = [ids[0] for ids in batch["KL_completion_ids"]]
        assert all(a != b for a, b in zip(own, others, strict=True))
        if len(own) > 1:
            assert others == [own[-1], *own[:-1]]  # TRL's rule
        else:
            assert others == [ids[0] for ids in made[n - 2 : n - 1]["completion_ids"]]
    assert in_batches(Dataset.from_list(rows), size, seed=3)["KL_completion_ids"] == made["KL_completion_ids"]


def test_unequal_numbers_are_said() -> None:
    """With the weight that makes up for them (equation 8)."""

    def said(good: int, bad: int, *words: str) -> str | None:
        cfg = compose_config("kto", ["train.max_steps=1", "tracker=none", *words])
        return balance_warning(cfg, Labelled(desirable=good, undesirable=bad))

    assert said(10, 10) is None and said(12, 10) is None
    assert "train.desirable_weight=4 does" in str(said(10, 40))
    assert said(10, 40, "train.desirable_weight=4") is None
    assert "train.undesirable_weight=3 does" in str(said(30, 10))
    assert said(30, 10, "train.undesirable_weight=3") is None
    assert "no training row has a bad answer" in str(said(30, 0))
    assert "no training row has a good answer" in str(said(0, 3))
