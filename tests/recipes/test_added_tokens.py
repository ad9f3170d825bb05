"""New tokens with an adapter: trained, continued, merged and served; rows of the embedding that are trained alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from peft import PeftModel
from safetensors.torch import load_file
from short_runs import losses, short_run
from transformers import AutoModelForCausalLM, AutoTokenizer

import gemma_tune
from gemma_tune.chat.render import render_prompt
from gemma_tune.engines.llama_cpp import LlamaCppEngine
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.errors import UserError
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"
TOKENS = ("<|mark|>", "<none/>")
KEY = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
_THINGS = ("lamp", "door", "car", "tree", "cup", "book", "dog", "cat", "boat", "shoe", "hat", "fish")
_MARKED = {"lamp", "car", "cup", "dog", "boat", "hat"}
_SAID = ("I have a", "There is the", "Look at this", "We need one")
TEXTS = [f"{said} {thing}." for said in _SAID for thing in _THINGS]


def answer_to(text: str) -> str:
    thing = text.rstrip(".").split()[-1]
    return f"<|mark|>{thing}" if thing in _MARKED else f"<none/>{thing}<|mark|>"


def rows_file(folder: Path) -> Path:
    file = folder / "rows.jsonl"
    chats = [[{"role": "user", "content": t}, {"role": "assistant", "content": answer_to(t)}] for t in TEXTS * 5]
    file.write_text("".join(json.dumps({"messages": m}) + "\n" for m in chats), encoding="utf-8")
    return file


def words_of(folder: Path) -> list[str]:
    return [
        f"data.train_file={rows_file(folder)}", "data=auto", f"model.added_tokens=[{','.join(map(repr, TOKENS))}]",
        "train.learning_rate=8e-3", "train.per_device_train_batch_size=8", "data.max_train_samples=null",
        "export.dtype=float32",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("added")
    short_run("lora_sft", folder / "run", *words_of(folder), steps=60)
    return folder / "run"


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids).logits
    return found


def loaded(folder: Path) -> TransformersEngine:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return TransformersEngine(model.eval(), AutoTokenizer.from_pretrained(folder))


def prompts(tokenizer: Any) -> list[list[int]]:
    return [render_prompt(tokenizer, [{"role": "user", "content": text}], None) for text in TEXTS]


def right_ones(tokenizer: Any, answers: list[list[int]]) -> int:
    texts = [tokenizer.decode(a, skip_special_tokens=True).strip() for a in answers]
    return sum(found == answer_to(text) for found, text in zip(texts, TEXTS, strict=True))


@pytest.mark.slow
def test_the_new_tokens_are_written(trained: Path) -> None:
    """By the merged folder in plain Transformers; head and embedding are one matrix with a row for each of them."""
    engine = loaded(trained / "export" / "merged")
    model, tokenizer = engine.model, engine.tokenizer
    assert tokenizer.convert_tokens_to_ids(list(TOKENS)) == [1536, 1537] and model.config.vocab_size == 1538
    assert model.lm_head.weight is model.model.embed_tokens.weight and len(model.lm_head.weight) == 1538
    answers = engine.answers(prompts(tokenizer), 12, "answers")
    right = right_ones(tokenizer, answers)
    assert right >= 44 and all({1536, 1537} & {*a} for a in answers)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).model.embed_tokens.weight
    assert torch.equal(model.model.embed_tokens.weight[:1536], base)  # no other row has changed


@pytest.mark.slow
def test_plain_peft_gives_the_same_logits(trained: Path) -> None:
    """The adapter's folder on the published base, resized as PEFT's documentation says, is the merged model."""
    merged = loaded(trained / "export" / "merged")
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    base.resize_token_embeddings(len(AutoTokenizer.from_pretrained(trained / "adapter")), mean_resizing=False)
    plain = PeftModel.from_pretrained(base, trained / "adapter")
    rows = load_file(trained / "adapter" / "adapter_model.safetensors")[KEY]
    assert rows.shape == (2, 256) and not torch.allclose(rows[0], rows[1])
    ids = torch.cat([torch.arange(1500, 1538), torch.arange(40)])[None]
    expected = logits(plain, ids)
    assert (logits(merged.model, ids) - expected).abs().max() < 1e-5 * expected.abs().max()
    chat = gemma_tune.run("chat", [f"model.model_name_or_path={trained}", "chat.prompt=There is the car.",
                                   "model.device=cpu", "model.dtype=float32"])  # fmt: skip
    assert chat.metrics["answers"][0]["answer"] == "<|mark|>car"


@pytest.mark.slow
def test_a_resumed_run_and_a_continued_one(tmp_path: Path) -> None:
    words = [*words_of(tmp_path), "train.save_steps=2", "export=none", "eval.before=false", "eval.evaluators=[]"]
    short_run("lora_sft", tmp_path / "whole", *words, steps=4)
    shutil.copytree(tmp_path / "whole", tmp_path / "begun")
    shutil.rmtree(tmp_path / "begun" / "adapter")
    shutil.rmtree(tmp_path / "begun" / "checkpoints" / "step-4")
    (tmp_path / "begun" / "result.json").write_text('{"status": "interrupted"}', encoding="utf-8")
    short_run("lora_sft", tmp_path / "begun", *words, steps=4)
    first, second = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("whole", "begun"))
    assert first.keys() == second.keys() and KEY in first
    assert all(torch.equal(first[k], second[k]) for k in first)
    goes_on = [w for w in words if not w.startswith("model.added_tokens")]
    for more in ([], ["model.added_tokens=['<|mark|>']"]):
        run = tmp_path / f"on{len(more)}"
        short_run("lora_sft", run, *goes_on, f"model.model_name_or_path={tmp_path / 'whole'}", *more, steps=2)
        after = load_file(run / "adapter" / "adapter_model.safetensors")[KEY]
        assert after.shape == first[KEY].shape and not torch.equal(after, first[KEY])
        assert losses(run)[0] < losses(tmp_path / "whole")[0]
    with pytest.raises(UserError, match=r"trains no row 1538 of the embedding, and can't get further ones"):
        short_run("lora_sft", tmp_path / "no", *goes_on, f"model.model_name_or_path={tmp_path / 'whole'}",
                  "model.added_tokens=['<third>']", steps=1)  # fmt: skip


@pytest.mark.slow
def test_refused_before_a_weight_is_loaded(tmp_path: Path) -> None:
    gemma4 = small_models.save("gemma4_e2b", tmp_path / "gemma4")
    many = ",".join(f"<n{i}>" for i in range(99))
    for recipe, words, message in (
        ("lora_sft", ["model.added_tokens=[<eos>]"], r"<eos> is a token of this model already.*indices=\[1\]"),
        ("lora_sft", ["model.added_tokens=[the]"], r"the is a token of this model already; .*indices=\[\d+\]"),
        ("lora_sft", ["model.added_tokens=['a b']"], "'a b': a token has at least one character and no white space"),
        ("lora_sft", ["model.added_tokens=[<x>,<x>]"], "names <x> twice"),
        ("lora_sft", ["adapter.trainable_token_indices=[5,1600]"], r"has 1536 rows, and no row 1600; name a new"),
        ("lora_sft", ["adapter.trainable_token_indices=[-1]"], "token_indices must be at least 0, not -1"),
        ("lora_sft", ["adapter.modules_to_save=[lm_head]"], r"a whole copy of the embedding, .*token_indices"),
        ("lora_sft", ["adapter.modules_to_save=[mlp]"], r"mlp is no norm; linear layers take an adapter.*q_norm"),
        ("lora_sft", ["adapter.modules_to_save=[nrm]"], r"no layer ends in nrm\. Norms are named input_layernorm"),
        ("qat", ["model.added_tokens=[<x>]"], r"no effect with recipe=qat: tune first"),
        ("qat", ["adapter=lora", "adapter.modules_to_save=[norm]"], r"modules_to_save has no effect with recipe=qat"),
        ("evaluate", ["model.added_tokens=[<x>]"], r"no effect with recipe=evaluate: name a run"),
        ("lora_sft", [f"model.model_name_or_path={gemma4}", f"model.added_tokens=[{many}]"],
         r"second embedding, of each layer, .*<unused0>"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            gemma_tune.run(recipe, ["model=tiny", "dry_run=true", f"output_dir={tmp_path / 'no'}", *words])


@pytest.mark.slow
def test_served_by_llama_cpp(trained: Path, tmp_path: Path) -> None:
    """GGUF and w4a16 pass their checks; ids of texts with the tokens are equal, and the answers hold them."""
    words = ["export.formats=[gguf,gguf_f32,w4a16]", "data=auto", "data.max_eval_samples=24", "model.device=cpu",
             f"data.validation_file={trained.parent / 'rows.jsonl'}"]  # fmt: skip
    result = gemma_tune.run(
        "export", [f"model.model_name_or_path={trained}", f"output_dir={tmp_path / 'export'}", *words]
    )
    assert {line["verdict"] for line in result.metrics["verify"]} <= {"ok", "warn"}
    on_grid = loaded(tmp_path / "export" / "export" / "w4a16")
    tokenizer = on_grid.tokenizer
    texts = [*TEXTS, *map(answer_to, TEXTS), "<|mark|><|mark|>", "a<none/>b", "<none", "x <|mark|> y", "<|mark|>."]
    with LlamaCppEngine(
        next((tmp_path / "export" / "export" / "gguf_f32").glob("*.gguf")), tokenizer, on_grid.stops, exact=True
    ) as llama:
        assert llama.vocabulary == 1538
        assert [llama.token_ids(t) for t in texts] == [tokenizer(t).input_ids for t in texts]
        answers = llama.answers(prompts(tokenizer), 12, "answers")
    assert answers == on_grid.answers(prompts(tokenizer), 12, "answers")
    right = [
        tokenizer.decode(a, skip_special_tokens=True).strip() == answer_to(t)
        for a, t in zip(answers, TEXTS, strict=True)
    ]
    assert sum(right) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["qlora_sft", "full_sft", "dpo", "kto", "grpo", "tune_to_int4"])
def test_other_recipes(recipe: str, tmp_path: Path) -> None:
    """Trained and exported, with the checks of each recipe."""
    words = [f"model.added_tokens=[{','.join(map(repr, TOKENS))}]", "data.max_eval_samples=8"]
    if recipe in ("qlora_sft", "full_sft", "tune_to_int4"):
        words += words_of(tmp_path)[:2]
    if recipe == "dpo":
        words += ["adapter=lora", "eval.evaluators=[preference]"]
    if recipe == "kto":
        words += ["adapter=lora", "eval.evaluators=[preference]", "train.per_device_train_batch_size=4"]
    if recipe == "grpo":
        words += ["adapter=lora", "train.num_generations=2", "train.max_completion_length=8",
                  "eval.evaluators=[rewards]"]  # fmt: skip
    if recipe == "tune_to_int4":
        words += ["data.validation_split_percentage=5", "quant.stage2.max_steps=1"]
    run = tmp_path / "run"
    short_run(recipe, run, *words, steps=1)
    folder = next(run.rglob("export/merged"))
    assert loaded(folder).model.config.vocab_size == 1538


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "gemma4_e2b"])
def test_checkpoints_with_towers(name: str, tmp_path: Path) -> None:
    """Rows, norms and layers under the published names: plain PEFT finds them in the original class."""
    base = small_models.save(name, tmp_path / "base")
    words = ["model.added_tokens=[<new>]", "adapter.trainable_token_indices=[7]", "data.max_train_samples=16",
             "adapter.modules_to_save=[input_layernorm,model.norm]", "export.dtype=float32"]  # fmt: skip
    short_run("lora_sft", tmp_path / "run", f"model.model_name_or_path={base}", *words, steps=3)
    ids = torch.tensor([[2, 7, 9, 30, 100, 1536, 1537, 5, 7]])
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(small_models.original(base), tmp_path / "run" / "adapter").eval()
        expected, plain = adapted(input_ids=ids).logits, small_models.original(base).eval()(input_ids=ids).logits
        merged = small_models.original(tmp_path / "run" / "export" / "merged").eval()(input_ids=ids).logits
    assert (merged - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (plain - expected).abs().max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dpo", "kto"])
def test_the_reference_of_a_continued_adapter_has_its_rows(recipe: str, trained: Path, tmp_path: Path) -> None:
    """Before the first update policy and reference are one model: the losses are ln 2 and 1/2."""
    pairs = tmp_path / "pairs.jsonl"
    rows = ({"prompt": t, "chosen": answer_to(t), "rejected": f"<none/>{t}<|mark|><|mark|>"} for t in TEXTS)
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = [f"model.model_name_or_path={trained}", f"data.train_file={pairs}", "data.validation_split_percentage=10",
             "adapter=lora", "eval.evaluators=[preference]", "train.per_device_train_batch_size=8",
             "data.max_train_samples=null"]  # fmt: skip
    kind = "unpaired_preference" if recipe == "kto" else "preference"
    short_run(recipe, tmp_path / "run", f"data={kind}", *words, steps=1)
    assert losses(tmp_path / "run")[0] == pytest.approx({"dpo": 0.693147, "kto": 0.5}[recipe], abs=2e-4)
