"""Checks before training: each says what it found, and each can fail."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from forms_at_hand import tokenizer_of
from short_runs import short_run

import gemma_tune
from gemma_tune.chat import Rendered, form_of
from gemma_tune.cli.compose import compose_config
from gemma_tune.data.records import Record
from gemma_tune.data.tokenized import TokenizedRows, render_rows
from gemma_tune.errors import UserError
from gemma_tune.models.adapters import adapter as adapters
from gemma_tune.models.estimate.size import size_of
from gemma_tune.models.load import load_config, load_tokenizer
from gemma_tune.models.load_weights import load_base
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import ASSETS
from gemma_tune.train.check_inputs import CheckInputs
from gemma_tune.train.preflight import preflight

CHAT = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "I am well."}]


def looked(folder: Path | None = None, recipe: str = "lora_sft", *words: str) -> CheckInputs:
    named = [f"model.model_name_or_path={folder}", "data=messages", "data.train_file=assets://sample/train.jsonl"]
    cfg = compose_config(recipe, [*(named if folder else []), "model.dtype=float32", *words])
    source = find_source(cfg.model)
    tokenizer = load_tokenizer(source)
    base = load_base(cfg.model, source, tokenizer)
    model = adapters.attach(base, cfg.adapter, source)
    rows = render_rows([Record("rows.jsonl:7", messages=CHAT)], tokenizer, 64, "rows")
    shape = size_of(load_config(source))
    return CheckInputs(cfg, model, tokenizer, rows, adapters.count(model), shape, True, (1.0, 2.0))


@pytest.fixture(scope="module")
def tiny() -> CheckInputs:
    return looked()


def changed(rows: TokenizedRows, ids: list[int], labels: list[int]) -> TokenizedRows:
    """One row in place of what was rendered."""
    row = Rendered(ids, labels)
    trained = {i for i in labels if i >= 0}
    return replace(rows, rendered=[row], tokens=len(ids), trained_tokens=row.trained_tokens, trained_ids=trained)


def test_everything_holds(tiny: CheckInputs) -> None:
    lines = preflight(tiny)
    assert all(line.startswith("✓ ") for line in lines)
    assert [line[2:].split(":")[0] for line in lines] == [
        "trained share", "stop token", "<bos>", "template", "adapters", "in 4 bit", "gradient accumulation", "types",
        "memory",
    ]  # fmt: skip
    row = tiny.rows.rendered[0]
    assert f"{row.trained_tokens / len(row.input_ids):.1%} of {len(row.input_ids)} tokens" in lines[0]


def test_no_token_is_trained(tiny: CheckInputs) -> None:
    ids = tiny.rows.rendered[0].input_ids
    with pytest.raises(UserError, match="the loss counts no token of any row"):
        preflight(replace(tiny, rows=changed(tiny.rows, ids, [-100] * len(ids))))


def test_every_token_is_trained(tiny: CheckInputs) -> None:
    """Trap 8: labels that equal the ids train the prompt, too."""
    ids = tiny.rows.rendered[0].input_ids
    with pytest.raises(UserError, match="the loss counts every token, the prompts', too"):
        preflight(replace(tiny, rows=changed(tiny.rows, ids, ids)))


def test_the_stop_token_is_cut_off(tiny: CheckInputs) -> None:
    """Trap 4."""
    row = tiny.rows.rendered[0]
    with pytest.raises(UserError, match=r"no row trains <end_of_turn>, .* Raise train.max_length"):
        preflight(replace(tiny, rows=changed(tiny.rows, row.input_ids[:-2], row.labels[:-2])))


def test_the_stop_token_would_not_be_saved(tiny: CheckInputs) -> None:
    """Trap 4."""
    kept = tiny.base.generation_config.eos_token_id
    tiny.base.generation_config.eos_token_id = [1]
    try:
        with pytest.raises(UserError, match=r"generation_config\.json would not stop at it"):
            preflight(tiny)
    finally:
        tiny.base.generation_config.eos_token_id = kept


def test_two_bos(tiny: CheckInputs) -> None:
    """Trap 5: named with file and line."""
    row = tiny.rows.rendered[0]
    with pytest.raises(UserError, match=r"rows.jsonl:7: 2 <bos> in this row"):
        preflight(replace(tiny, rows=changed(tiny.rows, [2, *row.input_ids], [-100, *row.labels])))


def test_another_template_would_be_saved(tiny: CheckInputs) -> None:
    row = tiny.rows.rendered[0]
    other = [*row.input_ids[:-3], row.input_ids[3], *row.input_ids[-2:]]
    with pytest.raises(UserError, match="the template that will be saved gives other tokens"):
        preflight(replace(tiny, rows=changed(tiny.rows, other, row.labels)))


def test_adapters_that_do_not_add_up(tiny: CheckInputs) -> None:
    with pytest.raises(UserError, match=r"1 weights are trained, and r·\(in \+ out\) over all adapted layers is"):
        preflight(replace(tiny, counts=replace(tiny.counts, trainable=1)))
    with pytest.raises(UserError, match="adapters are on 42 of 43 linear layers of Gemma 3"):
        preflight(replace(tiny, shape=replace(tiny.shape, linear_layers=43)))


def test_batches_weighted_alike(tiny: CheckInputs) -> None:
    """Trap 1, and all that is wrong is said at once."""
    with pytest.raises(UserError) as error:
        preflight(replace(tiny, weighs_tokens=False, counts=replace(tiny.counts, trainable=1)))
    assert [p.split(":")[0] for p in error.value.problems] == ["✗ adapters", "✗ gradient accumulation"]


def test_beginnings_that_nobody_shares(tiny: CheckInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where attention isn't by document, or rows have media, grouping by beginning is said to save nothing."""

    def said(**changed: Any) -> str:
        train = replace(tiny.cfg.train, train_sampling_strategy="group_by_beginning")
        return preflight(replace(tiny, cfg=replace(tiny.cfg, train=train), **changed), ["beginnings"])[0]

    assert said() == "✓ beginnings: what rows of a batch begin with alike is computed once"
    without = said(shape=replace(tiny.shape, sliding_layers=0))
    assert without.startswith("warning: beginnings: group_by_beginning saves nothing: attention is sdpa, which")
    assert without.endswith(
        "model.attn_implementation=by_document computes once what rows of a batch begin with alike."
    )
    monkeypatch.setattr(tiny.base.config, "model_type", "gemma2")  # which by_document can't compute
    assert said(shape=replace(tiny.shape, attention="eager")).endswith(
        "; Gemma 2 has no kernel that doesn't; leave it out."
    )
    media = replace(tiny.rows, dataset=tiny.rows.dataset.add_column("media", [None]))
    assert "saves nothing in batches with media" in said(rows=media)
    assert preflight(tiny, ["beginnings"]) == []


