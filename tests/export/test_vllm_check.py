"""Whether what vLLM answers is the trained model, its base, or neither; with vLLM itself in `make test-vllm`."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from short_runs import short_run

import gemma_tune
from gemma_tune.cli.compose import compose_config
from gemma_tune.export.int4_check import FAIL, OK, UNVERIFIED, WARN, CheckLine
from gemma_tune.export.llama_check import agreements_with
from gemma_tune.export.vllm_check import LogProbs, Rounding, four_bit_line, judged, rounding, vllm_lines
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_model
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
# vLLM that leaves the adapter out, and says nothing of it
WITHOUT_ADAPTER = """#!{python}
import os, sys
words = sys.argv[1:]
at = words.index("--enable-lora")
del words[at : at + 5]
words[words.index("--served-model-name") + 1] = "adapter"
os.execv({vllm!r}, [{vllm!r}, *words])
"""


def random(seed: int, like: LogProbs | None = None, by: float = 0.0) -> LogProbs:
    """Log-probabilities of 600 positions; with `like` those of it, moved a little."""
    torch.manual_seed(seed)
    noise = [torch.randn(300, 64) for _ in range(2)]
    old = like.log_probs if like else [torch.zeros(300, 64)] * 2
    rows = [[2] * 300] * 2
    return LogProbs(rows, [(a + (by if like else 3.0) * b).log_softmax(-1) for a, b in zip(old, noise, strict=True)])


def test_which_model_answers() -> None:
    trained, base = random(0), random(1)
    explained = rounding(trained, random(2, trained, 0.01), "bfloat16")
    assert 0 < explained.kl < 1e-3 and explained.most_kl == pytest.approx(4 * explained.kl)

    def verdict(answers: LogProbs, of: LogProbs = base) -> tuple[str, str]:
        line = judged("adapter in vLLM", answers.top(), trained, explained, of)
        return line.verdict, line.problem

    assert verdict(random(3, trained, 0.01)) == (OK, "")
    assert verdict(random(4, base, 0.01)) == (FAIL, verdict(base)[1]) and "The base model answers" in verdict(base)[1]
    assert verdict(random(5))[0] == FAIL and "another adapter, an adapter of another base" in verdict(random(5))[1]
    # An adapter that changes nothing can't be told from its base, and that is no success
    assert verdict(trained, of=trained) == (WARN, verdict(trained, of=trained)[1])
    assert "by less than rounding" in verdict(trained, of=trained)[1]
    assert judged("merged in vLLM", random(6, trained, 0.01).top(), trained, explained, None).verdict == OK
    assert judged("merged in vLLM", base.top(), trained, explained, None).verdict == FAIL


def test_nearer_to_the_base_is_the_base() -> None:
    """Also where training has moved the model about as far as rounding may."""
    trained = random(0)
    base = random(1, trained, 0.05)
    near_base = random(2, base, 0.005)
    (apart,) = agreements_with(trained, [base.top()])
    explained = Rounding(kl=0.97 * apart.mean_kl / 4, margin=10.0, dtype="bfloat16")
    assert judged("x", near_base.top(), trained, explained, base).verdict == FAIL
    assert judged("x", random(3, trained, 0.005).top(), trained, explained, base).verdict != FAIL


def test_a_best_token_beyond_the_margin_fails() -> None:
    """Where one position of 600 is wrong, the mean KL may still be small."""
    trained = random(0)
    one = [row.clone() for row in trained.log_probs]
    ids = one[0][7].topk(2).indices
    one[0][7, ids] = one[0][7, ids.flip(0)]
    explained = Rounding(kl=1.0, margin=1e-6, dtype="bfloat16")
    assert judged("x", LogProbs(trained.rows, one).top(), trained, explained, None).verdict == FAIL
    assert judged("x", trained.top(), trained, explained, None).verdict == OK


def test_four_bit_and_sixteen_bit() -> None:
    trained = random(0)
    assert four_bit_line(trained, trained).verdict == OK
    apart = four_bit_line(random(1, trained, 0.3), trained)
    assert apart.verdict == WARN and "export/merged" in apart.problem and "lora_sft" in apart.problem


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, vllm: Path) -> tuple[Path, gemma_tune.RunResult]:
    """The embedded model after 60 steps of LoRA, everything that it left checked in vLLM."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    words = ["export=merged", "data.max_train_samples=null", "data.max_eval_samples=16", f"engine.vllm={vllm}"]
    return run, short_run("lora_sft", run, *words, "train.per_device_train_batch_size=8", steps=60)


@pytest.mark.vllm
def test_adapter_and_merged_weights_are_the_trained_model(tuned: tuple[Path, gemma_tune.RunResult]) -> None:
    lines = {line["name"]: line for line in tuned[1].metrics["verify"]}
    assert lines.keys() == {"adapter in vLLM", "merged in vLLM"}
    assert all(line["verdict"] == "ok" for line in lines.values()), lines


@pytest.mark.vllm
def test_w4a16(tuned: tuple[Path, gemma_tune.RunResult], vllm: Path, tmp_path: Path) -> None:
    words = ["tracker=none", "quant=q4_0", "export.formats=[w4a16]", "export.quality_samples=0"]
    model = [f"model.model_name_or_path={tuned[0]}", f"engine.vllm={vllm}", f"output_dir={tmp_path / 'run'}"]
    result = gemma_tune.run("export", [*words, *model])
    lines = {line["name"]: line for line in result.metrics["verify"]}
    assert lines["w4a16 in vLLM"]["verdict"] == "ok", lines["w4a16 in vLLM"]


