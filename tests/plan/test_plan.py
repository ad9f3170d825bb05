"""A plan says what the check before a run says, and its times come from operations as torch counts them."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import small_models
import torch
import transformers
from slow import slow_but_these
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

import gemma_tune
from gemma_tune.cli.compose import compose_config
from gemma_tune.config import Config, ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models.estimate import capacity
from gemma_tune.models.estimate.activations import longest_possible
from gemma_tune.models.estimate.memory import estimate
from gemma_tune.models.estimate.size import size_of
from gemma_tune.models.family import FAMILIES
from gemma_tune.plan import measuring, speed
from gemma_tune.plan.fits import SIZES, Planner
from gemma_tune.plan.known_models import PlannedModel, planned_models
from gemma_tune.run.paths import ASSETS

MODELS = {model.name: model for model in planned_models(ModelConfig(model_name_or_path="assets://tiny"))}


def on_gpu(cfg: Config) -> bool:
    """Mixed precision as on a GPU with bfloat16."""
    return cfg.model.dtype == "float32"


def recomposed(command: str) -> Config:
    """The configuration of a command, as the command line composes it."""
    python, dash, package, recipe, *words = shlex.split(command)
    assert (python, dash, package) == ("python", "-m", "gemma_tune")
    return compose_config(recipe.removeprefix("recipe="), words)


@pytest.mark.parametrize(
    "recipe",
    slow_but_these(
        ("full_sft", "qlora_sft", "grpo"),
        ["full_sft", "lora_sft", "qlora_sft", "qat", "dpo", "kto", "reward_model", "grpo"],
    ),
)
@pytest.mark.parametrize(
    ("model", "gb"), [("gemma3_270m_it", 8), ("gemma3_4b_it", 16), ("gemma2_9b_it", 24), ("gemma3_27b_it", 24)]
)
def test_the_check_before_a_run_says_the_same(model: str, gb: int, recipe: str) -> None:
    planned = Planner(on_gpu).run(MODELS[model], recipe, gb - 1)
    if planned.refused:
        assert (recipe, model) == ("qat", "gemma2_9b_it") and "export=gguf writes Gemma 3" in planned.refused
        return
    size = MODELS[model].size
    if planned.fitted is None:
        cfg = recomposed(planned.command)
        warning = capacity.memory_warning(cfg, size, on_gpu(cfg), longest_possible(cfg), gb - 1)
        assert warning and (cfg.traits.adapter_recipes or "No setting tried here makes it fit" in warning)
        return
    cfg = recomposed(planned.command)
    longest = longest_possible(cfg)
    assert estimate(cfg, size, on_gpu(cfg), longest) == planned.fitted.memory
    capacity.check_memory(cfg, size, on_gpu(cfg), gb - 1)
    assert capacity.memory_warning(cfg, size, on_gpu(cfg), longest, gb - 1) is None
    if planned.fitted.words:  # without them it doesn't fit
        plain = compose_config(recipe, [f"model={model}"])
        assert capacity.memory_warning(plain, size, on_gpu(plain), longest_possible(plain), gb - 1)


def test_a_dry_run_of_the_command_says_the_same_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that isn't here, with nothing of it but its name."""
    monkeypatch.setattr(capacity, "free_memory", lambda device, processes=1: 23.0)
    planned = Planner(lambda cfg: False).run(MODELS["gemma3_1b_it"], "dpo", 9.0)
    assert planned.fitted and planned.fitted.words
    words = shlex.split(planned.command)[4:]
    dry = gemma_tune.run("dpo", [*words, "dry_run=true", "train.bf16=false", "tracker=none"])
    assert dry.metrics["memory_gib"] == planned.fitted.memory


