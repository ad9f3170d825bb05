"""TranslateGemma: its template is used as it stands, and gets the languages of each message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from media_models import processor_folder, processor_of, tokenizer_at
from pictures import picture
from PIL import Image
from translation_template import TEMPLATE

import gemma_tune
from gemma_tune.chat import Unrenderable, form_of, render_chat, render_prompt
from gemma_tune.config import DataConfig, ServeConfig
from gemma_tune.data.formats.auto import recognise_format
from gemma_tune.data.formats.translation import read
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.sources import OpenRows
from gemma_tune.errors import UserError
from gemma_tune.models.source import Source
from gemma_tune.report.use import python_code, use_commands
from gemma_tune.serve.choice import Served
from gemma_tune.serve.words import how_to_ask


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = processor_folder("gemma3", tmp_path_factory.mktemp("model"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def part(text: str | None, source: str = "de", target: str = "en", **more: str) -> dict[str, str]:
    said = {"type": "image"} if text is None else {"type": "text", "text": text}
    return {**said, "source_lang_code": source, "target_lang_code": target, **more}


def asked(content: Any, *answers: str) -> list[dict[str, Any]]:
    return [
        m for a in answers for m in ({"role": "user", "content": content}, {"role": "assistant", "content": a})
    ] or [{"role": "user", "content": content}]


def read_rows(folder: Path, *rows: dict[str, Any]) -> list[Record | BadRow]:
    given = [(f"a.jsonl:{i}", row) for i, row in enumerate(rows, 1)]
    assert recognise_format(iter(given), DataConfig())[0] == "translation"
    return list(read(OpenRows(iter(given), folder), DataConfig()))


def test_ids_and_labels_are_the_templates(model: Path) -> None:
    tokenizer = tokenizer_at(model)
    assert tokenizer.chat_template == TEMPLATE and form_of(tokenizer).families == "TranslateGemma"
    for messages in (
        asked([part(" Wie spät ist es? ")], "What time is it?"),
        asked([part("Danke", "de_AT", "fr")], "Merci", "De rien"),
    ):
        row = render_chat(tokenizer, messages)
        wanted = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert row.input_ids == wanted
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        trained = tokenizer.decode([label for label in row.labels if label != -100])
        assert trained == "".join(f"{answer}<end_of_turn>" for answer in answers)
    prompt = tokenizer.apply_chat_template(
        asked([part("Danke")]), tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert list(render_prompt(tokenizer, asked([part("Danke")]))) == prompt


def test_images_are_the_processors(model: Path, tmp_path: Path) -> None:
    tokenizer, whole = tokenizer_at(model), processor_of("gemma3", model)
    messages = asked([part(None, image=picture(tmp_path, 60, 40))], "Exit")
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    image = Image.open(messages[0]["content"][0]["image"])
    wanted = whole(text=[text.removeprefix("<bos>")], images=[image], return_tensors="pt")["input_ids"][0].tolist()
    assert render_chat(tokenizer, messages).input_ids == wanted


def test_rows(model: Path, tmp_path: Path) -> None:
    """A row of fields, and messages with such parts, are one conversation."""
    codes = {"source_lang_code": "de", "target_lang_code": "en"}
    path = picture(tmp_path, 60, 40)
    made = read_rows(
        tmp_path,
        {**codes, "text": "Danke", "translation": "Thanks"},
        {**codes, "source": "Danke", "target": "Thanks"},
        {**codes, "image": Path(path).name, "translation": "Exit"},
        {**codes, "text": "Danke", "translation": ""},
    )
    assert isinstance(made[3], BadRow)
    good = [one for one in made[:3] if isinstance(one, Record)]
    assert [one.messages for one in good] == [
        asked([part("Danke")], "Thanks"),
        asked([part("Danke")], "Thanks"),
        asked([part(None, image=path)], "Exit"),
    ]
    assert not any(one.unused for one in good)
    from gemma_tune.data.formats import messages as chats

    row = json.loads(json.dumps({"messages": asked([part("Danke")], "Thanks")}))
    (one,) = chats.read(OpenRows(iter([("b.jsonl:1", row)]), tmp_path), DataConfig())
    assert isinstance(one, Record) and one.messages == good[0].messages and not one.unused


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Danke", "one text or one image with its languages"),
        ([part("Danke"), part("Bitte")], "one text or one image with its languages"),
        ([{"type": "text", "text": "Danke"}], "one text or one image with its languages"),
        ([part("Danke", "tlh")], "Unknown language: tlh"),
    ],
)
def test_what_it_cannot_say(content: Any, says: str, model: Path) -> None:
    with pytest.raises(Exception, match=says):
        render_chat(tokenizer_at(model), asked(content, "Thanks"))


def test_other_models_have_no_place_for_languages(tmp_path: Path) -> None:
    tokenizer = tokenizer_at(processor_folder("gemma3", tmp_path / "model"))
    with pytest.raises(Unrenderable, match="no place for source_lang_code and target_lang_code in Gemma 3"):
        render_chat(tokenizer, asked([part("Danke")], "Thanks"))


@pytest.mark.parametrize("said", ["chat.prompt=Danke", "dry_run=true"])
def test_nobody_types_to_it(said: str, model: Path) -> None:
    """Refused before weights are loaded: the file of them is empty."""
    (model / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"what is typed names no languages.*chat\.prompts_file=rows\.jsonl"):
        gemma_tune.run("chat", [f"model.model_name_or_path={model}", said])


def test_commands_to_copy_name_languages(model: Path, tmp_path: Path) -> None:
    served = Served("vllm", "x", Source(str(model), None, None, str(model)))
    curl, client = how_to_ask(served, ServeConfig(), "http://a/v1")
    for line in (curl, client, python_code("merged", ".", model), *(c for _, c in use_commands("merged", model)[1:])):
        assert line is not None and '"text": "Hello!"' in line and '"source_lang_code": "en"' in line
    for line in how_to_ask(Served("llama_cpp", "x", gguf=tmp_path, template=TEMPLATE), ServeConfig(), "http://a/v1"):
        assert '"chat_template_kwargs": {"source_lang_code": "en", "target_lang_code": "de"}' in line
    plain = processor_folder("gemma3", tmp_path / "plain")
    assert '"content": "Hello!"' in str(python_code("merged", ".", plain))
    assert (
        "lang_code"
        not in how_to_ask(
            Served("vllm", "x", Source(str(plain), None, None, str(plain))), ServeConfig(), "http://a/v1"
        )[0]
    )
