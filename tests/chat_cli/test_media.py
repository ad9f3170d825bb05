"""Images in a conversation and in files of prompts: what is answered is what the checkpoint's own class answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from media_files import picture
from media_models import IMAGE_TOKENS, media_folder, processor_folder, processor_of, tokenizer_at
from PIL import Image
from scripted_chat import LIMIT, Person, Scripted
from transformers import AutoModelForImageTextToText

from gemma_tune.chat_cli.answer import Answer
from gemma_tune.chat_cli.batches import answer_file
from gemma_tune.chat_cli.conversation import Conversation
from gemma_tune.chat_cli.responder import Responder, ids_within
from gemma_tune.config import ChatConfig, ModelConfig
from gemma_tune.data.prompts import read_chat_prompts
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_base
from gemma_tune.models.source import find_source

TOKENS = 12  # of an answer


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A small Gemma 3 with random weights: its folder, its language part in float32, and its tokenizer."""
    folder = media_folder("gemma3", tmp_path_factory.mktemp("gemma3"))
    config = ModelConfig(model_name_or_path=str(folder), dtype="float32", device="cpu")
    source = find_source(config)
    tokenizer = load_tokenizer(source)
    return folder, load_base(config, source, tokenizer).eval(), tokenizer


def plain_answer(folder: Path, tokenizer: Any, messages: Sequence[dict[str, Any]]) -> str:
    """Of Transformers alone: the whole class, with the family's processor."""
    processor = processor_of("gemma3", folder)
    images = [p["image"] for m in messages if isinstance(m["content"], list) for p in m["content"] if "image" in p]
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    inputs = processor(
        text=[text], images=[Image.open(i) for i in images], add_special_tokens=False, return_tensors="pt"
    )
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, top_k=None, top_p=None)
    return Answer.of(tokenizer, out[0, inputs["input_ids"].shape[1] :].tolist()).text


class Watching(Scripted):
    """A scripted model that counts the images that it is shown."""

    def __init__(self, tokenizer: Any, *says: str) -> None:
        super().__init__(tokenizer, *says)
        self.model = SimpleNamespace(language_model=None)  # as the whole class has it
        self.config = SimpleNamespace(model_type="gemma3", image_token_id=tokenizer.media.soft_ids["image"])
        self.shown: list[int] = []

    def generate(self, **given: Any) -> None:
        self.shown.append(len(given.get("pixel_values", ())))
        super().generate(**given)


def test_images_are_put_before_the_next_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Several at once, kept for later turns, with names as terminals drop them; what can't be used is said."""
    tokenizer = tokenizer_at(processor_folder("gemma3", folder / "model"))
    picture(Path("a.png"), 40, 30)
    picture(Path("the other.png"), 20, 60)
    Path("text.png").write_text("words", encoding="utf-8")
    lines = [
        "/image a.png",
        "/image the\\ other.png",
        "/image gone.png",
        "/image text.png",
        "/audio a.wav",
        "/image",
        "/help",
    ]
    more = ["<bos>", "What is it?", "And now?", "/image 'the other.png'", "", "/image a.png", "/new", "Hi"]
    model = Watching(tokenizer, "One.", "Two.", "Three.", "Four.")
    talk = Conversation(Responder(model, tokenizer, ChatConfig(), LIMIT), [], None, Person(*lines, *more))
    rows = talk.run()
    assert [row["prompt"] for row in rows] == [
        "[image a.png] [image the other.png] What is it?", "And now?", "[image the other.png]", "Hi",
    ]  # fmt: skip
    assert model.shown == [2, 2, 3, 0] and talk.messages[0]["content"] == "Hi"
    tokens = "<start_of_image>" + "<image_soft_token>" * IMAGE_TOKENS + "<end_of_image>"
    assert [asked.count(tokens) for asked in model.asked] == model.shown
    err = capsys.readouterr().err
    assert err.count(f"(image a.png, {IMAGE_TOKENS} tokens: it stands before your next message)") == 2
    for said in (
        "gone.png: there is no such file", "text.png: this is not an image", "takes no audio, only image",
        "(name the file: /image FILE)", "/image FILE ", "holds <bos>",
    ):  # fmt: skip
        assert said in err, err
    assert "/audio FILE" not in err


@pytest.mark.slow
def test_an_answer_is_that_of_the_whole_class(seeing: tuple[Path, Any, Any], folder: Path) -> None:
    """With images in the last turn, and in an earlier one; without them it is another one."""
    at, model, tokenizer = seeing
    picture(Path("a.png"), 40, 30)
    Image.effect_noise((20, 60), 90).convert("RGB").save("b.png")
    person = Person("/image a.png", "/image b.png", "What is it?", "And now?", "/new", "What is it?")
    rows = Conversation(Responder(model, tokenizer, ChatConfig(max_new_tokens=TOKENS), LIMIT), [], None, person).run()
    images = [{"type": "image", "image": str(folder / name)} for name in ("a.png", "b.png")]
    first = [{"role": "user", "content": [*images, {"type": "text", "text": "What is it?"}]}]
    then = [*first, {"role": "assistant", "content": rows[0]["answer"]}, {"role": "user", "content": "And now?"}]
    assert [row["answer"] for row in rows[:2]] == [plain_answer(at, tokenizer, asked) for asked in (first, then)]
    assert rows[2]["answer"] != rows[0]["answer"]


def test_a_model_without_towers_says_so(tiny: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_tokenizer(find_source(ModelConfig(model_name_or_path=str(tiny))))
    picture(Path("a.png"))
    person = Person("/image a.png", "Hi", "/help")
    talk = Conversation(Responder(Scripted(tokenizer, "Yes."), tokenizer, ChatConfig(), LIMIT), [], None, person)
    assert talk.run()[0]["prompt"] == "Hi"
    err = capsys.readouterr().err
    assert "this model takes no image: this checkpoint has no towers" in err and "/image FILE" not in err


@pytest.mark.slow
def test_prompts_with_images(seeing: tuple[Path, Any, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of rows in batches; the images lie beside it."""
    at, model, tokenizer = seeing
    (folder / "rows").mkdir()
    picture(folder / "rows" / "a.png", 40, 30)
    row = '{"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]}\n'
    Path("rows/p.jsonl").write_text(
        row + '{"prompt": "Hi"}\n{"prompt": "<image>Read it.", "images": ["a.png"]}\n', encoding="utf-8"
    )
    chat = ChatConfig(prompts_file="rows/p.jsonl", max_new_tokens=TOKENS, batch_size=3)
    records = read_chat_prompts(chat)
    prompts = [ids_within(tokenizer, r.messages or [], None, LIMIT, r.where) for r in records]
    rows = answer_file(Responder(model, tokenizer, chat, LIMIT), records, prompts)
    for record, found in zip(records, rows, strict=True):
        messages = record.messages or []
        if isinstance(messages[-1]["content"], list):
            assert found["answer"] == plain_answer(at, tokenizer, messages)
    assert [len(p.media) for p in prompts] == [1, 0, 1]