@pytest.mark.vllm
def test_what_is_not_the_trained_model_fails_by_name(
    tuned: tuple[Path, gemma_tune.RunResult], vllm: Path, tmp_path: Path
) -> None:
    run = tuned[0]
    reference, base, tokenizer = served_by_transformers(run / "adapter")

    def line(name: str, place: Path, program: Path = vllm) -> CheckLine:
        cfg = compose_config("evaluate", [f"model.model_name_or_path={place}", "data=sample"])
        (found,) = vllm_lines(cfg, program, {name: str(place)}, reference, tokenizer, base)
        return found

    # The files are right, and the base is served under the adapter's name
    without = tmp_path / "vllm"
    without.write_text(WITHOUT_ADAPTER.format(vllm=str(vllm), python=sys.executable), encoding="utf-8")
    without.chmod(0o755)
    found = line("adapter", run / "adapter", without)
    assert found.verdict == FAIL and "the base is served under the name" in found.problem, found

    untrained = changed(run / "adapter", tmp_path / "untrained", lambda name, t: 0 * t if "lora_B" in name else t)
    found = line("adapter", untrained)
    assert found.verdict == FAIL and "Its files are the base model" in found.problem, found

    torch.manual_seed(1)
    wrong = changed(run / "adapter", tmp_path / "wrong", lambda _, t: t + 0.05 * torch.randn_like(t))
    found = line("adapter", wrong)
    assert found.verdict == FAIL and "another adapter" in found.problem, found

    shutil.copytree(TINY, tmp_path / "other")
    changed(TINY, tmp_path / "other", lambda name, t: 1.3 * t if "mlp" in name else t)
    config = json.loads((run / "adapter" / "adapter_config.json").read_text("utf-8"))
    elsewhere = changed(run / "adapter", tmp_path / "elsewhere", lambda _, t: t)
    (elsewhere / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(tmp_path / "other")})
    )
    found = line("adapter", elsewhere)
    assert found.verdict == FAIL and "an adapter of another base" in found.problem, found

    one = changed(
        run / "export" / "merged",
        tmp_path / "one",
        lambda n, t: t.flip(0) if n.endswith("layers.2.mlp.down_proj.weight") else t,
    )
    found = line("merged", one)
    assert found.verdict == FAIL and "other weights" in found.problem, found


@pytest.mark.vllm
def test_evaluated_in_vllm(tuned: tuple[Path, gemma_tune.RunResult], vllm: Path, tmp_path: Path) -> None:
    """Losses and answers of vLLM are those of Transformers, but for rounding."""
    words = ["tracker=none", f"model.model_name_or_path={tuned[0] / 'export' / 'merged'}", "eval=default"]
    words += ["eval.max_samples=40", "eval.max_new_tokens=64", "eval.num_samples=0", "data=sample"]
    here = gemma_tune.run("evaluate", [*words, f"output_dir={tmp_path / 'a'}"]).metrics["after"]
    there = gemma_tune.run("evaluate", [*words, f"output_dir={tmp_path / 'b'}", f"engine.vllm={vllm}"]).metrics["after"]
    assert here.keys() == there.keys()
    assert there["held_out_loss"] == pytest.approx(here["held_out_loss"], rel=5e-3)
    assert abs(there["test_exact_match"] - here["test_exact_match"]) <= 0.05


@pytest.mark.vllm
def test_a_program_that_is_no_vllm(tmp_path: Path) -> None:
    """The check says that it could not be made, and why."""
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\necho no module named vllm; exit 1\n")
    program.chmod(0o755)
    cfg = compose_config("evaluate", [f"model.model_name_or_path={TINY}"])
    reference, _, tokenizer = served_by_transformers(TINY)
    (line,) = vllm_lines(cfg, program, {"merged": str(TINY)}, reference, tokenizer)
    assert line.verdict == UNVERIFIED and "no module named vllm" in line.problem


def served_by_transformers(place: Path) -> tuple[LogProbs, LogProbs | None, Any]:
    """What a folder gives in Transformers in float32, and its base where it is an adapter."""
    cfg = compose_config("evaluate", [f"model.model_name_or_path={place}", "model.dtype=float32", "data=sample"])
    source = find_source(cfg.model)
    tokenizer = load_tokenizer(source)
    text = (Path(gemma_tune.__file__).parent.parent / "README.md").read_text("utf-8")
    ids = tokenizer(text).input_ids[:1024]
    rows = [ids[:512], ids[512:]]
    found = LogProbs.of(load_model(cfg.model, source, tokenizer), tokenizer, rows, "")
    if source.adapter is None:
        return found, None, tokenizer
    alone = load_model(cfg.model, replace(source, adapter=None), tokenizer)
    return found, LogProbs.of(alone, tokenizer, rows, ""), tokenizer


def changed(folder: Path, to: Path, change: Any) -> Path:
    """A copy of a folder with other weights."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    for file in to.glob("*.safetensors"):
        tensors = {name: change(name, tensor).contiguous() for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    return to
