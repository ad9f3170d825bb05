"""What our trainers add to TRL's: prompts as they were rendered, failed rewards left out, and what a step takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rl_models import made, spelled
from slow import slow_after
from transformers import AutoTokenizer

from gemma_tune.chat import render_prompt
from gemma_tune.data.records import Record
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import per_completion
from gemma_tune.rl.scoring import WeightedReward
from gemma_tune.rl.tasks import Tasks
from gemma_tune.run.paths import ASSETS

WORDS = ["train.per_device_train_batch_size=8", "train.num_generations=4", "train.max_completion_length=8"]


def test_the_model_is_asked_as_it_will_be_served(tmp_path: Path, handed_back: list[int]) -> None:
    """One <bos>, the user's turn, and the model's turn begun; freed memory is kept where that was asked for."""
    trainer = made("grpo", tmp_path / "run", *WORDS, "train.keep_freed_memory=true")
    generated = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    assert not handed_back
    asked = [
        ids[mask.bool()].tolist() for ids, mask in zip(generated["prompt_ids"], generated["prompt_mask"], strict=True)
    ]
    tokenizer = trainer.processing_class
    wanted = {tuple(render_prompt(tokenizer, list(trainer._tasks[i].prompt))) for i in range(16)}
    assert set(map(tuple, asked)) <= wanted
    assert all(ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id for ids in asked)


def test_a_completion_that_a_reward_failed_on_is_out_of_its_group(tmp_path: Path) -> None:
    """TRL would take the failed reward as 0, and hold the others against it."""
    calls = iter(range(1000))
    sometimes = per_completion(lambda c, r: [1.0, 2.0, None, "x"][next(calls) % 4])  # type: ignore[list-item,return-value]
    samples: list[Any] = []
    trainer = made(
        "grpo",
        tmp_path / "run",
        *WORDS,
        rewards=[
            WeightedReward("spelled", lambda c, r: [1.0] * len(c), 1.0),
            WeightedReward("sometimes", sometimes, 0.5),
        ],
        samples=samples,
    )
    generated = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    # sums 1.5, 2 and 1 (the third says nothing of it); the fourth failed
    group = np.array([1.5, 2.0, 1.0])
    wanted = [*((group - group.mean()) / (group.std(ddof=1) + 1e-4)), 0.0]
    np.testing.assert_allclose(generated["advantages"].numpy(), wanted * 2, atol=1e-5)
    assert [row["reward"] for row in samples[:4]] == [1.5, 2.0, 1.0, None]
    assert samples[3]["failed"] == {"sometimes": "gave 'x', not a number"} and samples[3]["reward.sometimes"] is None
    assert trainer._metrics["train"]["rewards/sometimes/failed"] == [0.25]
    assert trainer._metrics["train"]["rewards/spelled/failed"] == [0.0]


@pytest.fixture
def handed_back(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows each time that freed memory goes back to the system."""
    times: list[int] = []
    monkeypatch.setattr("gemma_tune.rl.trainer.hand_back_freed_memory", lambda: times.append(1))
    return times


def test_two_steps_log_what_each_part_takes(tmp_path: Path, handed_back: list[int]) -> None:
    trainer = made("grpo", tmp_path / "run", *WORDS, "train.learning_rate=1e-4")
    trainer.train()
    assert len(handed_back) == 2 * 2
    first, second = [line for line in trainer.state.log_history if "loss" in line]
    for line in (first, second):
        assert {"rewards/spelled/mean", "rewards/spelled/std", "rewards/spelled/failed", "reward"} <= line.keys()
        parts = [line[f"time/{part}"] for part in ("generate", "score", "reward", "update")]
        assert min(parts) >= 0 and line["time/generate"] > 0 and line["time/update"] > 0
        assert sum(parts) == pytest.approx(line["step_time"], rel=0.5)
        assert line["tokens_per_second"] > 0


@pytest.mark.parametrize("recipe", ["grpo", "rloo"])
def test_adapters_over_four_bits_stay_float32(recipe: str, tmp_path: Path) -> None:
    trainer = made(recipe, tmp_path / "run", *WORDS, "adapter=lora", "model.load_in_4bit=true", "model.dtype=bfloat16")
    trained = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
    assert trained == {torch.float32}


