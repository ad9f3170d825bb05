"""The same evaluators on whatever holds the weights: an adapter, merged weights, a GGUF file, int4 folders."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from grid_models import TINY, on_grid, source_of
from peft import LoraConfig, get_peft_model
from short_runs import short_run
from transformers import AutoModelForCausalLM, AutoTokenizer

import gemma_tune
from gemma_tune import UserError
from gemma_tune.chat import render_prompt
from gemma_tune.cli.compose import compose_config
from gemma_tune.config import ExportConfig, ModelConfig
from gemma_tune.data.loading import load_held_out
from gemma_tune.data.reading import read_tests
from gemma_tune.engines.open import check_evaluators, open_engine
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.errors import RunError
from gemma_tune.evals.samples import prompt_ids, row_ids
from gemma_tune.export import gguf, w4a16
from gemma_tune.export.model_on_grid import ModelOnGrid
from gemma_tune.export.tensors import trained_tensors
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_base
from gemma_tune.models.source import Source, find_source
from gemma_tune.quant.layers import put_on_grid
from gemma_tune.quant.plan import plan_of

WORDS = [
    "tracker=none", "data.max_eval_samples=4", "eval.max_samples=12", "eval.max_new_tokens=24", "eval.num_samples=2",
    "data=sample",
]  # fmt: skip
TESTS = ("test", "new_phrasings")


def evaluate(model: Path, folder: Path, *words: str) -> dict[str, Any]:
    """What `recipe=evaluate` stores."""
    result = gemma_tune.run("evaluate", [f"model.model_name_or_path={model}", f"output_dir={folder}", *WORDS, *words])
    assert not result.failures
    stored: dict[str, Any] = json.loads((folder / "eval" / "after.json").read_text("utf-8"))
    return stored


def write_gguf(folder: Path, file: Path) -> Path:
    """A checkpoint as a float32 GGUF file."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return gguf.export(weights, model.config, tokenizer, model.generation_config, torch.float32, file, name="x")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(TINY, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelOnGrid, Path]:
    trained, folder = on_grid("q4_0", "q4_0"), tmp_path_factory.mktemp("w4a16")
    w4a16.export(trained, folder, ExportConfig())
    return trained, folder


def adapted(run: Path) -> Path:
    """A run folder with the embedded model's adapter, as after a little training, and merged weights in float32."""
    torch.manual_seed(0)
    base, tokenizer = (
        AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32),
        AutoTokenizer.from_pretrained(TINY),
    )
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.01)
    model.save_pretrained(run / "adapter")
    model.merge_and_unload().save_pretrained(run / "export" / "merged")
    for place in ("adapter", "export/merged"):
        tokenizer.save_pretrained(run / place)
    (run / "manifest.json").write_text("{}")
    return run


def closest(merged: Path) -> dict[str, float]:
    """The least margin between the two best tokens along each greedy answer, by the row's id; nats."""
    cfg = compose_config("evaluate", [f"model.model_name_or_path={merged}", "model.dtype=float32", *WORDS])
    source = find_source(cfg.model)
    tokenizer = load_tokenizer(source)
    found = {}
    with open_engine(cfg, source, tokenizer) as engine:
        for name in TESTS:
            records = read_tests(cfg.data)[name][: cfg.eval.max_samples]
            prompts = [prompt_ids(tokenizer, record) for record in records]
            answers = engine.answers(prompts, cfg.eval.max_new_tokens, "")
            rows = [p + a for p, a in zip(prompts, answers, strict=True)]
            for i, p, log_probs in zip(row_ids(records), prompts, engine.log_probs(rows, ""), strict=True):
                best, second = log_probs[len(p) - 1 : -1].topk(2).values.unbind(-1)
                found[i] = (best - second).min().item()
    return found