def test_4_bit_weights_that_are_none() -> None:
    x = looked(None, "qlora_sft")
    assert any("✓ in 4 bit: 4,718,592 of" in line for line in preflight(x))
    with pytest.raises(UserError, match=r"0 of 4,718,592 weights of the linear layers are in 4 bit"):
        preflight(replace(x, counts=replace(x.counts, four_bit=0)))


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("name", ["gemma3", "gemma4_v1", "gemma4_v4", "gemma4_v5", "gemma4_large_v5", "functiongemma"])
def test_results_without_names_or_as_data(name: str, tiny: CheckInputs) -> None:
    """The saved template is asked with what a server hands it: results named, and data as text where it must be."""
    tokenizer = tokenizer_of(name)
    asked = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}]
    results = [{"role": "tool", "content": "2"}, {"role": "tool", "content": {"sum": 2}}]
    record = Record("rows.jsonl:1", messages=[*asked, *results, CHAT[1]], tools=[TOOL])
    rows = render_rows([record], tokenizer, 512, "rows")
    stops = tokenizer.convert_tokens_to_ids(list(form_of(tokenizer).stop_tokens))
    kept = tiny.base.generation_config.eos_token_id
    tiny.base.generation_config.eos_token_id = stops
    try:
        lines = preflight(replace(tiny, tokenizer=tokenizer, rows=rows))
    finally:
        tiny.base.generation_config.eos_token_id = kept
    compared = "2 rows" if "large" in name else "1 row"  # each answer behind a prompt of its own
    assert any(f"gives the same tokens ({compared} compared)" in line for line in lines)


def test_text_that_never_ends(tiny: CheckInputs) -> None:
    """Long documents are cut before <eos>: a warning, and no reason to stop."""
    rows = render_rows([Record("rows.jsonl:1", text="word " * 99)], tiny.tokenizer, 16, "rows")
    lines = preflight(replace(tiny, rows=rows))
    assert any(line.startswith("warning: stop token: none is trained, because every text is cut") for line in lines)


