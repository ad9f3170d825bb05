"""Training with rewards: each recipe for a few steps, resuming, what is kept to be read, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import metrics
from transformers import AutoModelForCausalLM

import gemma_tune
from gemma_tune.cli.compose import compose_config
from gemma_tune.config import TrainConfig
from gemma_tune.errors import RunError, UserError
from gemma_tune.rl.tasks import check_number

SHORT = [
    "model.dtype=float32", "train.bf16=false", "tracker=none", "train.per_device_train_batch_size=8",
    "train.num_generations=4",
    "train.max_completion_length=12", "train.learning_rate=1e-4", "data.max_train_samples=32", "eval.max_samples=8",
]  # fmt: skip


def run(recipe: str, folder: Path, *words: str, steps: int = 2) -> gemma_tune.RunResult:
    every = {w.split("=", 1)[0]: w for w in [*SHORT, f"train.max_steps={steps}", f"output_dir={folder}", *words]}
    return gemma_tune.run(recipe, list(every.values()))


@pytest.fixture
def done(finished: Any) -> tuple[Path, gemma_tune.RunResult]:
    """Ten steps with two rewards, measured while training, too."""
    folder, result = finished("grpo")
    return folder, result


def test_each_reward_is_shown_apart_before_and_after(done: tuple[Path, Any]) -> None:
    folder, result = done
    assert result.status == "finished" and not result.failures
    for when in ("before", "after"):
        assert {"test_math", "test_format", "test_stopped", "test_rows"} <= result.metrics[when].keys()
        stored = json.loads((folder / "eval" / f"{when}.json").read_text("utf-8"))
        assert len(stored["rows"]["test_math"]) == 8 and stored["conditions"]["eval.max_new_tokens"] == 12
    assert result.headline["name"] == "test_math"
    # The exported model answers as the trained one
    assert result.metrics["export"]["test_math"] == result.metrics["after"]["test_math"]


def test_every_step_says_what_it_took_and_what_was_rewarded(done: tuple[Path, Any]) -> None:
    folder, _ = done
    steps = [line for line in metrics(folder) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 11))
    for name in ("math", "format"):
        assert all({f"rewards/{name}/{part}" for part in ("mean", "std", "failed")} <= line.keys() for line in steps)
    assert all(line["time/generate"] > 0 and line["tokens_per_second"] > 0 for line in steps)
    assert {line["step"] for line in metrics(folder) if "test_math" in line} == {0, 5, 10}


def test_completions_are_kept_to_be_read(done: tuple[Path, Any]) -> None:
    folder, _ = done
    rows = [json.loads(line) for line in (folder / "eval/completions.jsonl").read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows] == [step for step in range(10) for _ in range(8)]
    assert {"where", "prompt", "completion", "stopped", "reward.math", "reward.format", "reward"} <= rows[0].keys()
    assert rows[0]["where"].rpartition(":")[0].endswith("train.jsonl")
    assert all(row["reward"] == pytest.approx(row["reward.math"] + 0.2 * row["reward.format"]) for row in rows)
    report = (folder / "report.md").read_text("utf-8")
    assert "Completions during training" in report and "mean reward over the first and the last fifth" in report


@pytest.mark.slow
@pytest.mark.parametrize("four_bit", [False, True])
def test_adapters(four_bit: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["adapter=lora", "adapter.r=4", "train.learning_rate=1e-2", "train.beta=0.04", "train.save_steps=2"]
    words += ["model.load_in_4bit=true", "model.dtype=bfloat16"] if four_bit else []
    result = run("grpo", folder, *words, steps=3)
    assert {"adapter", "merged", "completions"} <= result.artifacts.keys()
    lines = [line for line in metrics(folder) if "loss" in line]
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-3) and lines[-1]["kl"] > lines[0]["kl"]
    # TRL's copy of the adapter, its reference, is no part of what is kept
    for kept in (folder / "adapter", folder / "checkpoints/step-2"):
        assert (kept / "adapter_model.safetensors").is_file() and not (kept / "ref").exists()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder / "export/merged", dtype=torch.float32).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["grpo", "gspo"])
def test_a_resumed_run_ends_where_one_run_ends(recipe: str, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ["data.max_train_samples=6"] if recipe == "grpo" else []  # three generations an epoch: it is the second one
    words += ["train.save_steps=4", "train.save_total_limit=null", "export.dtype=float32"]
    words += ["eval.evaluators=[]", "eval.num_samples=0"]
    run(recipe, whole, *words, steps=8)
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "export")
    shutil.rmtree(broken / "checkpoints/step-8")
    state = json.loads((broken / "result.json").read_text("utf-8"))
    (broken / "result.json").write_text(json.dumps({**state, "status": "failed"}), encoding="utf-8")
    run(recipe, broken, *words, "train.resume_from_checkpoint=latest", steps=8)
    first, second = weights(whole), weights(broken)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (whole / "eval/completions.jsonl").read_text() == (broken / "eval/completions.jsonl").read_text()
    losses = [[line["loss"] for line in metrics(f) if "loss" in line] for f in (whole, broken)]
    assert losses[0] == losses[1]


def test_periods() -> None:
    words = ["train.gradient_accumulation_steps=2", "train.steps_per_generation=3", "train.num_iterations=2"]
    assert compose_config("grpo", [*words, "train.num_generations=2"]).train.generation_period == 3
    assert compose_config("grpo").train.generation_period == 1
    assert compose_config("gspo").train.generation_period == 4


@pytest.mark.parametrize(
    ("recipe", "words", "said"),
    [
        ("gspo", ["train.save_steps=6"], r"save_steps=6: .*every 4 steps.* multiple of 4: 4, 8, 12"),
        ("gspo", ["train.eval_steps=6", "train.metric_for_best_model=test_math", "eval.during_training=[rewards]"],
         r"eval_steps=6: .* multiple of 4"),
        ("grpo", ["train.gradient_accumulation_steps=2", "train.steps_per_generation=1", "train.num_iterations=3"],
         "one must be a multiple of the other"),
        ("grpo", ["reward.format.weight=1", "reward.format.form=thinking"], "set data.enable_thinking=true"),
        ("grpo", ["data.enable_thinking=true", "data.prompts_only=true", "eval.evaluators=[rewards,answers]"],
         "data.prompts_only=true: rows without answers are for rewards"),
        ("lora_sft", ["data.enable_thinking=true"], "has no effect with recipe=lora_sft"),
        ("grpo", ["train.num_generations=7", "train.per_device_train_batch_size=8"], "no multiple"),
        ("grpo", ["reward=none"], "no reward has a weight"),
        ("grpo", ["data.test_files.test=null"], r"data\.test_files.*eval=none"),
        ("grpo", ["reward.formatt.weight=1"], "reward.format"),
        ("grpo", ["reward.length.max_tokens=5"], "reward.length has no effect without a weight"),
        ("grpo", ["reward.functions.mine=nowhere.py:f"], "nowhere.py"),
        ("grpo", ["reward.functions.math=nowhere.py:f"], "; not "),
        ("grpo", ["reward.weights.mine=2"], "no reward.functions.mine"),
        ("grpo", ["reward.weights.math=2"], "set reward.math.weight"),
        ("grpo", ["reward=model"], "reward.model.model_name_or_path is not set"),
        ("grpo", ["train.use_vllm=true"], "vLLM is not installed"),
        ("grpo", ["train.packing=true"], "train.packing has no effect"),
        ("rloo", ["train.scale_rewards=none"], "RLOOConfig has no such option"),
        ("rloo", ["train.extra.top_entropy_quantile=0.5"], "RLOOConfig has no such option"),
        ("grpo", ["train.extra.reward_weights=[1]"], "set the weights of reward"),
        ("lora_sft", ["reward=math"], "reward has no effect with recipe=lora_sft"),
        ("lora_sft", ["train.num_generations=4"], "SFTConfig has no such option"),
        ("grpo", ["data=reasoning_gym"], "set train.max_steps"),
        ("lora_sft", ["data=reasoning_gym"], "its tasks are for rewards"),
        ("grpo", ["data.streaming=true", "train.max_steps=5"], "data.streaming=true has no effect"),
    ],
)  # fmt: skip
def test_refused(recipe: str, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose_config(recipe, words)


def test_fewer_prompts_than_a_generation_takes(tmp_path: Path) -> None:
    """Refused in the dry run, before the model is loaded."""
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n' * 3, encoding="utf-8")
    rows = ["data=columns", f"data.train_file={tmp_path}/rows.jsonl", "data.prompt_column=question"]
    words = ["model=tiny", *rows, "data.completion_column=answer", "eval=none", "dry_run=true"]
    size = ["train.num_generations=2", "train.per_device_train_batch_size=4"]
    with pytest.raises(UserError, match=r"a generation takes 4 prompts .* = 4 × 2 / 2\), and there are 3"):
        gemma_tune.run("grpo", [*words, *size, "train.steps_per_generation=2"])
    assert gemma_tune.run("grpo", [*words, *size, "train.steps_per_generation=1"]).status == "dry_run"


@pytest.mark.parametrize(
    ("rows", "most", "said"),
    [
        (16, 16, r"^data.max_train_samples: .* there are 16; set data.max_train_samples=32 or more, or train.*=128"),
        (16, None, r"^data.train_file: .* there are 16; set train.per_device_train_batch_size=128\.$"),
        (0, None, r"there are 0; set more rows\.$"),
    ],
)  # fmt: skip
def test_fewer_prompts_are_answered_with_values(rows: int, most: int | None, said: str) -> None:
    train = TrainConfig(per_device_train_batch_size=256, steps_per_generation=1, num_generations=8)
    with pytest.raises(UserError, match=said):
        check_number(range(rows), train, most)  # type: ignore[arg-type]  # their number alone counts
    check_number(range(32), train, most)  # type: ignore[arg-type]


def test_a_reward_that_fails_ends_the_run(tmp_path: Path) -> None:
    """With the reward, the row and the cause; and what was measured before it is kept."""
    (tmp_path / "mine.py").write_text("def broken(completions, records):\n    return [1 / 0 for _ in completions]\n")
    folder = tmp_path / "run"
    words = ["reward=none", f"reward.functions.broken={tmp_path}/mine.py:broken", "eval.before=false"]
    with pytest.raises(RunError, match=r"reward\.broken failed on 8 of .*train\.jsonl:\d+: ZeroDivisionError"):
        run("grpo", folder, *words)
    assert json.loads((folder / "result.json").read_text("utf-8"))["status"] == "failed"


@pytest.mark.slow
def test_a_function_of_the_users_in_ten_lines(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def short(completions, records):\n"
        "    return [1.0 if c.tokens < 8 and c.stopped and r.answer else 0.0 for c, r in zip(completions, records)]\n"
        "async def trls(prompts, completions, completion_ids, trainer_state, log_metric, answer, **kwargs):\n"
        "    if trainer_state.max_steps:\n"
        "        log_metric('their_step', trainer_state.max_steps)\n"
        "    assert prompts[0] == kwargs['question'][0] and not set(kwargs) & {'records', 'prompt', 'completion'}\n"
        "    return [1.0 if len(i) < 8 and a else 0.0 for i, a in zip(completion_ids, answer)]\n"
    )
    words = [f"reward.functions.{name}={tmp_path}/mine.py:{name}" for name in ("short", "trls")]
    result = run("grpo", tmp_path / "run", *words, "reward.weights.short=0.5", steps=1)
    assert {"test_math", "test_short", "test_trls"} <= result.metrics["after"].keys()
    (line,) = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert line["their_step"] == 1 and line["rewards/trls/failed"] == line["rewards/short/failed"] == 0
    manifest = json.loads((tmp_path / "run/manifest.json").read_text("utf-8"))
    assert any("mine.py" in name for name in manifest["inputs"])


@pytest.mark.parametrize("words", [[], ["model.model_name_or_path=google/gemma-nowhere"]], ids=["here", "not here"])
def test_a_function_that_cannot_be_called(words: list[str], tmp_path: Path) -> None:
    """Refused by its parameters' names before the model is loaded, and in a dry run; also of a model to download."""
    (tmp_path / "mine.py").write_text("def rows(answers, rows): ...\ndef label(prompts, completions, label): ...\n")
    names = {"rows": "it takes no completions"} | ({} if words else {"label": "label is neither .* question, answer"})
    for name, said in names.items():
        own = f"reward.functions.{name}_of_mine={tmp_path}/mine.py:{name}"
        for dry in ("true", "false"):
            with pytest.raises(UserError, match=said):
                run("grpo", tmp_path / "run", own, f"dry_run={dry}", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_tasks_without_end(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    words = [
        "data=reasoning_gym", "reward=reasoning_gym", "data.generator_options.max_terms=2", "data.max_eval_samples=4",
        "data.max_train_samples=null",
    ]  # fmt: skip
    result = run("grpo", tmp_path / "run", *words)
    assert result.metrics["after"]["test_rows"] == 4 and result.metrics["data"]["training"]["rows"] == 2**20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.generator=chain_summ"], r"no such generator\. Did you mean chain_sum"),
        (["data.generator_options.terms=3"], "unexpected keyword argument 'terms'; its options: min_terms"),
        (["data.generator_options.min_terms=-1"], "min_terms must be positive"),
    ],
)
def test_generators_that_cannot_be(words: list[str], said: str, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match=said):
        run("grpo", tmp_path / "run", "data=reasoning_gym", "reward=reasoning_gym", *words)
    assert not (tmp_path / "run").exists()


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "What is 1 plus 1?", "answer": "two"}\n' * 4)
    words = ["data=columns", "data.prompt_column=question", "data.completion_column=answer"]
    words += [f"data.train_file={tmp_path}/rows.jsonl", "eval=none"]
    with pytest.raises(RunError, match=r"reward\.math failed .*rows\.jsonl:\d+.*needs one"):
        run("grpo", tmp_path / "run", *words)


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("grpo", tmp_path / "run", "dry_run=true")
    assert re.search(r"rows +│ +32 ", capsys.readouterr().out) and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_prompts_without_answers(tmp_path: Path) -> None:
    asked = [[{"type": "text", "text": f"What is {n} plus 5?"}] for n in range(20, 28)]
    rows = [{"messages": [{"role": "user", "content": parts}]} for parts in asked]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [f"data.train_file={tmp_path}/train.jsonl", f"data.test_files.test={tmp_path}/test.jsonl"]
    words = ["data=auto", "data.prompts_only=true", *files, "reward=none", "reward.length.weight=1"]
    result = run("grpo", tmp_path / "run", *words, "reward.length.max_tokens=5", steps=1)
    assert result.status == "finished" and result.headline["name"] == "test_length"
    assert "What is 2" in (tmp_path / "run/report.md").read_text("utf-8")


