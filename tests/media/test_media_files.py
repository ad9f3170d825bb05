"""Images, sound and video by their headers, and as they are opened: both agree, and what can't be used says why."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from media_files import huge, picture, sound
from PIL import Image

from gemma_tune.media import files
from gemma_tune.media.files import UnusableMedium, check, image_size, open_image
from gemma_tune.media.kinds import form_of

FORMS = [
    ("png", "PNG"),
    ("jpg", "JPEG"),
    ("gif", "GIF"),
    ("webp", "WEBP"),
    ("tif", "TIFF"),
    ("bmp", "BMP"),
    ("ppm", "PPM"),
]


def reason(path: Path | str, kind: str = "image") -> str:
    """Why a file can't be used, and that it is named."""
    with pytest.raises(UnusableMedium) as caught:
        check(path, kind)
    assert str(caught.value).startswith(f"{path}: ")
    assert not path or str(path) not in caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize(("suffix", "form"), FORMS)
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_is_that_of_the_opened_image(tmp_path: Path, suffix: str, form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    keys = {"exif": exif} if form in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    path = picture(tmp_path / f"a.{suffix}", form=form, **keys)
    opened = open_image(path)
    turned = bool(keys) and orientation in (6, 8)
    assert image_size(path) == opened.size == ((8, 12) if turned else (12, 8))
    assert opened.mode == "RGB"
    red = {1: (0, 0), 3: (11, 7), 6: (0, 0), 8: (7, 11)}[orientation if keys else 1]  # shown: left, right, top, bottom
    assert opened.getpixel(red)[0] > 150 > opened.getpixel(red)[2]
    check(path, "image")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_images_of_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    form = "TIFF" if mode == "CMYK" else "PNG"
    Image.new(mode, (3, 5)).save(path := tmp_path / "a", form)
    assert open_image(path).mode == "RGB" and image_size(path) == (3, 5)


def test_what_cannot_be_an_image_says_why(tmp_path: Path) -> None:
    good = picture(tmp_path / "good.jpg", 400, 300, quality=95).read_bytes()
    png = picture(tmp_path / "good.png", 400, 300).read_bytes()
    cases: dict[str, tuple[bytes, str]] = {
        "empty": (b"", "the file is empty"),
        "cut.jpg": (good[: len(good) // 2], "broken or cut off"),
        "cut.png": (png[: len(png) // 2], "broken or cut off"),
        "head.jpg": (good[:30], "broken or cut off"),
        "text.png": (
            b"not an image at all, but words",
            "not an image of a known form (by its first bytes); save it as PNG or JPEG",
        ),
        "lfs.png": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "page.jpg": (b"<html><body>404 Not Found</body></html>", "not an image of a known form"),
        "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image of a known form"),  # would start Ghostscript
        "sound.png": (sound(tmp_path / "a.wav").read_bytes(), "this is sound (WAV), and an image must stand here"),
        "a.heic": (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC can't be read here; save it as PNG or JPEG"),
        "broken.png": (png[:40] + b"\xff" * 60 + png[100:], "broken or cut off"),
    }
    for name, (content, said) in cases.items():
        (tmp_path / name).write_bytes(content)
        if name == "broken.png":  # only its content is: seen once it is decoded
            with pytest.raises(UnusableMedium, match=said):
                open_image(tmp_path / name)
        else:
            assert said in reason(tmp_path / name), name
    assert "no such file" in reason(tmp_path / "none.png")
    assert "no such file" in reason("") and "can't be read" in reason("a\0b")
    assert "this is a folder" in reason(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in reason(tmp_path / "pipe") and "no regular file" in reason("/dev/zero")
    assert "more than 89,478,485" in reason(huge(tmp_path / "bomb.png", 20_000, 10_000))
    assert "more than 89,478,485" in reason(huge(tmp_path / "bomb2.png", 60_000, 60_000))
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    assert "more than 8 bits" in reason(tmp_path / "deep.png")


def test_a_size_is_read_without_the_pixels(tmp_path: Path) -> None:
    """A header alone, nothing behind it: the size is there, and only decoding fails."""
    path = huge(tmp_path / "a.png", 3000, 2000)
    assert image_size(path) == (3000, 2000)
    with pytest.raises(UnusableMedium, match="broken or cut off"):
        open_image(path)


def test_sound_has_the_length_of_its_header(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    path = sound(tmp_path / "a.wav", 0.7301, 22_050, channels=2)
    for rate in (16_000, 22_050, 8_000):
        samples = files.read_audio(path, rate)
        assert samples.dtype == np.float32 and samples.shape == (files.audio_samples(path, rate),)
        assert len(samples) == pytest.approx(files.audio_seconds(path) * rate, abs=1)
        at = np.arange(len(samples)) / rate  # the wave itself, away from the ends
        inner = slice(rate // 10, -rate // 10)
        assert np.abs(samples - np.sin(2 * np.pi * 440 * at) * 20000 / 32768)[inner].max() < 2e-3
    check(path, "audio")
    content = path.read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: len(content) // 2])
    assert "cut off" in reason(tmp_path / "cut.wav", "audio")
    assert "holds no sound" in reason(sound(tmp_path / "none.wav", 0), "audio")
    assert "this is an image (PNG)" in reason(picture(tmp_path / "a.png"), "audio")
    assert "this is sound (WAV), and a video must stand here" in reason(path, "video")


def test_a_video_says_its_size_and_length(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(15):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i * 10, np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    assert files.video_info(path) == files.VideoInfo(64, 48, 15, 1.5, 10.0)
    check(path, "video")
    (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:200])
    assert "broken or cut off" in reason(tmp_path / "cut.mp4", "video")


def test_no_reader_is_asked_that_the_first_bytes_do_not_name() -> None:
    """Playlists and scripts, which name other files and addresses."""
    for text in (
        b"#EXTM3U\nhttp://host/a.ts",
        b"ffconcat version 1.0\nfile /etc/passwd",
        b"%PDF-1.7",
        b"%!PS",
        b"<svg/>",
    ):
        assert form_of(text) is None
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "AVIF" if "AVIF" in Image.SAVE else "PNG")
    assert form_of(buffer.getvalue()[:32]).kind == "image"  # type: ignore[union-attr]