@pytest.mark.slow
def test_an_adapter_on_some_layers_is_continued(tmp_path: Path) -> None:
    quick = ["eval=none", "eval.num_samples=0", "export=none"]
    short_run("lora_sft", tmp_path / "first", "adapter.target_modules=[q_proj,v_proj]", *quick, steps=1)
    words = [f"model.model_name_or_path={tmp_path / 'first'}", *quick]
    assert short_run("lora_sft", tmp_path / "second", *words, steps=1).metrics["weights"]["adapted_layers"] == 12


def test_nothing_is_sent_and_the_type_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 15: TRL's telemetry is off, and the model is trained in the type that was asked for."""
    from trl.trainer import base_trainer

    sent: list[Any] = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *a, **k: sent.append(a))
    short_run("lora_sft", tmp_path / "run", "model.dtype=bfloat16", "eval=none", "export=none", steps=1)
    assert not sent
    assert "✓ types: weights bfloat16 and float32, trained ones float32" in (tmp_path / "run" / "report.md").read_text()


class _LosesKeys(torch.nn.Module):
    """A model whose loss hangs on the cache."""

    def forward(self, *, use_cache: bool, **kwargs: Any) -> Any:
        return type("Out", (), {"loss": torch.tensor(6.8 if use_cache else 16.2)})


@pytest.mark.parametrize("name", ["gemma3n", "gemma4_e2b"])
def test_shared_keys_and_values(name: str, tmp_path: Path) -> None:
    """Trap 6: the loss is the same with a cache and without, on models that do share."""
    x = looked(small_models.save(name, tmp_path / name))
    assert any("✓ shared keys and values: 2 layers share them" in line for line in preflight(x))
    model = _LosesKeys()
    model.get_base_model = lambda: x.base  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"the loss is 6.8000 with a cache and 16.2000 without"):
        preflight(replace(x, model=model))


def test_a_failed_check_leaves_no_folder(tmp_path: Path) -> None:
    """Rows so short that no answer's end is left."""
    words = ["data=messages", f"data.train_file={tmp_path / 'rows.jsonl'}", "train.max_length=24"]
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "one two three four five six " * 9}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": chat}), encoding="utf-8")
    with pytest.raises(UserError, match="✗ stop token: no row trains"):
        short_run("lora_sft", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_report_has_the_checks(tmp_path: Path) -> None:
    short_run("lora_sft", tmp_path / "run", "eval=none", "export=none", steps=1)
    assert r"- ✓ stop token: \<end_of_turn\> trained" in (tmp_path / "run" / "report.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", r"1 weights are missing in the files \(for example model.layers.1.mlp.up_proj.weight\)"),
        ("extra", r"1 weights in the files have no place in the model \(for example model.layers.0.extra.weight\)"),
        ("shape", "can't be loaded|another shape"),
        ("quantized", r"its weights are stored quantized \(bitsandbytes\), and tuning needs full ones"),
        ("template", r"model.chat_template=gemma3"),
        ("tokenizer", r"its tokenizer lacks <start_of_turn>.*it is another family's"),
    ],
)
def test_checkpoints_that_are_none(change: str, said: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(ASSETS / "tiny", folder)
    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text("utf-8"))
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del weights[name]
    elif change == "extra":
        weights["model.layers.0.extra.weight"] = torch.zeros(2)
    elif change == "shape":
        weights[name] = torch.zeros(4, 4)
    elif change == "quantized":
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    elif change == "template":
        template = (folder / "chat_template.jinja").read_text("utf-8")
        (folder / "chat_template.jinja").write_text(f"{template}You are kind.", encoding="utf-8")
    else:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            text = (folder / file).read_text("utf-8").replace("<start_of_turn>", "<|turn_begins|>")
            (folder / file).write_text(text, encoding="utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    words = [f"model.model_name_or_path={folder}", "data=messages", "data.train_file=assets://sample/train.jsonl"]
    words += ["tracker=none", f"output_dir={tmp_path / 'run'}", "data.max_train_samples=8"]
    with pytest.raises(UserError, match=said):
        gemma_tune.run("lora_sft", words)
    assert not (tmp_path / "run").exists()