def test_what_is_right_heads_the_report(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def right(completions, records): ...\n")
    words = [f"reward.functions.right={tmp_path}/mine.py:right", "reward.format.weight=0.2"]
    assert list(compose_config("grpo", [*words, "reward=none"]).reward.weighted()) == ["right", "format"]
    assert list(compose_config("grpo", words).reward.weighted()) == ["math", "right", "format"]


def test_a_stored_configuration_finds_its_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def right(completions, records): ...\n")
    (tmp_path / "form.json").write_text("{}")
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["reward.functions.right=mine.py:right", "reward.json_schema.schema_file=form.json", "reward=model"]
    words += ["reward.json_schema.weight=1", "reward.model.model_name_or_path=model"]
    reward = compose_config("grpo", words).reward
    assert reward.functions == {"right": f"{tmp_path}/mine.py:right"}
    assert reward.json_schema.schema_file == f"{tmp_path}/form.json"
    assert reward.model.model_name_or_path == f"{tmp_path}/model"


def test_a_generator_of_a_model_that_is_not_here(tmp_path: Path) -> None:
    """And its figures may decide on the best step."""
    pytest.importorskip("reasoning_gym")
    words = ["data=reasoning_gym", "reward=reasoning_gym", "train.max_steps=4", "tracker=none"]
    best = ["train.metric_for_best_model=test_reasoning_gym", "train.eval_steps=2", "eval.during_training=[rewards]"]
    dry = gemma_tune.run("grpo", [*words, *best, "model=gemma3_1b_it", "dry_run=true", f"output_dir={tmp_path}/run"])
    assert dry.status == "dry_run"
