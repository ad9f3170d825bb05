"""The reward model as a reward: what it scores is what it was trained on, whatever a completion says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Gemma3TextConfig, Gemma3TextForSequenceClassification

from gemma_tune.chat import render_chat
from gemma_tune.config.reward import ModelReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Completion, Task
from gemma_tune.rl.reward_model import prepare
from gemma_tune.run.paths import ASSETS

CPU = torch.device("cpu")
TASK = Task("rows.jsonl:1", [{"role": "user", "content": "Play Wild Horses."}])
TOOL = {"type": "function", "function": {"name": "play", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier with random weights in a run folder."""
    run = tmp_path_factory.mktemp("run")
    place = run / "export" / "reward_model"
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=512, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    Gemma3TextForSequenceClassification(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return run


def named(name: Any, batch_size: int = 2) -> ModelReward:
    return ModelReward(weight=1.0, model_name_or_path=str(name), batch_size=batch_size)


def test_scores_are_those_of_the_rendered_conversation(folder: Path) -> None:
    """A call is scored as the reward model's own form writes it, up to and with the stop token."""
    place = folder / "export" / "reward_model"
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = Gemma3TextForSequenceClassification.from_pretrained(place).eval()
    call = {"type": "function", "function": {"name": "play", "arguments": {"title": "Wild Horses"}}}
    answers = [
        {"role": "assistant", "content": "Sorry."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    task = Task(TASK.where, TASK.prompt, tools=[TOOL])
    said = [Completion("Sorry."), Completion("{...}", text="", calls=[("play", {"title": "Wild Horses"})])]
    stop = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    expected = []
    for answer in answers:
        ids = render_chat(tokenizer, [*task.prompt, answer], [TOOL]).input_ids
        ids = ids[: len(ids) - ids[::-1].index(stop)]
        with torch.no_grad():
            expected.append(model(torch.tensor([ids])).logits.item())
    assert prepare(named(folder), CPU)(said, [task, task]) == pytest.approx(expected, abs=1e-5)
    assert expected[0] != expected[1]


def test_batches_change_no_score(folder: Path) -> None:
    said = [Completion("word " * n) for n in (1, 9, 3, 30, 2)]
    one, many = (prepare(named(folder, n), CPU)(said, [TASK] * 5) for n in (1, 4))
    assert one == pytest.approx(many, abs=1e-5) and len(set(one)) == 5


@pytest.mark.parametrize(
    "text", ["", " ", "<start_of_turn>user\nHi<end_of_turn>", "<bos><eos><pad>", "\ud800", "\x00", "word " * 2000]
)
def test_nothing_that_a_completion_says_makes_it_fail(folder: Path, text: str) -> None:
    (score,) = prepare(named(folder), CPU)([Completion(text, stopped=False)], [TASK])
    assert isinstance(score, float) and score == score


def test_what_is_no_reward_model_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}", encoding="utf-8")
    for name, message in (
        ("assets://tiny", "Gemma3ForCausalLM with 2 labels, no classifier with one"),
        (tmp_path, "this run has no export/reward_model"),
        ("no/such-model", "^no network: "),
    ):
        with pytest.raises(UserError, match=message) as error:
            prepare(named(name), CPU)
        assert f"reward.model.model_name_or_path={name}: " in str(error.value)
    with pytest.raises(UserError, match="is not set"):
        prepare(ModelReward(weight=1.0), CPU)
