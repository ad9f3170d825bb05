"""`recipe=reward_model` on the embedded model: its loss by hand, its export as anyone loads it, resumed to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from every_recipe import slow_marked, write_rows
from safetensors.torch import load_file
from short_runs import metrics, short_run
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import gemma_tune
from gemma_tune.chat import render_chat
from gemma_tune.cli.compose import compose_config
from gemma_tune.data.pairs import load_pairs
from gemma_tune.errors import UserError
from gemma_tune.models.adapters import adapter as adapters
from gemma_tune.models.classifier import HEAD, load_classifier, scores
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.source import find_source
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import ASSETS
from gemma_tune.train.reward import reward_arguments, reward_trainer, score_checks


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Short pairs, as words of the command line; the better answer ends with a number."""
    return write_rows("scored_pairs", tmp_path_factory.mktemp("pairs"))


def train_one(folder: Path, pairs: list[str], *words: str, steps: int = 4) -> gemma_tune.RunResult:
    return short_run("reward_model", folder, "eval.evaluators=[]", "eval.num_samples=0", *pairs, *words, steps=steps)


@pytest.fixture(params=slow_marked(["full", "lora"], "reward_model, "))
def run(request: pytest.FixtureRequest, finished: Any) -> Any:
    return (request.param, *finished(f"reward_model, {request.param}"))


def test_run_folder(run: Any) -> None:
    mode, folder, result = run
    stored = json.loads((folder / "result.json").read_text("utf-8"))
    assert stored["status"] == "finished" and stored["headline"]["name"] == "reward_accuracy"
    assert stored["metrics"]["after"]["reward_margin"] > stored["metrics"]["before"]["reward_margin"]
    expected = {"reward_model": "export/reward_model"} | ({} if mode == "full" else {"adapter": "adapter"})
    assert stored["artifacts"] == expected
    assert stored["metrics"]["export"]["export_score_difference"] < 1e-4
    assert stored["metrics"]["export"]["reward_margin"] == pytest.approx(
        result.metrics["after"]["reward_margin"], abs=1e-3
    )
    assert result.metrics["after"]["reward_accuracy"] == 1.0, "held-out pairs are told apart after a few steps"
    after = json.loads((folder / "eval" / "after.json").read_text("utf-8"))
    assert len(after["rows"]["reward_accuracy"]) == result.metrics["after"]["reward_pairs"] == 4
    report = (folder / "report.md").read_text("utf-8")
    assert "reward_accuracy" in report and "AutoModelForSequenceClassification" in report
    assert "recipe=chat" not in report, "it can't be talked to"
    assert {"accuracy", "margin", "mean_reward"} <= metrics(folder)[1].keys()
    if mode == "lora":
        weights = load_file(folder / "adapter" / "adapter_model.safetensors")
        assert any(HEAD in name for name in weights), "the head is saved with the adapter"
        assert json.loads((folder / "adapter" / "adapter_config.json").read_text("utf-8"))["task_type"] == "SEQ_CLS"


def test_evaluations_during_training_are_logged(pairs: list[str], tmp_path: Path) -> None:
    """Every `train.eval_steps` steps, as evaluators of other recipes are, and the same before and after training."""
    result = train_one(tmp_path / "run", pairs, "adapter=lora", "train.eval_steps=1", "export=none", steps=2)
    lines = [line for line in metrics(tmp_path / "run") if "reward_accuracy" in line]
    assert [line["step"] for line in lines] == [0, 1, 2, 2]
    assert lines[0] == {"step": 0, **result.metrics["before"]}
    assert lines[2] == {"step": 2, **result.metrics["after"]}
    assert lines[3] == {**lines[2], "when": "after"}
    assert lines[0]["reward_margin"] != lines[2]["reward_margin"]


