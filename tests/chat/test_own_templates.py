"""Chat templates of the user's own: examined, masked, saved with the model, and known again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asking import refused
from jinja2 import Environment

import gemma_tune
from gemma_tune.chat import Unrenderable, form_of, render_chat, render_prompt, without_marks
from gemma_tune.chat.own import OwnForm, own_text
from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.export.go_template import go_template
from gemma_tune.models.chat_template import check_template
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import ASSETS
from gemma_tune.validation.templates import template_problems

TEMPLATES = Path(__file__).parent / "own_templates"
CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <there> "},
    {"role": "assistant", "content": "Yes\n\nno 👍🏽"},
    {"role": "user", "content": [{"type": "text", "text": "O"}, {"type": "text", "text": "k"}]},
    {"role": "assistant", "content": "Bye"},
]
PLAIN = [m | {"content": "Ok"} if isinstance(m["content"], list) else m for m in TALK]


def tokenizer_with(template: Path | str, tokens: list[str] | None = None) -> Any:
    model = ModelConfig(str(ASSETS / "tiny"), added_tokens=tokens or [])
    return load_tokenizer(find_source(model), str(template))


@pytest.fixture(scope="module", params=["marked", "tools", "chatml"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """The tokenizer with each of the templates."""
    return tokenizer_with(TEMPLATES / f"{request.param}.jinja", CHATML_TOKENS if request.param == "chatml" else [])


def test_masks_are_those_of_transformers(tokenizer: Any) -> None:
    """An independent implementation of `{% generation %}`; these templates end it with the stop token."""
    for talk in (PLAIN, PLAIN[1:], PLAIN[:3]):
        row = render_chat(tokenizer, talk)
        theirs = tokenizer.apply_chat_template(talk, return_assistant_tokens_mask=True, return_dict=True)
        assert row.input_ids == theirs["input_ids"]
        assert [int(label != -100) for label in row.labels] == list(theirs["assistant_masks"])


@pytest.mark.slow
def test_without_marks_the_masks_come_from_the_prompts(tokenizer: Any, tmp_path: Path) -> None:
    bare = tmp_path / "bare.jinja"
    bare.write_text(without_marks(tokenizer.chat_template), encoding="utf-8")
    tokens = CHATML_TOKENS if "im_start" in tokenizer.chat_template else []
    other = tokenizer_with(bare, tokens)
    for talk in (TALK, TALK[1:], TALK[:3]):
        assert render_chat(other, talk) == render_chat(tokenizer, talk)
    skipped = [*TALK[:2], TALK[2] | {"weight": 0}, *TALK[3:]]
    assert render_chat(other, skipped) == render_chat(tokenizer, skipped)
    assert render_chat(other, skipped).trained_tokens < render_chat(other, TALK).trained_tokens


@pytest.mark.slow
def test_a_prompt_is_what_the_row_begins_with(tokenizer: Any) -> None:
    row, prompt = render_chat(tokenizer, TALK), render_prompt(tokenizer, TALK[:-1])
    assert row.input_ids[: len(prompt)] == prompt
    assert row.labels[len(prompt)] == row.input_ids[len(prompt)] and row.labels[len(prompt) - 1] == -100
    assert prompt == tokenizer.apply_chat_template(PLAIN[:-1], add_generation_prompt=True)["input_ids"]


@pytest.mark.slow
def test_other_engines_write_the_same_text(tokenizer: Any) -> None:
    """Jinja alone, which doesn't know the tag, on the template as it stands in a GGUF file."""
    bare = Environment(trim_blocks=True, lstrip_blocks=True).from_string(without_marks(tokenizer.chat_template))
    given = {**tokenizer.special_tokens_map, "messages": PLAIN}
    assert bare.render(**given) == tokenizer.apply_chat_template(PLAIN, tokenize=False)


@pytest.mark.slow
def test_calls_that_are_read_back(tokenizer: Any) -> None:
    assert (form_of(tokenizer).calls == "json") == ("tool_calls" in tokenizer.chat_template)
    if form_of(tokenizer).calls is None:
        with pytest.raises(Unrenderable, match="in your chat template; take a template that writes `tools` and"):
            render_chat(tokenizer, TALK, [{"type": "function", "function": {"name": "f"}}])


@pytest.mark.slow
def test_it_is_known_again(tokenizer: Any, tmp_path: Path) -> None:
    """Saved beside a model, it is taken without being named."""
    model = ModelConfig(str(ASSETS / "tiny"), tokenizer_name_or_path=str(tmp_path))
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(find_source(model))
    assert again.chat_template == tokenizer.chat_template
    assert render_chat(again, TALK) == render_chat(tokenizer, TALK)


