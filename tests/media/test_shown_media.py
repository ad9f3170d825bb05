"""Media as servers and pages get them: the content that the model is trained on, small, and nothing of a wrong file."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from media_files import huge, picture, sound
from pictures import film
from PIL import Image, ImageOps

from gemma_tune.data.media_parts import stored
from gemma_tune.data.records import Record
from gemma_tune.engines.served import as_openai
from gemma_tune.errors import RunError
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.evals.samples import RowAnswer
from gemma_tune.media.encoded import as_sent, thumbnail
from gemma_tune.media.kinds import shown_name
from gemma_tune.page.blocks import SampleAnswer, SampleRow, Samples, Section
from gemma_tune.page.html import html
from gemma_tune.page.markdown import markdown
from gemma_tune.page.media import Gallery


def content(url: str, kind: str) -> bytes:
    begin = f"data:{kind};base64,"
    assert url.startswith(begin)
    return base64.b64decode(url.removeprefix(begin), validate=True)


def sent_image(path: Path) -> tuple[bytes, str]:
    url = as_sent({"type": "image", "image": str(path)})["image_url"]["url"]
    kind = url[5 : url.index(";")]
    return content(url, kind), kind


def test_media_are_sent_with_their_content(tmp_path: Path) -> None:
    """Byte by byte where every reader sees the same, else as a PNG or WAV of what the model is trained on."""
    for name in ("a.png", "a.jpg"):
        file = picture(tmp_path / name)
        assert sent_image(file) == (file.read_bytes(), "image/jpeg" if name == "a.jpg" else "image/png")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = picture(tmp_path / "turned.jpg", exif=exif, quality=95)
    see_through = tmp_path / "a.webp"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 12, 4), dtype=np.uint8)).save(see_through)
    for file in (turned, see_through):
        found, kind = sent_image(file)
        expected = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        assert kind == "image/png" and np.array_equal(Image.open(io.BytesIO(found)), expected)
    wave = sound(tmp_path / "a.wav")
    part = as_sent({"type": "audio", "audio": str(wave)})
    assert part["type"] == "input_audio" and part["input_audio"]["format"] == "wav"
    assert base64.b64decode(part["input_audio"]["data"]) == wave.read_bytes()
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 4000).astype("float32")
    soundfile.write(tmp_path / "a.flac", samples, 16_000)
    part = as_sent({"type": "audio", "audio": str(tmp_path / "a.flac")})["input_audio"]
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(part["data"])), dtype="float32")
    assert (part["format"], rate) == ("wav", 16_000) and np.abs(heard - samples).max() <= 2**-14


def test_a_conversation_with_media_as_a_client_sends_it(tmp_path: Path) -> None:
    """Texts stay as they are, the row itself too; a file that is gone ends the evaluation with its name."""
    parts = [{"type": "image", "image": str(picture(tmp_path / "a.png"))}, {"type": "text", "text": "What?"}]
    (message,) = as_openai([{"role": "user", "content": parts}])
    assert [part["type"] for part in message["content"]] == ["image_url", "text"] and message["content"][1] is not None
    assert message["content"][1] == parts[1] and parts[0]["type"] == "image"
    with pytest.raises(RunError, match=r"gone\.png: there is no such file"):
        as_openai([{"role": "user", "content": [{"type": "image", "image": str(tmp_path / "gone.png")}]}])


def test_thumbnails_are_small_and_show_the_picture(tmp_path: Path) -> None:
    for name, size in (("wide.png", (900, 300)), ("high.jpg", (40, 800)), ("small.png", (12, 8))):
        url, width, height = thumbnail(picture(tmp_path / name, *size), "image", 200)
        shown = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        assert shown.size == (width, height) and max(shown.size) == min(200, max(size)) and len(url) < 8000
        colours = np.asarray(shown.convert("RGB"), dtype=int)
        assert colours[height // 2, 0, 0] > 200 and colours[height // 2, -1, 2] > 200


def test_rows_are_stored_with_the_paths_of_their_media(tmp_path: Path) -> None:
    """Of the whole prompt, in order; a row without media is stored as ever."""
    first, second = str(picture(tmp_path / "a.png")), str(sound(tmp_path / "a.wav"))
    messages = [
        {"role": "user", "content": [{"type": "image", "image": first}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": [{"type": "audio", "audio": second}]},
        {"role": "assistant", "content": "A tone."},
    ]
    for record, found in (
        (
            Record("r:1", messages=messages),
            {"media": [{"kind": "image", "path": first}, {"kind": "audio", "path": second}]},
        ),
        (Record("r:2", messages=[{"role": "user", "content": "Hi"}, messages[1]]), {}),
        (Record("r:3", text="Once"), {}),
    ):
        stored = RowAnswer(record, "1", "p", "w", "a", True, [1], [2]).scored(1)
        assert stored == {
            "id": "1",
            "prompt": "p",
            "wanted": "w",
            "answer": "a",
            "stopped": True,
            "score": 1.0,
            **found,
        }


def test_media_that_rows_hold_as_bytes_are_kept(tmp_path: Path) -> None:
    """What the process wrote for itself stands beside the evaluation; files of the user's stay where they are."""
    mine = str(picture(tmp_path / "mine.png", 20, 20))
    path = stored(picture(tmp_path / "a.png").read_bytes())
    row: dict[str, Any] = {"id": "1", "score": 1.0, "media": [{"kind": "image", "path": p} for p in (path, mine)]}
    strange: dict[str, Any] = {"id": "2", "score": 1.0, "media": [None, {}]}
    Evaluation({"x": 1.0}, {"x": [row, strange], "y": [{"id": "1", "score": 0.0}]}, [row]).save(
        tmp_path / "eval", "after"
    )
    read = json.loads((tmp_path / "eval" / "after.json").read_text("utf-8"))
    for found in (read["rows"]["x"][0], read["answers"][0], row):
        kept = Path(found["media"][0]["path"])
        assert kept.parent == tmp_path / "eval" / "media" and kept.read_bytes() == (tmp_path / "a.png").read_bytes()
        assert found["media"][1]["path"] == mine
    assert [p.name for p in kept.parent.iterdir()] == [Path(path).name]
    assert shown_name(path) == f"{Path(path).name[:8]}….png" and shown_name(mine) == "mine.png"


