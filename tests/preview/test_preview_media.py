"""`recipe=preview` of rows with images and sound: what is shown of a medium, its tokens, and rows that are too long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from asking import write
from media_files import picture, sound
from media_models import IMAGE_TOKENS, processor_folder, tokenizer_at
from page_of import Page
from small_models import save_empty_weights

import gemma_tune
from gemma_tune.chat import Rendered, render_chat
from gemma_tune.preview.tokens import TokenTexts


def row(text: str, answer: str, *media: dict[str, str]) -> dict[str, Any]:
    content = [*media, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def image(name: str) -> dict[str, str]:
    return {"type": "image", "image": name}


def preview(*rows: dict[str, Any], words: tuple[str, ...] = ()) -> Page:
    write("rows.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    given = ["model.model_name_or_path=model", "data=messages", "data.train_file=rows.jsonl", *words]
    assert gemma_tune.run("preview", given).status == "finished"
    return Page()


def test_media_and_their_tokens(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids are still those of the row; one that is too long is shown whole, with the reason, beside one that is cut."""
    tokenizer = tokenizer_at(processor_folder("gemma3", Path("model")))
    save_empty_weights(Path("model"))
    picture(Path("a.png"), 40, 30)
    picture(Path("b.png"), 300, 20)
    rows = [
        row("Read it.", "42", image("a.png"), image("b.png")), row("Hi", "so " * 60),
        row("yes " * 60, "Two.", image("b.png")), row("One?", "1."),
    ]  # fmt: skip
    page = preview(*rows, words=("train.max_length=40", "preview.rows_shown=4"))
    paths = [
        [{**p, "image": str(folder / p["image"])} if "image" in p else p for p in r["messages"][0]["content"]]
        for r in rows
    ]
    whole = [
        render_chat(tokenizer, [{"role": "user", "content": p}, r["messages"][1]])
        for p, r in zip(paths, rows, strict=True)
    ]
    expected = [whole[0].input_ids, whole[1].input_ids[:40], whole[2].input_ids, whole[3].input_ids]
    assert [r["ids"] for r in page.rows] == expected and len(whole[2].input_ids) > 40
    soft = f"{IMAGE_TOKENS} × <image_soft_token>"
    assert page.rows[0]["text"].count(soft) == 2 and page.rows[0]["text"].count("<image_soft_token>") == 2
    assert "dropped: longer than 40 tokens, and media are never cut" in " ".join(page.rows[2]["summary"].split())
    assert page.tile("rows dropped") == "1 with media, too long to be cut" and page.tile("rows cut").startswith("1 ")
    assert page.listed("with media that were dropped") == [f"{folder}/rows.jsonl:3"]
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [
        "image a.png",
        "image b.png",
        "image b.png",
    ]
    assert f"image a.png {IMAGE_TOKENS} tokens 40 × 30 pixels" in page.text
    out = capsys.readouterr().out
    assert f"<start_of_image>[image a.png, {IMAGE_TOKENS} tokens]<end_of_image>" in out
    assert "[dropped: longer than 40 tokens" in out and "<image_soft_token>" not in out


@pytest.mark.slow
def test_rows_that_are_all_used_but_one_with_media(folder: Path) -> None:
    """Nothing is cut here; the dropped row is there even so. Sound has a player."""
    save_empty_weights(processor_folder("gemma4_e2b", Path("model")))
    picture(Path("a.png"), 400, 300)
    sound(Path("a.wav"), 1.0, 16_000)
    page = preview(
        row("One?", "1.", {"type": "audio", "audio": "a.wav"}),
        row("See", "2.", image("a.png")),
        words=("train.max_length=100",),
    )
    assert ["dropped" in r["summary"] for r in page.rows] == [False, True]
    assert "25 × <|audio|>" in page.rows[0]["text"] and "audio a.wav 25 tokens 1.0 seconds" in page.text
    (player,) = [attributes for tag, attributes in page.tags if tag == "audio"]
    assert str(player["src"]).startswith("data:audio/wav;base64,")


@pytest.mark.slow
def test_runs_of_one_medium(tmp_path: Path) -> None:
    """The crops of an image are runs of their own; equal tokens of another medium belong to that one."""
    tokenizer = tokenizer_at(
        processor_folder("gemma3", tmp_path / "m"), do_pan_and_scan=True, pan_and_scan_min_crop_size=20
    )
    parts = [image(str(picture(tmp_path / name, *size))) for name, size in (("a.png", (90, 30)), ("b.png", (30, 30)))]
    rendered = render_chat(tokenizer, row("What?", "It.", *parts)["messages"])
    pieces = TokenTexts(tokenizer).pieces(rendered)
    assert [i for piece in pieces for i in piece.ids * piece.times] == rendered.input_ids
    seen = [(piece.medium, piece.times) for piece in pieces if piece.medium]
    crops = len(seen) - 2
    assert crops > 1 and seen == [("image a.png", IMAGE_TOKENS)] * (crops + 1) + [("image b.png", IMAGE_TOKENS)]
    assert not any(piece.trained for piece in pieces if piece.medium)
    without = Rendered(rendered.input_ids, rendered.labels)
    assert all(piece.times == 1 for piece in TokenTexts(tokenizer).pieces(without))
