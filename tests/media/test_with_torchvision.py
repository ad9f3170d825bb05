"""Videos, and images of Gemma 4 12B: Transformers' own processors of them need torchvision, which we don't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from media_models import processor_folder, processor_of, tokenizer_at
from pictures import film, picture, sound
from PIL import Image

from gemma_tune.chat import render_chat


@pytest.fixture(scope="module")
def torchvision() -> None:
    """torchvision, where it is installed."""
    pytest.importorskip("torchvision", reason="torchvision isn't installed")


def rendered(tokenizer: Any, *parts: dict[str, str]) -> tuple[Any, str]:
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]
    row = render_chat(tokenizer, messages)
    return row, tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.slow
@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("family", ["gemma4_e2b", "gemma4_12b"])
def test_videos(family: str, tmp_path: Path) -> None:
    """Ids are equal; pixels to a 255th or two, since torchvision rounds in another place when it resizes."""
    import torch
    from transformers.video_utils import VideoMetadata

    from gemma_tune.media.files import video_info
    from gemma_tune.media.frames import read_frames

    folder = processor_folder(family, tmp_path / "model")
    tokenizer, whole = tokenizer_at(folder), processor_of(family, folder)
    for frames, rate in ((60, 10), (32, 24), (90, 1)):
        path = film(tmp_path, frames, rate)
        row, text = rendered(tokenizer, {"type": "video", "video": path})
        info = video_info(path)
        assert (info.frames, info.rate) == (frames, rate)
        import numpy as np

        decoded = torch.from_numpy(np.stack([np.array(f) for f in read_frames(path, range(frames))])).permute(
            0, 3, 1, 2
        )
        data = VideoMetadata(total_num_frames=frames, fps=float(rate), duration=frames / rate)
        given = {"video_metadata": [data], "do_sample_frames": True}
        wanted = whole(
            text=[text], videos=[decoded], videos_kwargs=given, add_special_tokens=False, return_tensors="pt"
        )
        assert row.input_ids == wanted["input_ids"][0].tolist()
        made = tokenizer.media.pixel_inputs(row.media)
        assert made.keys() == {k for k in wanted if "video" in k}
        for name in made:
            assert torch.allclose(made[name].float(), wanted[name].float(), atol=2.01 / 255), name


@pytest.mark.slow
@pytest.mark.usefixtures("torchvision")
def test_the_unified_processor(tmp_path: Path) -> None:
    import soundfile
    import torch

    folder = processor_folder("gemma4_12b", tmp_path / "model")
    tokenizer, whole = tokenizer_at(folder), processor_of("gemma4_12b", folder)
    for size in ((300, 900), (640, 480), (33, 1000), (5000, 20)):
        path, heard = picture(tmp_path, *size), sound(tmp_path, 16_000 + size[0])
        row, text = rendered(tokenizer, {"type": "image", "image": path}, {"type": "audio", "audio": heard})
        samples = soundfile.read(heard, dtype="float32")[0]
        wanted = whole(
            text=[text], images=[Image.open(path)], audio=[samples], add_special_tokens=False, return_tensors="pt"
        )
        assert row.input_ids == wanted["input_ids"][0].tolist()
        made = tokenizer.media.pixel_inputs(row.media)
        assert made.keys() == {"pixel_values", "image_position_ids", "input_features", "input_features_mask"}
        for name in made:
            assert torch.allclose(made[name].float(), wanted[name].float(), atol=2.01 / 255), name