def figures(gallery: Gallery, *entries: Any) -> str:
    rows = [SampleRow("Read it.", "42", [SampleAnswer("after", "42", "right")], media=gallery.media(list(entries)))]
    return "\n".join(html("Answers", "<!-- mark -->", [Section("Answers", [Samples(rows)])]))


def test_media_stand_on_the_page(tmp_path: Path) -> None:
    """A picture, a player, facts of the headers; a name is text, whatever it holds."""
    evil = tmp_path / "<b>&\"'.png"
    picture(evil, 30, 20, "PNG")
    entries = [
        {"kind": "image", "path": str(evil), "tokens": 256},
        {"kind": "audio", "path": str(sound(tmp_path / "a.wav"))},
    ]
    page = figures(Gallery(), *entries)
    assert "img-src data:; media-src data:" in page
    assert re.search(
        r'<img src="data:image/(png|jpeg);base64,[\w+/=]+" width="30" height="20" alt="image &lt;b&gt;', page
    )
    assert "<b>&\"'" not in page and "256 tokens" in page and "30 × 20 pixels" in page and "0.5 seconds" in page
    assert re.search(r'<audio controls preload="metadata" src="data:audio/wav;base64,[\w+/=]+"></audio>', page)
    assert page.index("<img") < page.index("Read it.</pre>")
    text = "\n".join(
        markdown(
            "Answers", [Section("Answers", [Samples([SampleRow("Q", "A", [], media=Gallery(0).media(entries[1:]))])])]
        )
    )
    assert "\\[audio a.wav\\] Q" in text


def test_a_page_stays_small(tmp_path: Path) -> None:
    """The first dozens are shown; large sounds are only named."""
    files = [picture(tmp_path / f"{n}.png", 300 + n, 200) for n in range(60)]
    page = figures(Gallery(), *({"kind": "image", "path": str(file)} for file in files))
    assert page.count("<img") == 48 and "image 59.png" in page and "359 × 200 pixels" in page and len(page) < 300_000
    page = figures(Gallery(), {"kind": "audio", "path": str(sound(tmp_path / "long.wav", 40, 16_000))})
    assert "<audio" not in page and "audio long.wav" in page and "40.0 seconds" in page


def test_what_stored_rows_name_is_looked_at_with_care(tmp_path: Path) -> None:
    """Rows of earlier runs: files that are gone or something else, and entries that are none."""
    (tmp_path / "secret.txt").write_text("password", encoding="utf-8")
    for path in (tmp_path / "gone.png", tmp_path / "secret.txt", tmp_path, huge(tmp_path / "bomb.png", 60_000, 60_000)):
        page = figures(Gallery(), {"kind": "image", "path": str(path)})
        assert "<img" not in page and "base64" not in page and "isn’t there any more" in page.replace("&#x27;", "’")
    for entries in (None, "x", [1, {"kind": "script", "path": "x"}, {"kind": "image", "path": 3}, {}]):
        assert Gallery().media(entries) == []


@pytest.mark.slow
def test_videos(tmp_path: Path) -> None:
    """The first frame of a form that browsers don't play."""
    page = figures(Gallery(), {"kind": "video", "path": film(tmp_path, 6, 2)})
    assert re.search(r'<img src="data:image/\w+;base64,[\w+/=]+" width="96" height="64" alt="video ', page)
    assert "3.0 seconds" in page and "96 × 64 pixels" in page
