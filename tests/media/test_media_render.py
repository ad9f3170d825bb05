"""Rendering with media: ids of each family's real processor, and labels of an independent computation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from media_models import processor_folder, processor_of, tokenizer_at
from pictures import conversation, picture, sound
from PIL import Image
from slow import slow_but_these

from gemma_tune.chat import form_of, render_chat, render_prompt

Part = dict[str, Any]
# Name of a case: the family, images_kwargs, and the kinds of media in its conversations
CASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "gemma3": ("gemma3", {}, ("image",)),
    "gemma3-pan-and-scan": ("gemma3", {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 20}, ("image",)),
    "gemma3n": ("gemma3n", {}, ("image", "audio")),
    "gemma4-70": ("gemma4_31b", {"max_soft_tokens": 70}, ("image",)),
    "gemma4-280": ("gemma4_e2b", {}, ("image", "audio")),
    "gemma4-1120": ("gemma4_26b", {"max_soft_tokens": 1120}, ("image",)),
}


def any_medium(folder: Path, kinds: tuple[str, ...]) -> Callable[[Random], Part]:
    """Media of sizes and lengths at random, of few files."""

    def part(random: Random) -> Part:
        kind = random.choice(kinds)
        if kind == "audio":
            return {"type": "audio", "audio": sound(folder, random.choice((700, 1281, 16_000, 20_111, 40_000)))}
        sizes = (17, 40, 64, 100, 231, 300)
        return {"type": "image", "image": picture(folder, random.choice(sizes), random.choice(sizes))}

    return part


def expected_ids(processor: Any, tokenizer: Any, messages: list[Part], kwargs: dict[str, Any], **more: Any) -> Any:
    """What Transformers makes of the conversation."""
    import soundfile

    text = tokenizer.apply_chat_template(messages, tokenize=False, **more)
    parts = [p for m in messages if isinstance(m["content"], list) for p in m["content"]]
    images = [Image.open(p["image"]).convert("RGB") for p in parts if p["type"] == "image"]
    sounds = [soundfile.read(p["audio"], dtype="float32")[0] for p in parts if p["type"] == "audio"]
    given = {"images": images} if images else {}
    if sounds:
        given["audio"] = sounds
    if images and kwargs:
        given["images_kwargs"] = kwargs
    return processor(text=[text], add_special_tokens=False, **given)["input_ids"][0]


def check(case: str, folder: Path, rows: int) -> None:
    family, kwargs, kinds = CASES[case]
    processor_folder(family, folder / "model")
    tokenizer, processor = tokenizer_at(folder / "model", **kwargs), processor_of(family, folder / "model")
    random, seen, runs = Random(case), 0, 0
    for _ in range(rows):
        messages = conversation(random, any_medium(folder, kinds))
        row = render_chat(tokenizer, messages)
        seen += len(row.media)
        runs += sum(len(tokenizer.media.written(medium)[1]) for medium in row.media)
        last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
        prompt = render_prompt(tokenizer, messages[:last])
        if form_of(tokenizer).closes_thinking:  # the last answer follows empty thinking, as its prompt does
            given, more = messages[:last], {"add_generation_prompt": True}
        else:
            given, more = messages, {}
        wanted = list(expected_ids(processor, tokenizer, given, kwargs, **more))
        assert wanted == (prompt if more else row.input_ids) and prompt == row.input_ids[: len(prompt)]
        check_labels(tokenizer, messages, row)
        check_media(tokenizer, messages, row)
    assert seen > rows / 2 and (runs > seen) == (case == "gemma3-pan-and-scan")


def check_labels(tokenizer: Any, messages: list[Part], row: Any) -> None:
    """Of every answer, the tokens between its prompt and its stop token; a prompt is the beginning of the row."""
    stop = tokenizer.convert_tokens_to_ids("<end_of_turn>" if "<end_of_turn>" in tokenizer.chat_template else "<turn|>")
    labels = [-100] * len(row.input_ids)
    last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
    empty = tokenizer.encode("<|channel>thought\n<channel|>", add_special_tokens=False)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = render_prompt(tokenizer, messages[:i])
            begin = len(prompt)
            if row.input_ids[:begin] != prompt:  # 12B and larger: a prompt's empty thinking is missing in the history
                assert i < last and prompt[-len(empty) :] == empty
                begin -= len(empty)
            end = row.input_ids.index(stop, begin) + 1
            labels[begin:end] = row.input_ids[begin:end]
    assert row.labels == labels


def check_media(tokenizer: Any, messages: list[Part], row: Any) -> None:
    """Each medium begins at its first soft token, and all soft tokens belong to media."""
    parts = [p for m in messages if isinstance(m["content"], list) for p in m["content"] if p["type"] != "text"]
    assert [(m["kind"], m["path"]) for m in row.media] == [(p["type"], p[p["type"]]) for p in parts]
    soft = tokenizer.media.soft_ids
    for medium in row.media:
        assert row.input_ids[medium["at"]] == soft[medium["kind"]] != row.input_ids[medium["at"] - 1]
        assert medium["tokens"] == tokenizer.media.count(medium)
    for kind, token in soft.items():
        counted = sum(m["tokens"] for m in row.media if m["kind"] == kind)
        assert row.input_ids.count(token) == counted


@pytest.mark.parametrize("case", slow_but_these(("gemma3", "gemma3-pan-and-scan", "gemma4-70"), CASES))
def test_ids_and_labels(case: str, tmp_path: Path) -> None:
    check(case, tmp_path, 10)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_ids_and_labels_of_many_rows(case: str, tmp_path: Path) -> None:
    check(case, tmp_path, 40 if case == "gemma4-1120" else 200)  # there an image takes a second