@pytest.mark.slow
def test_what_a_template_drops_is_refused(tmp_path: Path) -> None:
    text = (TEMPLATES / "marked.jinja").read_text(encoding="utf-8")
    file = tmp_path / "drops.jinja"
    file.write_text(text.replace("{%- else -%}", "{%- elif message.role == 'user' -%}"), encoding="utf-8")
    tokenizer = tokenizer_with(file)
    assert not form_of(tokenizer).system
    with pytest.raises(Unrenderable, match="there is no system role in your chat template"):
        render_chat(tokenizer, TALK)
    with pytest.raises(Unrenderable, match=r"leaves out or changes message 2 \(critic\): 'No!'"):
        render_chat(tokenizer, [TALK[1], {"role": "critic", "content": "No!"}, TALK[2]])
    with pytest.raises(Unrenderable, match="become one token"):  # Untrimmed, "\n" and "\nHi" would
        render_chat(tokenizer_with(TEMPLATES / "chatml.jinja", CHATML_TOKENS), [TALK[1], TALK[2] | {"content": "\nHi"}])


@pytest.mark.slow
def test_history_that_changes_needs_marks(tmp_path: Path) -> None:
    """A template that writes past answers otherwise than the last one: without marks nothing says what is generated."""
    text = (TEMPLATES / "marked.jinja").read_text(encoding="utf-8")
    text = text.replace(
        "{{- '### Answer:\\n' -}}\n        {%-", "{{- '### ' + ('Answer' if loop.last else 'Past') + ':\\n' -}}\n{%-"
    )
    file = tmp_path / "past.jinja"
    file.write_text(text, encoding="utf-8")
    assert render_chat(tokenizer_with(file), PLAIN).trained_tokens
    file.write_text(without_marks(text), encoding="utf-8")
    with pytest.raises(UserError, match=r"enclose what the model generates in \{% generation %\}"):
        tokenizer_with(file)


@pytest.mark.slow
def test_go_for_ollama(tokenizer: Any) -> None:
    text = go_template(form_of(tokenizer))
    assert 'eq .Role "system"' in text and text.count("{{ .Content }}") == 3
    opening = own_text(form_of(tokenizer), PLAIN[1:2], prompt=True)[0].removeprefix("<bos>")
    begin, end = opening.split("Hi <there> " if "im_start" in text else "Hi <there>")
    assert f"{{{{ {json.dumps(begin)} }}}}{{{{ .Content }}}}{{{{ {json.dumps(end)} }}}}" in text


@pytest.mark.slow
def test_go_that_would_be_wrong_is_not_written(tokenizer: Any) -> None:
    form = form_of(tokenizer)
    assert isinstance(form, OwnForm)
    numbered = form.source.replace("message.content", "(loop.index ~ message.content)")
    numbered = numbered.replace("message['content']", "(loop.index ~ message['content'])")
    with pytest.raises(Unrenderable, match="there is no Modelfile for this chat template"):
        go_template(replace(form, source=numbered))