def test_more_memory_never_fits_less() -> None:
    planner = Planner(on_gpu)
    for model in MODELS.values():
        for recipe in ("full_sft", "lora_sft", "qlora_sft"):
            fits = [planner.run(model, recipe, gb - 1).fitted is not None for gb in SIZES]
            assert fits == sorted(fits)
            smallest = planner.smallest_gpu(model, recipe)
            assert (smallest[0] if smallest else None) == next(
                (gb for gb, fit in zip(SIZES, fits, strict=True) if fit), None
            )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gemma1", "gemma"), ("gemma2", "gemma2"), ("gemma3_text", "gemma3_text"), ("gemma4_31b", "gemma4_text"),
        ("gemma4_e2b", "gemma4_text"),
    ],
)  # fmt: skip
def test_operations_are_those_that_torch_counts(name: str, kind: str) -> None:
    """Products of matrices in a forward and a backward pass, but for those inside of attention."""
    text, tokens = AutoConfig.for_model(kind, **small_models.MODELS[name][1]), 64
    model = getattr(transformers, FAMILIES[kind].language_class)(text).train()
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as forward:
        logits = model(input_ids=torch.randint(3, 1000, (1, tokens)), use_cache=False).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    counted = [
        sum(number for op, number in counter.get_flop_counts()["Global"].items() if op != torch.ops.aten.bmm)
        for counter in (forward, backward)
    ]
    n = size_of(text).computed_parameters
    assert counted == [2 * n * tokens, 4 * n * tokens]


def test_operations_of_recipes() -> None:
    size = MODELS["gemma3_1b_it"].size
    n = size.computed_parameters
    for recipe, words, passes in (
        ("full_sft", [], 6), ("lora_sft", [], 4), ("qlora_sft", ["train.gradient_checkpointing=true"], 6),
        ("dpo", [], 8), ("dpo", ["adapter=lora"], 6), ("kto", [], 8), ("reward_model", [], 6), ("qat", [], 8),
    ):  # fmt: skip
        cfg = compose_config(recipe, ["model=gemma3_1b_it", *words])
        assert speed.operations(cfg, size) == passes * n, (recipe, words)
    assert speed.operations(compose_config("grpo", ["model=gemma3_1b_it"]), size) is None
    moe = MODELS["gemma4_26b_a4b_it"].size
    assert 3.5e9 < moe.computed_parameters < 4.5e9 < moe.parameters  # "A4B"


def test_times() -> None:
    """By hand: 4 passes of a billion weights over a million tokens at 30 % of 100 TFLOPS are 133 s."""
    cfg = compose_config("plan", ["plan.memory_gb=24", "plan.tflops=100"])
    reached = speed.expected_speed(cfg.plan)
    size = MODELS["gemma3_1b_it"].size
    assert reached and reached.said == "30% of 100 TFLOPS" and reached.flops == 3e13
    found = speed.hours(compose_config("lora_sft", ["model=gemma3_1b_it"]), size, reached)
    assert found == pytest.approx(4 * size.computed_parameters * 1e6 / 3e13 / 3600)
    assert [speed.in_words(h) for h in (None, 0.01, 0.5, 3.0, 30.0, 100.0)] == [
        "–", "≈ 36 s", "≈ 30 min", "≈ 3.0 h", "≈ 30 h", "≈ 4.2 d"
    ]  # fmt: skip
    for gb, card in ((24, "RTX 4090"), (48, "RTX 5090"), (141, "H100"), (4, None)):
        of_card = speed.expected_speed(compose_config("plan", [f"plan.memory_gb={gb}"]).plan)
        assert (of_card is None) if card is None else (of_card is not None and card in of_card.said)


