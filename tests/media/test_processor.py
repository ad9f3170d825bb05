"""What the media processor refuses, what it gives the towers, and what becomes of rows with media."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from media_models import IMAGE_TOKENS, processor_folder, tokenizer_at
from pictures import film, picture, sound

from gemma_tune.chat import Unrenderable, render_chat
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.tokenized import render_rows
from gemma_tune.errors import UserError
from gemma_tune.media.families import ALLOWED
from gemma_tune.media.files import UnusableMedium


def asked(*parts: Any) -> list[dict[str, Any]]:
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}]


def image(path: str) -> dict[str, str]:
    return {"type": "image", "image": path}


@pytest.fixture
def gemma3(tmp_path: Path) -> Path:
    return processor_folder("gemma3", tmp_path / "model")


def test_rows_with_media_are_dropped_whole(gemma3: Path, tmp_path: Path) -> None:
    """A text of that length is cut and used."""
    tokenizer, one = tokenizer_at(gemma3), image(picture(tmp_path, 40, 40))
    row = render_chat(tokenizer, asked(one, "Which?"))
    length = len(row.input_ids)
    assert row.cut(length) == row and row.cut(length - 1).trained_tokens == 0
    records = [Record("a:1", asked("words " * 40)), Record("a:2", asked(one, "Which? " * 9)), Record("a:3", asked(one))]
    rows = render_rows(records[1:], tokenizer, length, "training rows")
    assert rows.dropped == rows.too_long == ["a:2"] and rows.cut == 0
    assert [r.media for r in rows.rendered] == [render_chat(tokenizer, asked(one)).media]
    assert "media" in rows.dataset.column_names and "a:2" in "".join(rows.notes("rows"))
    text = render_rows([Record("a:4", asked("Which?"))], tokenizer, 99, "training rows")
    assert text.dataset.column_names == ["input_ids", "labels"] and text.rendered[0].media == []


def test_pixels_are_the_processors(gemma3: Path, tmp_path: Path) -> None:
    """Also in another process, and refused where the file has changed since it was counted."""
    import torch
    from media_models import processor_of
    from PIL import Image

    tokenizer = tokenizer_at(gemma3, do_pan_and_scan=True, pan_and_scan_min_crop_size=20)
    path = picture(tmp_path, 100, 40)
    row = render_chat(tokenizer, asked(image(path)))
    found = pickle.loads(pickle.dumps(tokenizer.media)).pixel_inputs(row.media)
    kwargs = tokenizer.media.images_kwargs
    whole = processor_of("gemma3", gemma3)
    wanted = whole(text="<start_of_image>", images=[Image.open(path)], images_kwargs=kwargs, return_tensors="pt")
    assert found.keys() == {"pixel_values"} and torch.equal(found["pixel_values"], wanted["pixel_values"])
    Image.new("RGB", (40, 40)).save(path)
    with pytest.raises(UnusableMedium, match="it makes 4 tokens, and made 16"):
        tokenizer.media.pixel_inputs(row.media)


def test_the_older_form_of_the_files(gemma3: Path, tmp_path: Path) -> None:
    """The settings of images in a file of their own, as Gemma 3 was published."""
    import torch

    one = image(picture(tmp_path, 40, 40))
    row = render_chat(tokenizer_at(gemma3), asked(one))
    pixels = tokenizer_at(gemma3).media.pixel_inputs(row.media)["pixel_values"]
    file = gemma3 / "processor_config.json"
    whole = json.loads(file.read_text("utf-8"))
    (gemma3 / "preprocessor_config.json").write_text(json.dumps(whole.pop("image_processor")), encoding="utf-8")
    file.write_text(json.dumps(whole), encoding="utf-8")
    again = tokenizer_at(gemma3)
    assert render_chat(again, asked(one)) == row
    assert torch.equal(again.media.pixel_inputs(row.media)["pixel_values"], pixels)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3n", "gemma4_e2b", "gemma4_12b"])
def test_long_sound_is_refused(family: str, tmp_path: Path) -> None:
    """One sample less is taken whole."""
    tokenizer = tokenizer_at(processor_folder(family, tmp_path / "model"))
    for samples, fits in ((480_000, True), (480_001, False)):
        part = {"type": "audio", "audio": sound(tmp_path, samples)}
        if fits:
            assert render_chat(tokenizer, asked(part)).media[0]["tokens"] == {"gemma3n": 188}.get(family, 750)
        else:
            with pytest.raises(Unrenderable, match=r"480001_16000.wav: it is 30.0 seconds long.*split it"):
                render_chat(tokenizer, asked(part))


@pytest.mark.slow
def test_short_videos_are_taken_whole(tmp_path: Path) -> None:
    """Each frame with its time in seconds: 96 × 64 pixels are 60 tokens, 10 × 6 squares of 48 pixels' side."""
    tokenizer = tokenizer_at(processor_folder("gemma4_e2b", tmp_path / "model"))
    row = render_chat(tokenizer, asked({"type": "video", "video": film(tmp_path, 3, 2)}))
    (medium,) = row.media
    assert medium["tokens"] == 3 * 60
    made = tokenizer.media.pixel_inputs(row.media)
    assert made["num_frames_per_video"].tolist() == [3] and len(made["pixel_values_videos"]) == 3
    text = tokenizer.decode(row.input_ids).replace("<|video|>", "")
    assert "00:00 <|image><image|> 00:00 <|image><image|> 00:01 <|image><image|>" in text
    with pytest.raises(Unrenderable, match="takes images only"):
        render_chat(
            tokenizer_at(processor_folder("gemma3", tmp_path / "other")), asked({"type": "video", "video": "x"})
        )