MARKED = (TEMPLATES / "marked.jinja").read_text(encoding="utf-8")
ENDS = (" + eos_token -}}\n        {%- endgeneration -%}", " -}}{%- endgeneration -%}{{- eos_token -}}")
HEADER, OPENED = "{{- '### Answer:\\n' -}}\n        {%- generation -%}", "{%- generation -%}{{- '### Answer:\\n' -}}"
TWO_LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
EVERYTHING = MARKED.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
EVERYTHING = EVERYTHING.replace("{%- if m", "{%- generation -%}{%- if m")
EVERYTHING = EVERYTHING.replace("{%- endfor", "{%- endgeneration -%}{%- endfor")
WRONG = {
    "syntax": ("{% for m in messages %}\n{{ m.content }", "line 2: it is no valid Jinja template"),
    "empty": (" \n", "it is empty"),
    "fails": ("{{ messages[0].nope.deeper }}", "it fails on a conversation of two questions"),
    "loops": (TWO_LOOPS, "takes more than 1 second"),
    "bomb": ("{{ 'a' * 10**10 }}", "takes more than 512 MiB"),
    "other token": (
        (TEMPLATES / "chatml.jinja").read_text("utf-8"),
        "add 'model.added_tokens=[<|im_start|>,<|im_end|>]'",
    ),
    "no stop": (MARKED.replace(" + eos_token", ""), "ends without a stop token"),
    "pad": (MARKED.replace(" + eos_token", " + '<pad>'"), "an answer ends with <pad>"),
    "no bos": (MARKED.replace("{{- bos_token -}}\n", ""), "0 <bos> in a conversation"),
    "two bos": (MARKED.replace("{{- bos_token -}}", "{{- bos_token + bos_token -}}"), "2 <bos> in a conversation"),
    "bos later": (MARKED.replace("{{- bos_token -}}", "{{- 'x' + bos_token -}}"), "not at its start"),
    "drops": (MARKED.replace("message['content'] | trim + eos_token", "eos_token"), "leaves out or changes"),
    "prompt": (MARKED[: MARKED.rindex("{{-")] + "{{- '### AI:' -}}{%- endif -%}", "doesn't begin with"),
    "blank": (MARKED.replace("Answer:\\n", "Answer: "), ""),
    "mark early": (MARKED.replace(HEADER, OPENED), "must stand where the prompt ends"),
    "mark short": (MARKED.replace(*ENDS), "must stand behind <eos>"),
    "mark all": (EVERYTHING, "around each answer and nothing else"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.slow
def test_wrong_templates(name: str, folder: Path) -> None:
    """Each is answered before torch is imported, by the tokenizer's files alone."""
    template, message = WRONG[name]
    Path("mine.jinja").write_text(template, encoding="utf-8")
    if not message:  # a blank at the end of a prompt is no mistake where nothing merges with it
        return check_template(ModelConfig(str(ASSETS / "tiny"), chat_template="mine.jinja"))
    with pytest.raises(UserError) as caught:
        check_template(ModelConfig(str(ASSETS / "tiny"), chat_template="mine.jinja"))
    assert str(caught.value).startswith("model.chat_template=mine.jinja: ") and message in str(caught.value)


@pytest.mark.slow
def test_a_wrong_template_for_a_checkpoint_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the tokenizer of the cache; where that isn't here, only what the template itself tells is known."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    template, message = WRONG["mark all"]
    Path("mine.jinja").write_text(template, encoding="utf-8")
    check_template(ModelConfig("me/tiny", chat_template="mine.jinja"))
    place = folder / "hub" / "models--me--tiny"
    shutil.copytree(ASSETS / "tiny", place / "snapshots" / "0123abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123abc", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        check_template(ModelConfig("me/tiny", chat_template="mine.jinja"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chatml", "there is no chat template of this name. Known are gemma, gemma3,"),
        ("gema3", "Did you mean gemma3?"),
        ("x/mine.jinja", "there is no such file (nor its folder x)"),
        ("mine.jinja", "there is no such file. Did you mean main.jinja?"),
        ("templates", "this is a folder; name the file with the template: model.chat_template=templates/chat_template"),
        ("binary", "no text in UTF-8"),
        ("huge.jinja", "more than 1 MiB"),
        ("main.jinja", "line 1: it is no valid Jinja template"),
        ("config.json", "this is JSON"),
    ],
)
@pytest.mark.slow
def test_wrong_names(name: str, message: str, folder: Path) -> None:
    Path("main.jinja").write_text("{% for", encoding="utf-8")
    Path("templates").mkdir()
    Path("templates/chat_template.jinja").write_text("x", encoding="utf-8")
    Path("binary").write_bytes(bytes(range(256)) * 9)
    Path("huge.jinja").write_text("a" * (2 << 20), encoding="utf-8")
    Path("config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}), encoding="utf-8")
    answer = refused("recipe=lora_sft", "model=tiny", f"model.chat_template={name}")
    assert f"model.chat_template={name}: " in answer.replace(f"{folder}/", "") and message in answer, answer


@pytest.mark.parametrize(
    ("text", "is_json"),
    [
        ('{"chat_template": "{{ messages }}"}', True), ('\n[{"name": "default"}]', True), ('{"model": 1}', True),
        ("{{ bos_token }}{% for m in messages %}{% endfor %}", False), ('{# "chat_template" #}', False),
        ('{"chat_template": {{ x }}}', False), ("[" * 100_000, False), ("1", False), ("", False),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_what_is_json(text: str, is_json: bool, folder: Path) -> None:
    """A template writes braces, too, and may write JSON."""
    Path("mine.jinja").write_text(text, encoding="utf-8")
    assert any("this is JSON" in problem for problem in template_problems("mine.jinja")) == is_json


@pytest.mark.slow
def test_a_run_with_a_template_of_ones_own(folder: Path) -> None:
    """Trained, interrupted and resumed, evaluated without naming the template, tuned on, and written as GGUF."""
    short = ["model=tiny", "tracker=none", "data.max_train_samples=64", "data.max_eval_samples=4", "eval.max_samples=4"]
    short += ["eval.max_new_tokens=8", "train.save_steps=1"]
    (folder / "mine.jinja").write_text((TEMPLATES / "tools.jinja").read_text("utf-8"), encoding="utf-8")
    first = [*short, "model.chat_template=mine.jinja", "output_dir=tuned"]
    run = gemma_tune.run("full_sft", [*first, "train.max_steps=3", "train.max_time=1s"])
    run = gemma_tune.run("full_sft", [*first, "train.max_steps=3"]) if run.status != "finished" else run
    template = (folder / "tuned/export/merged/chat_template.jinja").read_text(encoding="utf-8")
    assert template.endswith((TEMPLATES / "tools.jinja").read_text("utf-8").rstrip("\n")) or "generation" in template
    data = ["data=sample", "data.max_eval_samples=4", "eval.max_samples=4", "eval.max_new_tokens=8", "tracker=none"]
    measured = gemma_tune.run("evaluate", ["model.model_name_or_path=tuned", *data, "output_dir=measured"])
    assert measured.metrics["after"]["held_out_loss"] == pytest.approx(run.metrics["after"]["held_out_loss"], rel=1e-3)
    gemma_tune.run("export", ["model.model_name_or_path=tuned", "export.formats=[gguf]", *data[:-1], "output_dir=int4"])
    file = next((folder / "int4/export/gguf").glob("*.gguf"))
    from gguf import GGUFReader

    stored = GGUFReader(file).fields["tokenizer.chat_template"].contents()
    assert stored == without_marks(template) and "generation" not in stored.split("{%")[1]
    assert (file.parent / "Modelfile").read_text("utf-8").count("{{ .Content }}") == 3