def test_the_export_is_what_anyone_loads(run: Any) -> None:
    """Plain Transformers, the chat by its template; the padding of a batch changes no score."""
    _, folder, _ = run
    place = folder / "export" / "reward_model"
    model = AutoModelForSequenceClassification.from_pretrained(place, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert model.config.num_labels == 1 and model.config.pad_token_id == tokenizer.pad_token_id == 0
    assert model.config.architectures == ["Gemma3TextForSequenceClassification"]
    asked = [{"role": "user", "content": "What is 30 plus 5?"}]
    chats = [[*asked, {"role": "assistant", "content": said}] for said in ("That makes 35.", "It is yellow and cool.")]
    stop = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    rows = [render_chat(tokenizer, chat).input_ids for chat in chats]
    rows = [row[: len(row) - row[::-1].index(stop)] for row in rows]
    width = max(map(len, rows)) + 3
    batch = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    with torch.no_grad():
        together = model(batch, attention_mask=(batch != 0).long()).logits[:, 0]
        alone = torch.cat([model(torch.tensor([row])).logits[:, 0] for row in rows])
    assert torch.allclose(together, alone, atol=1e-4) and alone[0] != alone[1]
    assert scores(model, rows, 0, 2) == pytest.approx(alone.tolist(), abs=1e-4)


def classifier(folder: Path, pairs: list[str], *words: str) -> Any:
    cfg = compose_config(
        "reward_model", [*pairs, "tracker=none", "model.dtype=float32", f"output_dir={folder / 'run'}", *words]
    )
    source = find_source(cfg.model)
    tokenizer = load_tokenizer(source)
    torch.manual_seed(0)
    model = adapters.attach(load_classifier(cfg.model, source, tokenizer), cfg.adapter, source, trained_whole=[HEAD])
    train, _ = load_pairs(cfg.data, tokenizer, 512, 0, for_reward=True)
    return cfg, tokenizer, model, train


@pytest.mark.parametrize("words", [[], ["adapter=lora"]], ids=["full", "lora"])
def test_loss_is_by_hand(tmp_path: Path, pairs: list[str], words: list[str]) -> None:
    """-log sigmoid of the scores' difference and the centring term, from the plain language model's hidden states."""
    cfg, tokenizer, model, train = classifier(tmp_path, pairs, "train.extra.center_rewards_coefficient=0.01", *words)
    arguments = reward_arguments(cfg, RunFolder.open(cfg), torch.device("cpu"))
    trainer = reward_trainer(cfg, arguments, model, tokenizer, train)
    looked = [train.dataset[i] for i in range(4)]
    loss = trainer.compute_loss(model, trainer.data_collator(looked)).item()
    body = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny", dtype=torch.float32).model.eval()
    head = next(p for n, p in model.named_parameters() if n.endswith("weight") and HEAD in n.split(".")).detach()[0]
    assert head.dtype == torch.float32 and head.std() > 0
    with torch.no_grad():
        a, b = (
            torch.stack([body(torch.tensor([row[f"{s}_ids"]])).last_hidden_state[0, -1] @ head for row in looked])
            for s in ("chosen", "rejected")
        )
    expected = -torch.nn.functional.logsigmoid(a - b).mean() + 0.01 * ((a + b) ** 2).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-4)


def test_checks_look_at_the_padding_and_the_stop_token(tmp_path: Path, pairs: list[str]) -> None:
    _, tokenizer, model, train = classifier(tmp_path, pairs)
    assert "✓ score: read at <end_of_turn>" in score_checks(model, tokenizer, train)[0]
    model.config.pad_token_id = None
    with pytest.raises(UserError, match="✗ padding"):
        score_checks(model, tokenizer, train)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.score.requires_grad_(False)
    with pytest.raises(UserError, match="✗ score: the head"):
        score_checks(model, tokenizer, train)


def test_four_bit_is_refused(pairs: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="load_in_4bit"):
        train_one(tmp_path / "run", pairs, "adapter=lora", "model.load_in_4bit=true")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_grpo_goes_on_with_it(finished: Any, tmp_path: Path) -> None:
    """The run folder is the reward: each completion's score is what the exported model gives it."""
    folder, _ = finished("reward_model, full")
    words = [
        "tracker=none", "model.dtype=float32", "train.bf16=false", "reward=model", "export=none", "train.save_steps=2",
        f"reward.model.model_name_or_path={folder}", "train.per_device_train_batch_size=8", "train.num_generations=4",
        "train.max_completion_length=8", "train.max_steps=2", "data.max_train_samples=8", "eval.max_samples=4",
        f"output_dir={tmp_path}/run",
    ]  # fmt: skip
    result = gemma_tune.run("grpo", words)
    assert result.status == "finished" and {"test_model", "test_stopped"} <= result.metrics["after"].keys()
    rows = [json.loads(line) for line in (tmp_path / "run/eval/completions.jsonl").read_text("utf-8").splitlines()]
    assert len({row["reward.model"] for row in rows}) > 1 and all(not row["failed"] for row in rows)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "export/reward_model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "export/reward_model")
    row = next(row for row in rows if row["stopped"])
    said = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    ids = render_chat(tokenizer, said).input_ids
    ids = ids[: len(ids) - ids[::-1].index(tokenizer.convert_tokens_to_ids("<end_of_turn>"))]
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([ids])).logits.item()
    assert row["reward.model"] == pytest.approx(wanted, abs=1e-3)