@pytest.mark.slow
def test_an_adapter_its_merged_weights_and_their_gguf(tmp_path: Path) -> None:
    """Row by row the same answer, but where the model's two best tokens are less than 1e-3 apart."""
    pytest.importorskip("xllamacpp")
    run = adapted(tmp_path / "run")
    served = write_gguf(run / "export" / "merged", run / "export" / "gguf" / "x.gguf")
    found = {
        "adapter": evaluate(run / "adapter", tmp_path / "adapter", "model.dtype=float32"),
        "merged": evaluate(run / "export" / "merged", tmp_path / "merged", "model.dtype=float32"),
        "gguf": evaluate(served, tmp_path / "gguf"),
    }
    first, margins = found["merged"], closest(run / "export" / "merged")
    near = {i for i, margin in margins.items() if margin < 1e-3}
    assert len(margins) == 24 and len(near) <= 2
    answers = [row["answer"] for name in TESTS for row in first["rows"][f"{name}_exact_match"]]
    assert len(set(answers)) > len(answers) // 2  # so equal ones say something
    for name, other in found.items():
        assert other["figures"].keys() == first["figures"].keys(), name
        for test in TESTS:
            rows = zip(other["rows"][f"{test}_exact_match"], first["rows"][f"{test}_exact_match"], strict=True)
            for a, b in rows:
                assert a["id"] == b["id"] and (a == b or a["id"] in near), (name, a, b)
        for a, b in zip(other["rows"]["held_out_loss"], first["rows"]["held_out_loss"], strict=True):
            assert a["id"] == b["id"] and a["score"] == pytest.approx(b["score"], rel=1e-3), name
    assert "model.dtype" in first["conditions"] and "model.dtype" not in found["gguf"]["conditions"]
    inputs = json.loads((tmp_path / "gguf" / "manifest.json").read_text("utf-8"))["inputs"]
    assert inputs[str(served)] == hashlib.sha256(served.read_bytes()).hexdigest()
    assert str(run / "adapter" / "tokenizer.json") in inputs


def test_other_evaluators(file: Path, tmp_path: Path) -> None:
    """KL from the checkpoint is nothing; one that wants the model itself is noted as failed."""
    pytest.importorskip("xllamacpp")
    mine = tmp_path / "mine.py"
    mine.write_text("def f(engine, inputs):\n    return {'layers': len(engine.model.model.layers)}\n")
    words = [
        f"model.tokenizer_name_or_path={TINY}", f"eval.evaluators=[kl,{mine}:f]", f"eval.kl.reference={TINY}",
        "model.dtype=float32", "eval.kl.max_samples=1", "eval.num_samples=0",
    ]  # fmt: skip
    where = [f"model.model_name_or_path={file}", f"output_dir={tmp_path / 'run'}"]
    result = gemma_tune.run("evaluate", [*where, *WORDS, *words])
    figures = result.metrics["after"]
    assert 0 <= figures["mean_kl"] < 1e-5 and figures["top1_agreement"] == 1.0
    (failure,) = result.failures.items()
    assert failure[0].endswith("mine.py:f") and "no attribute 'model'" in failure[1]


class _LargeVocabulary:
    def __len__(self) -> int:
        return 262_144


def test_kl_of_a_large_vocabulary_is_refused_beforehand(file: Path) -> None:
    words = [f"model.model_name_or_path={file}", f"eval.kl.reference={TINY}", *WORDS]
    cfg = compose_config("evaluate", [*words, "eval.evaluators=[kl]"])
    served = Source(str(file), None, None, str(TINY))
    with pytest.raises(UserError, match=r"kl needs the probabilities of all tokens.*262,144"):
        check_evaluators(cfg, served, _LargeVocabulary())
    check_evaluators(cfg, source_of(TINY), _LargeVocabulary())


