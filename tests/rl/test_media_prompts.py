"""Training with rewards on prompts with images equals the checkpoint's own class with its own processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from media_models import media_folder, tokenizer_at
from media_plain import conversations, log_probs, passes_without_images, processor_of_folder, prompt_inputs
from rl_models import made, spelled
from short_runs import metrics, short_run
from slow import slow_after
from transformers import AutoModelForCausalLM

from gemma_tune.cli.compose import compose_config
from gemma_tune.errors import UserError
from gemma_tune.models.family import FAMILIES
from gemma_tune.rewards.base import Task
from gemma_tune.rl.rewards import scorer_of
from gemma_tune.rl.scoring import WeightedReward
from gemma_tune.rl.tasks import read_tasks
from gemma_tune.steps.data import media_files

# Four prompts of two completions, in two batches
SIZES = ["train.per_device_train_batch_size=4", "train.num_generations=2", "train.steps_per_generation=2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return media_folder("gemma3", tmp_path_factory.mktemp("model"))


def asked(folder: Path, model: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Prompts with one image, two images, none and one, and the words that name them and the model."""
    rows = conversations(folder, answers=1)
    lines = [
        {"messages": [*row["messages"], {"role": "assistant", "content": row["answers"][0]}], "number": i}
        for i, row in enumerate(rows)
    ]
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return rows, [f"model.model_name_or_path={model}", "data=messages", f"data.train_file={file}", "eval=none"]


class Plain:
    """The checkpoint's own class and processor, and the prompts as they make them."""

    def __init__(self, model: Path, rows: list[dict[str, Any]]) -> None:
        self.net: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.processor, _ = processor_of_folder(model)
        prompts = [prompt_inputs(self.processor, row["messages"]) for row in rows]
        self.prompts = {tuple(inputs["input_ids"][0].tolist()): inputs for inputs in prompts}

    def log_probs(self, prompt: list[int], completion: list[int]) -> list[float]:
        with torch.no_grad():
            found: list[float] = log_probs(self.net, self.prompts[tuple(prompt)], completion).tolist()
        return found

    def greedy(self, prompt: list[int], tokens: int) -> list[int]:
        inputs = self.prompts[tuple(prompt)]
        soft = [self.net.config.image_token_id]
        out = self.net.generate(**inputs, max_new_tokens=tokens, do_sample=False, suppress_tokens=soft)
        return list(out[0, inputs["input_ids"].shape[1] :].tolist())


def rows_of(batch: dict[str, Any], name: str) -> list[list[int]]:
    kept = zip(batch[f"{name}_ids"], batch[f"{name}_mask"].bool(), strict=True)
    return [ids[mask].tolist() for ids, mask in kept]


def watched_log_probs(trainer: Any) -> list[torch.Tensor]:
    """What the trainer will compute of log-probabilities, in order."""
    found: list[torch.Tensor] = []
    compute = trainer._get_per_token_logps_and_entropies

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = compute(*args, **kwargs)
        found.append(result[0].detach())
        return result

    trainer._get_per_token_logps_and_entropies = watched
    return found


def hold(logps: torch.Tensor, batch: dict[str, Any], plain: Plain) -> None:
    rows = zip(rows_of(batch, "prompt"), rows_of(batch, "completion"), strict=True)
    for row, kept, (prompt, completion) in zip(logps, batch["completion_mask"].bool(), rows, strict=True):
        assert row[kept].tolist() == pytest.approx(plain.log_probs(prompt, completion), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "family"), [("grpo", "gemma3"), ("rloo", "gemma3"), ("grpo", "gemma4_31b")])
def test_log_probabilities(recipe: str, family: str, tmp_path: Path) -> None:
    """Of sampled completions, under the policy before and in the update, and the reference: the model as it was."""
    model = media_folder(family, tmp_path / "model")
    rows, words = asked(tmp_path, model)
    trainer = made(recipe, tmp_path / "run", *SIZES, *words, "train.beta=0.1", "train.max_completion_length=6")
    found, plain, reference = watched_log_probs(trainer), Plain(model, rows), Plain(model, rows)
    is_tower = FAMILIES[plain.net.config.model_type].is_tower
    with torch.no_grad():
        for parameter in [
            *trainer.model.parameters(),
            *(p for n, p in plain.net.named_parameters() if not is_tower(n)),
        ]:
            parameter.mul_(1.05)
    batch = next(iter(trainer.get_train_dataloader()))
    every = trainer._generate_and_score_completions(batch)
    before, its = found
    hold(before, every, plain)
    hold(its, every, reference)
    assert (before - its).abs().max() > 0.01
    inputs = trainer._prepare_inputs(batch)  # another generation, shuffled and split
    loss = trainer._compute_loss(trainer.model, inputs)
    hold(found[-1], inputs, plain)
    loss.backward()
    assert sum(float(p.grad.norm()) for p in trainer.model.parameters() if p.grad is not None) > 0


