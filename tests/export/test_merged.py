"""Merged weights load and answer where gemma_tune is not installed."""

from __future__ import annotations

import json
import subprocess
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from reference import load_plain
from safetensors.torch import load_file
from short_runs import short_run
from transformers import AutoTokenizer

from gemma_tune.config import Config, ExportConfig
from gemma_tune.data.records import Record
from gemma_tune.data.tokenized import TokenizedRows, render_rows
from gemma_tune.errors import UserError
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.export import merged, verify
from gemma_tune.models.source import Source
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
SOURCE = Source(str(TINY), None, None, str(TINY))

# Plain Transformers only: answers 50 prompts greedily, one by one, and prints ids and stop token.
ANSWER = """
import importlib.util, json, sys, torch
assert importlib.util.find_spec("gemma_tune") is None
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
answers = []
for question in json.load(open(sys.argv[2])):
    inputs = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True,
                                           return_dict=True, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=48, do_sample=False)
    answers.append(out[0, inputs["input_ids"].shape[1]:].tolist())
json.dump({"answers": answers, "dtype": str(model.dtype), "stops": model.generation_config.eos_token_id}, sys.stdout)
"""

DORA = ["adapter=dora"]
LONGER = [
    "data=messages",
    "data.max_train_samples=600",
    "train.per_device_train_batch_size=8",
    "train.learning_rate=2e-3",
    "eval=none",
    "eval.num_samples=0",
]


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with our dependencies and without gemma_tune (a .pth does not follow other .pth files)."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 different first questions of the sample's training rows."""
    rows = [json.loads(line) for line in (ASSETS / "sample" / "train.jsonl").read_text("utf-8").splitlines()]
    asked = list(dict.fromkeys(r["messages"][0]["content"] for r in rows if r["messages"][0]["role"] == "user"))[:50]
    assert len(asked) == 50
    file = tmp_path_factory.mktemp("questions") / "questions.json"
    file.write_text(json.dumps(asked), encoding="utf-8")
    return file


def repeated(folder: Path) -> Path:
    """Rows that say a request of the sample again: learned in few steps, so that every answer stops."""
    file = folder / "repeated.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for line in (ASSETS / "sample" / "train.jsonl").read_text("utf-8").splitlines():
            asked = json.loads(line)["messages"][0]
            out.write(json.dumps({"messages": [asked, {"role": "assistant", "content": asked["content"]}]}) + "\n")
    return file