def test_where_the_tokenizer_of_a_gguf_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "export" / "gguf").mkdir(parents=True)
    served = run / "export" / "gguf" / "x.gguf"
    served.write_bytes(b"GGUF")

    def tokenizer_of(name: str | None = None) -> Path:
        return Path(find_source(ModelConfig(str(served), tokenizer_name_or_path=name)).tokenizer)

    with pytest.raises(UserError, match=r"no tokenizer beside this file.*model.tokenizer_name_or_path=FOLDER"):
        tokenizer_of()
    with pytest.raises(UserError, match=r"model.tokenizer_name_or_path=.*has no tokenizer \(tokenizer.json\)"):
        tokenizer_of(str(tmp_path))
    assert tokenizer_of(str(TINY)) == TINY
    for place in ("export/mlx", "export/w4a16_transformers"):
        (run / place).mkdir()
        shutil.copy(TINY / "tokenizer.json", run / place)
        (run / "manifest.json").write_text("{}")
        assert tokenizer_of() == run / place
        shutil.rmtree(run / place)
    (run / "manifest.json").unlink()
    for place in ("export/merged", "adapter"):
        (run / place).mkdir()
        shutil.copy(TINY / "tokenizer.json", run / place)
    with pytest.raises(UserError, match="no tokenizer beside"):  # a folder of these names that is no run's
        tokenizer_of()
    (run / "manifest.json").write_text("{}")
    assert tokenizer_of() == run / "adapter" == tokenizer_of(str(run))
    shutil.copy(TINY / "tokenizer.json", served.parent)
    assert tokenizer_of() == served.parent