def test_the_tables(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ["plan.recipes=[full_sft,qlora_sft,qat]"]
    result = gemma_tune.run("plan", [*words, "plan.output_file=plan.json"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("gemma")}
    assert "The embedded model (model=tiny) is not planned: it trains on any machine." in out
    assert lines.keys() == MODELS.keys() - {"functiongemma_270m_it"}
    assert lines["gemma3_1b_it"][:2] == ["1.0B", "24"] and lines["gemma4_31b_it"][-1] == "–"
    stored = json.loads(Path("plan.json").read_text("utf-8"))
    assert stored["runs"] == result.metrics["runs"] and stored["least_gb"]["gemma3_27b_it"] == {
        "full_sft": None, "qlora_sft": 24, "qat": None
    }  # fmt: skip
    gemma_tune.run("plan", [*words, "plan.memory_gb=24", "model=gemma3_4b_it", "plan.output_file=plan.md"])
    page, out = Path("plan.md").read_text("utf-8"), capsys.readouterr().out
    assert "full_sft: no setting tried here makes it fit" in out and "30% of the 165.2 TFLOPS of an RTX 4090" in out
    assert "\npython -m gemma_tune recipe=qlora_sft model=gemma3_4b_it\n" in page and "| 15.0 GiB |" in page
    assert "  python -m gemma_tune recipe=qlora_sft model=gemma3_4b_it\n" in out and "embedded" not in out
    with pytest.raises(UserError, match=r"plan\.output_file=plan\.md: this file is there already"):
        gemma_tune.run("plan", ["plan.output_file=plan.md"])


def test_what_is_asked_stays(folder: Path) -> None:
    """Keys of `train` are part of what is planned, and of the commands."""
    result = gemma_tune.run("plan", ["plan.memory_gb=8", "model=gemma3_1b_it", "train.max_length=2048",
                                     "plan.recipes=[lora_sft]"])  # fmt: skip
    (run,) = result.metrics["runs"]
    assert "train.max_length=2048" in run["settings"] and run["memory_gib"]["total"] <= 7
    cfg = recomposed(run["command"])
    assert cfg.train.max_length == 2048


def test_several_gpus(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight GPUs share 27B by fsdp2 where it is asked for, and where only that fits; 4-bit weights can't be shared."""
    words = ["plan.memory_gb=80", "model=gemma3_27b_it", "launch.num_processes=8"]
    alone = gemma_tune.run("plan", words[:2]).metrics["runs"]
    full, lora, qlora = gemma_tune.run("plan", [*words, "plan.recipes=[full_sft,lora_sft,qlora_sft]"]).metrics["runs"]
    assert "Each of 8 processes has so much" in capsys.readouterr().out
    assert "parallel=fsdp2" in full["command"] and not any("fsdp2" in one["command"] for one in (lora, qlora))
    assert not next(one for one in alone if one["recipe"] == "full_sft")["fits"]
    hours = next(one for one in alone if one["recipe"] == "qlora_sft")["hours_per_million_tokens"]
    assert qlora["hours_per_million_tokens"] == pytest.approx(hours / 8)
    cfg = recomposed(full["command"])
    assert estimate(cfg, MODELS["gemma3_27b_it"].size, True, longest_possible(cfg), on_gpu=True) == full["memory_gib"]
    lora, qlora = gemma_tune.run("plan", [*words, "parallel=fsdp2", "plan.recipes=[lora_sft,qlora_sft]"]).metrics[
        "runs"
    ]
    assert lora["fits"] and "launch.num_processes=8 parallel=fsdp2" in lora["command"]
    assert not qlora["fits"] and "parallel=fsdp2 with a 4-bit base" in qlora["refused"]
    with pytest.raises(UserError, match="runs in one process"):
        compose_config("plan", [*words, "launch=slurm"])


def test_measured_on_this_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of the shape that is named; a shape that doesn't fit is refused."""
    shutil.copytree(ASSETS / "tiny", folder / "tiny")
    words = ["plan.measure=true", f"model.model_name_or_path={folder / 'tiny'}", "plan.recipes=[lora_sft,full_sft]"]
    lora, full = gemma_tune.run("plan", words).metrics["runs"]
    assert lora["hours_per_million_tokens"] * 6 == pytest.approx(full["hours_per_million_tokens"] * 4)
    monkeypatch.setattr(measuring, "free_memory", lambda device: 0.001)
    with pytest.raises(UserError, match=r"plan\.measure=true: weights and gradients of .* need about"):
        gemma_tune.run("plan", words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan.recipes=[lora_stf]"], "lora_stf is none that can be planned.*Did you mean lora_sft"),
        (["plan.recipes=[tune_to_int4]"], "tune_to_int4 is none that can be planned"),
        (["plan.recipes=[]"], r"plan\.recipes is empty"),
        (["plan.output_file=plan.html"], r"name it \.md or \.json"),
        (["plan.measure=true", "plan.memory_gb=24"], "times this machine"),
        (["adapter=lora"], "adapter has no effect"),
        (["plan.memory_gb=0"], "more than 0"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_config("plan", words)


def test_models_of_ones_own(tmp_path: Path) -> None:
    shutil.copytree(ASSETS / "tiny", tmp_path / "mine")
    (mine,) = planned_models(ModelConfig(model_name_or_path=str(tmp_path / "mine")))
    assert mine.word == f"model.model_name_or_path={tmp_path / 'mine'}" and mine.size.hidden_size < 512
    (hub,) = planned_models(ModelConfig(model_name_or_path="someone/gemma-3-1b-it"))
    assert isinstance(hub, PlannedModel) and hub.word == "model.model_name_or_path=someone/gemma-3-1b-it"