def answers_elsewhere(python: Path, folder: Path, questions: Path) -> dict[str, Any]:
    command = [str(python), "-c", ANSWER, str(folder), str(questions)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=questions.parent, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def adapter_answers(folder: Path, four_bit: bool, questions: Path) -> list[list[int]]:
    """Answers of the stored adapter on its base, loaded with PEFT alone."""
    model = PeftModel.from_pretrained(load_plain(TINY, four_bit), str(folder))
    model.train()  # no dropout; keeps bitsandbytes' 4-bit layers on their exact path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    answers = []
    for question in json.loads(questions.read_text("utf-8")):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        out = model.generate(**inputs, max_new_tokens=48, do_sample=False, eos_token_id=stops, use_cache=True)
        answers.append(out[0, inputs["input_ids"].shape[1] :].tolist())
    return answers


@pytest.mark.parametrize(
    ("recipe", "overrides", "steps"),
    # Enough steps to answer well and stop; the variants only have to answer alike.
    [
        ("lora_sft", [], 70),
        ("qlora_sft", [], 70),
        ("lora_sft", ["adapter=dora"], 10),
        ("qlora_sft", ["adapter=dora"], 10),
    ],
    ids=["lora", "qlora", "dora", "qlora-dora"],
)
@pytest.mark.slow
def test_merged_float32_answers_as_the_adapter(
    recipe: str, overrides: list[str], steps: int, bare_python: Path, questions: Path, tmp_path: Path
) -> None:
    words = [*overrides, *LONGER, f"data.train_file={repeated(tmp_path)}", "export.dtype=float32"]
    result = short_run(recipe, tmp_path / "run", *words, steps=steps)
    found = answers_elsewhere(bare_python, tmp_path / "run" / "export" / "merged", questions)
    assert found["dtype"] == "torch.float32"
    expected = adapter_answers(tmp_path / "run" / "adapter", recipe == "qlora_sft", questions)
    assert found["answers"] == expected
    assert len(set(map(tuple, expected))) > 5  # the answers differ, so the comparison can fail
    if steps > 50:
        assert all(a[-1] in found["stops"] for a in found["answers"])
    if recipe == "qlora_sft":
        assert 0.05 < result.metrics["export"]["four_bit_gap"] < 0.15  # NF4 is about 14 % from these weights


@pytest.mark.slow
def test_full_merged_in_bfloat16(bare_python: Path, questions: Path, tmp_path: Path) -> None:
    """The default export of full fine-tuning: loads, stops, and the head stays the embedding."""
    short_run("full_sft", tmp_path / "run", *LONGER, f"data.train_file={repeated(tmp_path)}", steps=30)
    folder = tmp_path / "run" / "export" / "merged"
    found = answers_elsewhere(bare_python, folder, questions)
    assert found["dtype"] == "torch.bfloat16"
    assert sum(a[-1] in found["stops"] for a in found["answers"]) == 50
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_qlora_merges_into_the_dequantized_weights(tmp_path: Path) -> None:
    """The file holds dequantized NF4 + s·B·A, computed here from the stored adapter, to float32's rounding."""
    from bitsandbytes.functional import dequantize_4bit

    short_run("qlora_sft", tmp_path / "run", "export.dtype=float32", "eval=none")
    stored = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    written = load_file(tmp_path / "run" / "export" / "merged" / "model.safetensors")
    base = load_plain(TINY, four_bit=True)
    checked = 0
    for name, module in base.named_modules():
        if hasattr(module, "weight") and hasattr(module.weight, "quant_state"):
            a, b = (stored[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
            expected = dequantize_4bit(module.weight.data, module.weight.quant_state).double() + 32 / 16 * (b @ a)
            assert torch.allclose(written[f"{name}.weight"].double(), expected, rtol=1e-6, atol=1e-7), name
            checked += 1
    assert checked == 42


def test_a_wrong_export_is_an_error(tmp_path: Path) -> None:
    """The check can fail: a file with one layer's weights negated doesn't pass."""
    model = load_plain(TINY)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    chat = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "I am well."}]
    rows = render_rows([Record("here", messages=chat)], tokenizer, 64, "rows")
    cfg = Config(export=ExportConfig(dtype="float32"))
    measured = Evaluation({"export_stopped": 0.25, "mean_kl": 3.0})  # the run's own, of a test called `export`
    reference = verify.take_reference(cfg, model, tokenizer, rows, TokenizedRows(), lambda *_: measured)
    said = float(reference.answers[0][-1] in model.generation_config.eos_token_id)
    options = ExportConfig(dtype="float32")
    merged.export(model, tokenizer, tmp_path / "right", options, SOURCE)
    assert verify.verify_merged(tmp_path / "right", reference, torch.device("cpu")) == {
        "export_kl": pytest.approx(0, abs=1e-6), "export_top1": 1.0, "export_same_answers": 1.0, "export_stopped": said,
        "measured_export_stopped": 0.25, "mean_kl": 3.0,
    }  # fmt: skip
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight.neg_()
    merged.export(model, tokenizer, tmp_path / "wrong", options, SOURCE)
    with pytest.raises(verify.ArtifactDiffers, match="not the trained model"):
        verify.verify_merged(tmp_path / "wrong", reference, torch.device("cpu"))


def test_a_file_that_lost_a_weight_is_an_error(tmp_path: Path) -> None:
    """What is read back is what was to be written, to the bit, and all of it."""
    model = load_plain(TINY)
    merged.export(model, AutoTokenizer.from_pretrained(TINY), tmp_path, ExportConfig(), SOURCE)
    tensors = dict(merged.merged_tensors(model, torch.bfloat16))
    verify.verify_written(tmp_path, tensors)
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(verify.ArtifactDiffers, match=f"{name} isn't the weight"):
        verify.verify_written(tmp_path, tensors | {name: tensors[name] + 1e-3})
    with pytest.raises(verify.ArtifactDiffers, match="1 weights were not written, for example extra"):
        verify.verify_written(tmp_path, tensors | {"extra": tensors[name]})


@pytest.mark.slow
def test_continuing(tmp_path: Path) -> None:
    """A run folder, an adapter and a merged model can be trained on; another shape of adapter is refused."""
    first = tmp_path / "first"
    short_run("lora_sft", first, "export.dtype=float32")
    after = json.loads((first / "eval" / "after.json").read_text("utf-8"))["figures"]["held_out_loss"]
    stages = ((first, "lora_sft"), (first / "adapter", "lora_sft"), (first / "export" / "merged", "full_sft"))
    for name, recipe in stages:
        folder = tmp_path / f"second-{name.name}"
        result = short_run(recipe, folder, f"model.model_name_or_path={name}", steps=1)
        assert result.metrics["before"]["held_out_loss"] == pytest.approx(after, rel=1e-5), name
    with pytest.raises(UserError, match=r"adapter\.r=4, but .* has 16: set adapter\.r=16"):
        short_run("lora_sft", tmp_path / "third", f"model.model_name_or_path={first}", "adapter.r=4")
    assert not (tmp_path / "third").exists()