def test_a_checkpoint_with_another_tokenizer(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    (folder / "tokenizer.json").unlink()
    words = [f"model.model_name_or_path={folder}", *WORDS, f"output_dir={tmp_path / 'run'}", "dry_run=true"]
    with pytest.raises(UserError, match="has no tokenizer"):
        gemma_tune.run("evaluate", words)
    assert gemma_tune.run("evaluate", [*words, f"model.tokenizer_name_or_path={TINY}"]).status == "dry_run"


@pytest.mark.parametrize("recipe", ["preview", "full_sft", "lora_sft", "qlora_sft", "qat", "export"])
def test_other_recipes_refuse_a_gguf(file: Path, recipe: str) -> None:
    with pytest.raises(UserError, match=rf"recipe={recipe} needs a checkpoint.*GGUF file, which recipe=evaluate"):
        compose_config(recipe, [f"model.model_name_or_path={file}", "tracker=none"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.dtype=float32"], "model.dtype has no effect on a GGUF file"),
        (["model.load_in_4bit=true"], "model.load_in_4bit has no effect"),
        (["model.attn_implementation=eager"], "model.attn_implementation has no effect"),
        (["model.device=cuda"], "model.device has no effect"),
        (["model.model_name_or_path=nowhere/x.gguf"], "there is no such file"),
        (["model.tokenizer_name_or_path=nowhere/at/all"], "tokenizer_name_or_path=nowhere/at/all: there is no such"),
        (["eval.evaluators=[kl]", "eval.kl.reference=x.gguf"], "eval.kl.reference=x.gguf: Transformers loads"),
    ],
)
def test_mistakes(file: Path, words: list[str], message: str) -> None:
    pytest.importorskip("xllamacpp")
    given = {w.split("=", 1)[0]: w for w in [f"model.model_name_or_path={file}", *WORDS, *words]}
    with pytest.raises(UserError, match=message):
        compose_config("evaluate", list(given.values()))


def test_comparing_a_gguf_says_how() -> None:
    with pytest.raises(UserError, match=r"a\.gguf is a GGUF file: measure it with recipe=evaluate"):
        compose_config("compare", ["compare.models=[a.gguf,b]"])


def test_bad_files(file: Path, tmp_path: Path) -> None:
    """What is no GGUF is a user's mistake; one that llama.cpp doesn't load fails the run with its words."""
    pytest.importorskip("xllamacpp")
    bad, run = tmp_path / "bad.gguf", tmp_path / "run"
    for content in (b"", b"not a model", file.read_bytes()[:100]):
        bad.write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.gguf: this is no GGUF file of a language model, or it is cut off"):
            evaluate(bad, run, f"model.tokenizer_name_or_path={TINY}")
        assert not run.exists()
    bad.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(RunError, match=r"bad\.gguf: llama\.cpp can't load it"):
        evaluate(bad, run, f"model.tokenizer_name_or_path={TINY}")
    assert json.loads((run / "result.json").read_text("utf-8"))["status"] == "failed"


def test_the_tokenizer_of_another_model(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    folder = Path(shutil.copytree(TINY, tmp_path / "other"))
    stored = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    stored["model"]["merges"] = stored["model"]["merges"][:50]
    (folder / "tokenizer.json").write_text(json.dumps(stored), "utf-8")
    with pytest.raises(UserError, match=r"tiny\.gguf: its tokenizer isn't that of .*other"):
        evaluate(file, tmp_path / "run", f"model.tokenizer_name_or_path={folder}")
    assert not (tmp_path / "run").exists()


def test_an_int4_folder(packed: tuple[ModelOnGrid, Path], tmp_path: Path) -> None:
    """w4a16 is measured as the model that was trained on its grid."""
    trained, folder = packed
    found = evaluate(folder, tmp_path / "run", "model.dtype=float32", "eval.evaluators=[held_out_loss]")
    cfg = compose_config("evaluate", [*WORDS, "model.dtype=float32"])
    rows = load_held_out(cfg.data, load_tokenizer(trained.source), cfg.train.max_length, cfg.seed).rendered
    losses = TransformersEngine(trained.model, trained.tokenizer).losses(rows, "")
    stored = [row["score"] * row["weight"] for row in found["rows"]["held_out_loss"]]
    assert len(stored) == 4 and stored == pytest.approx(losses, rel=1e-5)


def test_chat_with_an_int4_folder(packed: tuple[ModelOnGrid, Path], recwarn: pytest.WarningsRecorder) -> None:
    """With the answer of the weights on the grid, and no warning of a library's about it."""
    trained, folder = packed
    words = [f"model.model_name_or_path={folder}", "model.dtype=float32", "chat.prompt=Hello", "chat.max_new_tokens=8"]
    (answer,) = gemma_tune.run("chat", words).metrics["answers"]
    assert not [str(said.message) for said in recwarn if issubclass(said.category, UserWarning)]
    asked = render_prompt(trained.tokenizer, [{"role": "user", "content": "Hello"}])
    (wanted,) = TransformersEngine(trained.model, trained.tokenizer).answers([asked], 8, "")
    assert answer["answer"] == trained.tokenizer.decode(wanted, skip_special_tokens=True).strip() != ""


def test_an_int4_folder_with_towers(tmp_path: Path) -> None:
    """Of a checkpoint with images the language part is measured."""
    folder, out = small_models.save("gemma3", tmp_path / "published"), tmp_path / "out"
    source = source_of(folder)
    tokenizer = load_tokenizer(source)
    base = load_base(ModelConfig(str(folder), dtype="float32", device="cpu"), source, tokenizer)
    plan = plan_of(base, "q4_0", "q8_0")
    put_on_grid(base, plan)
    w4a16.export(ModelOnGrid(base, plan, trained_tensors(base, plan), tokenizer, source), out, ExportConfig())
    cfg = compose_config("evaluate", [f"model.model_name_or_path={out}", "model.dtype=float32", *WORDS])
    row = list(range(10, 40))
    with open_engine(cfg, source_of(out), tokenizer) as engine:
        (found,) = engine.log_probs([row], "")
    (wanted,) = TransformersEngine(base, tokenizer).log_probs([row], "")
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_quantized_checkpoints_that_are_refused(packed: tuple[ModelOnGrid, Path], tmp_path: Path) -> None:
    _, folder = packed
    with pytest.raises(UserError, match=r"stored quantized \(compressed-tensors\), and tuning needs full ones"):
        short_run("lora_sft", tmp_path / "run", f"model.model_name_or_path={folder}")
    with pytest.raises(UserError, match=r"model.load_in_4bit=true can't round them again"):
        evaluate(folder, tmp_path / "run", "model.load_in_4bit=true")
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text("utf-8"))
    for changed, said in (
        ({"dtype": "float32"}, "model.dtype=bfloat16 can't hold their scales; set model.dtype=float32"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            "only those of compressed-tensors and gemma are measured",
        ),
    ):
        (other / "config.json").write_text(json.dumps({**config, **changed}), "utf-8")
        with pytest.raises(UserError, match=said):
            evaluate(other, tmp_path / "run")
    assert not (tmp_path / "run").exists()