def test_a_reward_sees_calls_and_the_row(tmp_path: Path) -> None:
    seen: list[Any] = []

    def look(completions: Any, records: Any) -> list[float]:
        seen.extend(zip(completions, records, strict=True))
        return spelled(completions, records)

    trainer = made(
        "grpo",
        tmp_path / "run",
        *WORDS,
        "data=sample",
        "data.validation_file=null",
        "train.max_completion_length=24",
        rewards=[WeightedReward("look", look, 1.0)],
    )
    trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    completion, task = seen[0]
    assert task.tools and task.row["messages"] and "train.jsonl:" in task.where
    assert isinstance(completion.calls, tuple) and completion.tokens > 0
    assert "<end_of_turn>" not in completion


def test_the_order_of_an_epoch_hangs_on_its_number(tmp_path: Path) -> None:
    """A resumed run begins in the middle, and must find the order that the whole run has there."""
    sampler = made("grpo", tmp_path / "run", *WORDS)._get_train_sampler()
    orders = []
    for epoch in (0, 1, 2):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] != orders[1] != orders[2]
    again = made("grpo", tmp_path / "run", *WORDS)._get_train_sampler()
    again.set_epoch(2)
    assert list(again) == orders[2]


def test_rows_that_can_not_be_asked() -> None:
    records = [Record(f"f:{i}", messages=[{"role": "user", "content": "a " * n}]) for i, n in enumerate((3, 900, 5))]
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    with pytest.raises(UserError, match=r"f:1: the prompt has [\d,]+ tokens, and 100 fit"):
        Tasks(records, tokenizer, 100)
    refused: dict[str, None] = {}
    tasks = Tasks(records, tokenizer, 100, refused)
    assert [tasks.where(i) for i in range(len(tasks))] == ["f:0", "f:2"] and next(iter(refused)).startswith("f:1: ")
    with pytest.raises(UserError, match="no row can be used"):
        Tasks(records[1:2], tokenizer, 100, {})
    asked = Record("f:9", messages=[{"role": "user", "content": "a"}], thinking=True)
    with pytest.raises(UserError, match=r"f:9: .* isn't asked to think"):
        Tasks([asked], tokenizer, 100)
    better, worse = ([{"role": "assistant", "content": text}] for text in "bc")
    pair = Record("f:1", messages=[*records[0].messages, *better], rejected=worse)
    notes = Tasks([pair, records[0]], tokenizer, 100).notes("prompts")
    assert (
        "prompts: 1 row has a worse answer, too (rejected), which isn't used here; recipe=dpo learns from both" in notes
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(100, 140)[None]).logits
    return found


@pytest.mark.parametrize("recipe", slow_after(1, ["grpo", "rloo"]))
def test_the_reference_is_the_model_as_it_begins(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what lies on the disk under the name in its config: another revision, or a model with towers."""

    def read_again(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("TRL loads a reference")

    monkeypatch.setattr(f"trl.trainer.{recipe}_trainer.create_model_from_path", read_again)
    trainer = made(recipe, tmp_path / "run", *WORDS, "train.beta=0.1", "train.learning_rate=1e-3", "train.max_steps=3")
    assert trainer.beta == trainer.args.beta == 0.1
    begun = {n: p.clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    assert all(torch.equal(p, begun[n]) and not p.requires_grad for n, p in trainer.ref_model.named_parameters())
    assert not all(torch.equal(p, begun[n]) for n, p in trainer.model.named_parameters())
    kl = [line["kl"] for line in trainer.state.log_history if "loss" in line]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 1e-5


@pytest.mark.parametrize("init", slow_after(1, ["pissa", "olora"]))
def test_the_copy_of_an_adapter_changes_no_base(init: str, tmp_path: Path) -> None:
    """TRL's reference is initialised like the adapter that it copies, which would take these out of the base twice."""
    words = [*WORDS, "train.beta=0.1", "adapter=lora", "adapter.r=4"]
    plain, taken = (
        made("grpo", tmp_path / name, *words, f"adapter.init_lora_weights={name}") for name in ("true", init)
    )
    torch.testing.assert_close(logits(taken.model), logits(plain.model), atol=1e-3, rtol=0)
    taken.model.set_adapter("ref")
    torch.testing.assert_close(logits(taken.model), logits(plain.model), atol=1e-3, rtol=0)
    assert taken.model.peft_config["default"].init_lora_weights == init