def test_media_where_there_is_no_place(gemma3: Path, tmp_path: Path, tiny: Path) -> None:
    tokenizer, one = tokenizer_at(gemma3), image(picture(tmp_path, 40, 40))
    for messages, said in (
        (
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": [one]}],
            r"no place for one of its media \(image",
        ),
        (
            [{"role": "system", "content": [{"type": "text", "text": "x"}, one]}, *asked("?")],
            r"no place for one of its media \(image",
        ),
        (asked({"type": "audio", "audio": "a.wav"}), "no place for sound: this checkpoint takes images only"),
        (asked(image(str(tmp_path / "none.png"))), "none.png: there is no such file"),
    ):
        with pytest.raises(Unrenderable, match=said):
            render_chat(tokenizer, messages)
    with pytest.raises(Unrenderable, match="no place for an image here: this checkpoint has no towers"):
        render_chat(tokenizer_at(tiny), asked(one))
    (gemma3 / "processor_config.json").unlink()
    with pytest.raises(Unrenderable, match=r"processor_config.json is missing beside .*config.json"):
        render_chat(tokenizer_at(gemma3), asked(one))


@pytest.mark.parametrize(
    ("family", "kwargs", "said"),
    [
        ("gemma3", {"max_soft_tokens": 70}, "gemma3 takes do_pan_and_scan"),
        ("gemma3", {"do_pan_and_scan": 1}, "must be true or false"),
        ("gemma3", {"pan_and_scan_max_num_crops": 1}, "must be a whole number from 2 to 64"),
        ("gemma4_31b", {"max_soft_tokens": 100}, "must be one of 70, 140, 280, 560, 1120"),
    ],
)
def test_images_kwargs(family: str, kwargs: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        tokenizer_at(processor_folder(family, tmp_path), **kwargs)


def test_a_whole_number_is_a_ratio_too(gemma3: Path, tmp_path: Path) -> None:
    """Transformers takes only a float there."""
    given = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 4}
    part = image(picture(tmp_path, 40, 20))
    whole, real = (tokenizer_at(gemma3, **given, pan_and_scan_min_ratio_to_activate=n).media for n in (1, 1.0))
    assert whole.count(part) == real.count(part) > IMAGE_TOKENS
    assert whole.pixel_inputs([part])["pixel_values"].equal(real.pixel_inputs([part])["pixel_values"])


def test_the_names_of_images_kwargs_are_the_processors() -> None:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorKwargs
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorKwargs

    assert ALLOWED["gemma3"].keys() <= Gemma3ImageProcessorKwargs.__annotations__.keys()
    assert ALLOWED["gemma4"].keys() <= Gemma4ImageProcessorKwargs.__annotations__.keys()


def test_answers_with_media_are_refused(gemma3: Path, tmp_path: Path) -> None:
    from gemma_tune.data.pairs import render_pair

    tokenizer, messages = tokenizer_at(gemma3), asked(image(picture(tmp_path, 40, 40)))
    with pytest.raises(BadRow, match="a:1: an answer has an image"):
        render_pair(Record("a:1", messages, rejected=asked(image(picture(tmp_path, 40, 40)))), tokenizer)