@pytest.mark.slow
def test_the_reference_of_an_adapter(model: Path, tmp_path: Path) -> None:
    """It is the base, with the images."""
    rows, words = asked(tmp_path, model)
    more = ["train.beta=0.1", "train.max_completion_length=6", "adapter=lora"]
    trainer = made("grpo", tmp_path / "run", *SIZES, *words, *more)
    found = watched_log_probs(trainer)
    for parameter in (p for p in trainer.model.parameters() if p.requires_grad):
        parameter.data += 0.1
    every = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    before, its = found
    hold(its, every, Plain(model, rows))
    assert (before - its).abs().max() > 0.01


@pytest.mark.parametrize("recipe", slow_after(0, ["grpo", "rloo"]))
def test_completions_and_what_a_reward_sees(recipe: str, model: Path, tmp_path: Path) -> None:
    """Near temperature 0 the completions are the greedy ones of the checkpoint's own class."""
    rows, words = asked(tmp_path, model)
    seen: list[Task] = []

    def look(completions: Any, records: Any) -> list[float]:
        seen.extend(records)
        return spelled(completions, records)

    cold = ["train.temperature=1e-5", "train.max_completion_length=8"]
    rewards = [WeightedReward("look", look, 1.0)]
    trainer = made(recipe, tmp_path / "run", *SIZES, *words, *cold, rewards=rewards)
    every = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    plain, prompts = Plain(model, rows), rows_of(every, "prompt")
    assert rows_of(every, "completion") == [plain.greedy(prompt, 8) for prompt in prompts]
    assert trainer.generation_config.suppress_tokens == [plain.net.config.image_token_id]
    numbers = [task.row["number"] for task in seen]
    assert sorted(numbers) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [list(task.prompt) for task in seen] == [rows[i]["messages"] for i in numbers]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("grpo", ["adapter=lora", "train.beta=0.1"]),
        ("grpo", ["train.beta=0.1", "train.num_iterations=2"]),
        ("dapo", ["adapter=lora", "train.mask_truncated_completions=false"]),
        ("rloo", ["adapter=lora", "train.beta=0.1"]),
    ],
)
def test_runs_lose_no_image(
    recipe: str, words: list[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all forward passes over image tokens one has none: that of the check that images change the loss."""
    _, given = asked(tmp_path, model)
    without = passes_without_images(monkeypatch)
    own = tmp_path / "own.py"
    own.write_text("def long(completions, records):\n    return [sum(map(ord, c)) % 7 / 7 for c in completions]\n")
    reward = ["reward=none", f"reward.functions.long={own}:long", "reward.weights.long=1"]
    short_run(
        recipe, tmp_path / "run", *given, *SIZES, *reward, "eval.num_samples=0", "export=merged",
        "train.max_completion_length=8", "train.learning_rate=1e-2", *words, steps=4,
    )  # fmt: skip
    lines = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert len(lines) == 4 and max(line["grad_norm"] for line in lines) > 0
    assert without == [1]


def test_their_files_are_noted_as_inputs(model: Path, tmp_path: Path) -> None:
    _, words = asked(tmp_path, model)
    tasks = read_tasks(compose_config("grpo", words).data, {}, tokenizer_at(model), 512)
    noted = [Path(file).name for file in media_files([tasks], {})]
    assert noted == ["0-0.png", "1-0.png", "1-1.png", "3-0.png"]


def test_what_would_lose_images(model: Path, tmp_path: Path) -> None:
    messages = conversations(tmp_path, answers=0)[0]["messages"]
    cfg = compose_config("grpo", ["reward=model", "reward.model.model_name_or_path=a/b", "eval=none"])
    with pytest.raises(UserError, match=r"reward.model: it reads text alone, and the prompt of a:1 has an image"):
        scorer_of(cfg, torch.device("cpu"), [Task("a:1", messages)])


@pytest.mark.slow
def test_towers_are_not_trained_with_rewards(model: Path, tmp_path: Path) -> None:
    _, given = asked(tmp_path, model)
    words = ["reward=math", "model.train_towers=full", "train.max_completion_length=4"]
    with pytest.raises(UserError, match=r"model.train_towers=full: with rewards the towers stay as they are"):
        short_run("grpo", tmp_path / "run", *given, *SIZES, *words)
