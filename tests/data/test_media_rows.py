"""Rows with images, sound and video: every form gives the same parts, and every fault says where it stands."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from media_files import huge, picture, sound
from PIL import Image
from pyarrow import parquet

from gemma_tune.config import ChatConfig, DataConfig
from gemma_tune.data import media_parts
from gemma_tune.data.prompts import read_chat_prompts
from gemma_tune.data.reading import training
from gemma_tune.data.records import BadRow, Record
from gemma_tune.data.rendering import render_record
from gemma_tune.data.split import digest
from gemma_tune.errors import UserError

from row_files import read, refusal, row_of, turn, write  # isort: skip

Row = dict[str, Any]
ASK, SAY = "What is it?", "A square."
TEXT = {"type": "text", "text": ASK}
ANSWER = {"role": "assistant", "content": SAY}


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with two images and a sound, and rows beside it."""
    (tmp_path / "pics").mkdir()
    picture(tmp_path / "pics" / "a.png")
    picture(tmp_path / "pics" / "b.jpg", 30, 20)
    sound(tmp_path / "pics" / "s.wav")
    return tmp_path


def talk(content: Any, **fields: Any) -> Row:
    return {"messages": [{"role": "user", "content": content}, ANSWER], **fields}


def google(*parts: Row) -> Row:
    return {"contents": [{"role": "user", "parts": list(parts)}, {"role": "model", "parts": [{"text": SAY}]}]}


def b64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def found(record: Record, kind: str = "image") -> list[str]:
    """The paths of a kind of media, in order."""
    parts = [p for m in record.messages or () if isinstance(m["content"], list) for p in m["content"]]
    return [p[kind] for p in parts if p["type"] == kind]


# Each names a.png, in front of the question
IMAGE_FORMS: dict[str, Callable[[Path], Row]] = {
    "a part with a path": lambda p: talk([{"type": "image", "image": "pics/a.png"}, TEXT]),
    "a part with an absolute path": lambda p: talk([{"type": "image", "image": str(p)}, TEXT]),
    "a part with a mapping": lambda p: talk([{"type": "image", "image": {"path": "pics/a.png", "bytes": None}}, TEXT]),
    "a part with path": lambda p: talk([{"type": "image", "path": "pics/a.png"}, TEXT]),
    "a part with url": lambda p: talk([{"type": "image", "url": f"file://{p}"}, TEXT]),
    "image_url": lambda p: talk([{"type": "image_url", "image_url": {"url": "pics/a.png"}}, TEXT]),
    "image_url as text": lambda p: talk([{"type": "image_url", "image_url": "pics/a.png"}, TEXT]),
    "image_url with nulls": lambda p: talk([
        {"type": "image_url", "text": None, "image_url": {"url": "pics/a.png"}},
        {**TEXT, "image_url": None},
    ]),
    "input_image": lambda p: talk([{"type": "input_image", "image_url": f"file://{p}"}, TEXT | {"type": "input_text"}]),
    "a part of the column images": lambda p: talk([{"type": "image"}, TEXT], images=["pics/a.png"]),
    "a part of the column image": lambda p: talk([{"type": "image", "text": None}, TEXT], image="pics/a.png"),
    "a marker in messages": lambda p: talk(f"<image>{ASK}", images=["pics/a.png"]),
    "a marker and a line break": lambda p: talk(f"<image>\n{ASK}", images=["pics/a.png"]),
    "a marker in a part": lambda p: talk([{"type": "text", "text": f"<image>\n{ASK}"}], images="pics/a.png"),
    "no marker": lambda p: talk(ASK, images=["pics/a.png"]),
    "no marker, a part": lambda p: talk([TEXT], image="pics/a.png"),
    "of the message": lambda p: {"messages": [{"role": "user", "content": ASK, "images": ["pics/a.png"]}, ANSWER]},
    "LLaVA": lambda p: {
        "image": "pics/a.png",
        "conversations": [{"from": "human", "value": f"<image>\n{ASK}"}, {"from": "gpt", "value": SAY}],
    },
    "LLaVA, a list": lambda p: {
        "image": ["pics/a.png"],
        "conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": SAY}],
    },
    "prompt and completion": lambda p: {"prompt": ASK, "completion": SAY, "images": ["pics/a.png"]},
    "prompt as messages": lambda p: {
        "prompt": [{"role": "user", "content": [{"type": "image"}, TEXT]}],
        "completion": [ANSWER],
        "images": [{"path": "pics/a.png"}],
    },
    "alpaca": lambda p: {"instruction": f"<image>{ASK}", "output": SAY, "images": ["pics/a.png"]},
    "alpaca, no marker": lambda p: {"instruction": ASK, "output": SAY, "images": ["pics/a.png"]},
    "the Cauldron": lambda p: {"images": ["pics/a.png"], "texts": [{"user": ASK, "assistant": SAY}]},
    "parts without a type": lambda p: talk([{"image": "pics/a.png"}, {"text": ASK}]),
    "images as JSON text": lambda p: talk(ASK, images='["pics/a.png"]'),
    "Google's fileData": lambda p: google(
        {"fileData": {"mimeType": "image/png", "fileUri": "pics/a.png"}}, {"text": ASK}
    ),
    "Google's parts and a column": lambda p: google({"text": f"<image>{ASK}"}) | {"image": "pics/a.png"},
}  # fmt: skip
# Each holds the content of a.png
BYTE_FORMS: dict[str, Callable[[Path], Row]] = {
    "a data URL": lambda p: talk([
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(p)}"}}, TEXT,
    ]),
    "a column of data URLs": lambda p: talk(ASK, images=[f"data:image/png;base64,{b64(p)}"]),
    "Anthropic's base64": lambda p: talk([
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": b64(p)}}, TEXT,
    ]),
    "Google's inlineData": lambda p: google(
        {"inlineData": {"mimeType": "image/png", "data": b64(p)}}, {"text": ASK}
    ),
    "verl's data": lambda p: {"prompt": ASK, "completion": SAY, "images": [{"base64": b64(p)}]},
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGE_FORMS)
def test_every_form_of_an_image_is_one_part(media: Path, name: str) -> None:
    path = media / "pics" / "a.png"
    record = row_of(media, IMAGE_FORMS[name](path))
    assert record.messages == [
        {"role": "user", "content": [{"type": "image", "image": str(path)}, TEXT]}, ANSWER | {"content": SAY},
    ]  # fmt: skip
    assert record.unused == () and record.answer == SAY


@pytest.mark.parametrize("name", BYTE_FORMS)
def test_bytes_in_a_row_are_written_once(media: Path, name: str) -> None:
    path = media / "pics" / "a.png"
    record = row_of(media, BYTE_FORMS[name](path))
    (stored,) = found(record)
    assert Path(stored).read_bytes() == path.read_bytes() and stored.endswith(".png")
    assert record.messages[0]["content"][1] == TEXT and record.unused == ()  # type: ignore[index]
    assert media_parts.stored(path.read_bytes()) == stored


def test_tables_of_datasets_hold_bytes(media: Path) -> None:
    """Parquet as `datasets` writes its features Image and Audio: structs of bytes and path."""
    image, wave = (media / "pics" / name for name in ("a.png", "s.wav"))
    rows = [
        {"prompt": [{"role": "user", "content": [{"type": "image", "text": None}, TEXT]}], "completion": [ANSWER],
         "images": [{"bytes": image.read_bytes(), "path": "x.png"}]},
        {"prompt": [{"role": "user", "content": [TEXT]}], "completion": [ANSWER], "images": []},
    ]  # fmt: skip
    parquet.write_table(pa.Table.from_pylist(rows), media / "rows.parquet")
    first, second = read(media / "rows.parquet")
    assert Path(*found(first)).read_bytes() == image.read_bytes() and found(second) == []
    assert first.row["images"] == [{"path": found(first)[0]}]  # no bytes in what is stored and given to rewards
    rows = [{"prompt": ASK, "completion": SAY, "audio": {"bytes": wave.read_bytes(), "path": None}}]
    parquet.write_table(pa.Table.from_pylist(rows), media / "sound.parquet")
    pytest.importorskip("soundfile")
    (record,) = read(media / "sound.parquet")
    assert Path(*found(record, "audio")).read_bytes() == wave.read_bytes()


def test_media_stand_where_their_places_are(media: Path) -> None:
    row = {
        "conversations": [
            {"from": "system", "value": "Look."},
            {"from": "human", "value": "First <image> then\n<image>\nsay."}, {"from": "gpt", "value": "Yes."},
            {"from": "human", "value": "And <image>?"}, {"from": "gpt", "value": "No."},
        ],
        "images": ["pics/a.png", "pics/b.jpg", "pics/a.png"],
    }  # fmt: skip
    a, b = str(media / "pics/a.png"), str(media / "pics/b.jpg")
    record = row_of(media, row)
    assert found(record) == [a, b, a]
    assert [m["content"] for m in record.messages or ()][1:4] == [
        [{"type": "text", "text": "First "}, {"type": "image", "image": a}, {"type": "text", "text": " then"},
         {"type": "image", "image": b}, {"type": "text", "text": "say."}],
        "Yes.",
        [{"type": "text", "text": "And "}, {"type": "image", "image": a}, {"type": "text", "text": "?"}],
    ]  # fmt: skip


def test_sound_stands_beside_images(media: Path) -> None:
    pytest.importorskip("soundfile")
    wave = media / "pics" / "s.wav"
    parts = [{"type": "input_audio", "input_audio": {"data": b64(wave), "format": "wav"}}, TEXT]
    for row in (
        talk(f"<image><audio>{ASK}", images=["pics/a.png"], audios=["pics/s.wav"]),
        talk([{"type": "image"}, {"type": "audio"}, TEXT], image="pics/a.png", audio="pics/s.wav"),
        talk(parts),
        talk([{"type": "audio_url", "audio_url": {"url": "pics/s.wav"}}, TEXT]),
    ):
        record = row_of(media, row)
        assert [Path(p).read_bytes() for p in found(record, "audio")] == [wave.read_bytes()]
        assert record.unused == ()


def test_a_folder_with_metadata_names_its_files(media: Path) -> None:
    write(media / "pics" / "metadata.jsonl", {"file_name": "b.jpg", "prompt": ASK, "completion": SAY})
    (record,) = read(media / "pics")
    assert found(record) == [str(media / "pics" / "b.jpg")]


def test_relative_paths_are_looked_up_in_media_folder(media: Path) -> None:
    record = row_of(media, talk(ASK, image="a.png"), media_folder=str(media / "pics"))
    assert found(record) == [str(media / "pics" / "a.png")]


def test_pairs_and_labels_have_media_in_their_prompt(media: Path) -> None:
    path, pair = str(media / "pics/a.png"), {"prompt": ASK, "chosen": SAY, "rejected": "A dog."}
    for row in (
        {**pair, "images": ["pics/a.png"]},
        {**pair, "prompt": [{"role": "user", "content": [{"type": "image"}, TEXT]}], "image": "pics/a.png"},
    ):
        record = row_of(media, row)
        assert found(record) == [path] and record.rejected == [{"role": "assistant", "content": "A dog."}]
        assert record.prompt == [{"role": "user", "content": [{"type": "image", "image": path}, TEXT]}]
    row = {
        "conversations": [{"from": "human", "value": f"<image>{ASK}"}], "images": ["pics/a.png"],
        "chosen": {"from": "gpt", "value": SAY}, "rejected": {"from": "gpt", "value": "A dog."},
    }  # fmt: skip
    assert row_of(media, row) == record
    row = {"prompt": ASK, "completion": SAY, "label": True, "images": ["pics/a.png"]}
    assert found(row_of(media, row, format="unpaired_preference")) == [path]
    record = row_of(media, {"prompt": ASK, "image": "pics/a.png", "solution": "4"}, prompts_only=True)
    assert found(record) == [path] and record.row["solution"] == "4"


# What is wrong, and the beginning of what is said of it after `file:line: `
FAULTS: dict[str, tuple[Callable[[Path], Row], str]] = {
    "missing": (lambda p: talk(ASK, images=["pics/a.png", "no.png"]), "the field 'images.1': {0}/no.png: there is no such file (data.media_folder says where"),  # noqa: E501
    "missing, absolute": (lambda p: talk(ASK, image="/no/such.png"), "the field 'image': /no/such.png: there is no such file."),  # noqa: E501
    "missing in a part": (lambda p: talk([{"type": "image", "image": "no.png"}]), "message 1: image: {0}/no.png: there is no"),  # noqa: E501
    "a folder": (lambda p: talk(ASK, image="pics"), "the field 'image': {0}/pics: this is a folder"),
    "empty": (lambda p: talk(ASK, image="empty.png"), "the field 'image': {0}/empty.png: the file is empty"),
    "cut off": (lambda p: talk(ASK, image="cut.png"), "the field 'image': {0}/cut.png: it is broken or cut off"),
    "sound for an image": (lambda p: talk(ASK, image="pics/s.wav"), "the field 'image': {0}/pics/s.wav: this is sound (WAV), and an image"),  # noqa: E501
    "an image for sound": (lambda p: talk(ASK, audios=["pics/a.png"]), "the field 'audios.0': {0}/pics/a.png: this is an image (PNG), and sound"),  # noqa: E501
    "a bomb": (lambda p: talk(ASK, image="bomb.png"), "the field 'image': {0}/bomb.png: it has more than 89,478,485 pixels"),  # noqa: E501
    "an address": (lambda p: talk([{"type": "image_url", "image_url": {"url": "https://host/a.png"}}]), "message 1: image_url: 'https://host/a.png' is an address, and nothing is downloaded"),  # noqa: E501
    "a bucket": (lambda p: talk(ASK, image="gs://host/a.png"), "the field 'image': 'gs://host/a.png' is an address"),
    "Anthropic's address": (lambda p: talk([{"type": "image", "source": {"type": "url", "url": "https://h/a.png"}}]), "message 1: source: 'https://h/a.png' is an address"),  # noqa: E501
    "no base64": (lambda p: talk(ASK, image="data:image/png;base64,@@@@"), "the field 'image': this isn't base64"),
    "a data URL of text": (lambda p: talk(ASK, image="data:text/plain,abc"), "the field 'image': this data URL isn't base64"),  # noqa: E501
    "a number": (lambda p: talk(ASK, image=7), "the field 'image': is int, and must be the path of a file (image): 7"),
    "frames": (lambda p: talk(ASK, videos=[["a.png", "b.png"]]), "the field 'videos.0': is list, and must be the path"),
    "an id": (lambda p: talk([{"type": "image", "source": {"type": "file", "file_id": "f_1"}}]), "message 1: source: holds no path and no bytes"),  # noqa: E501
    "no column": (lambda p: talk([{"type": "image"}, TEXT]), "message 1: a part of the type 'image' names no file, and no field of the row holds it"),  # noqa: E501
    "more markers": (lambda p: talk(f"<image><image>{ASK}", images=["pics/a.png"]), "places (<image>) in the user's messages: 2; media in the field 'images': 1. There must"),  # noqa: E501
    "fewer markers": (lambda p: talk(f"<image>{ASK}", images=["pics/a.png"] * 3), "places (<image>) in the user's messages: 1; media in the field 'images': 3. There must"),  # noqa: E501
    "more parts": (lambda p: talk([{"type": "image"}] * 2, images=["pics/a.png"]), "places ({{'type': 'image'}}) in the user's messages: 2; media in the field 'images': 1. There must"),  # noqa: E501
    "a marker, an empty column": (lambda p: talk(f"<image>{ASK}", images=[]), "places (<image>) in the user's messages: 1; media in the field 'images': 0. There must"),  # noqa: E501
    "a marker of the assistant's": (lambda p: {"messages": turn(ASK, "<image>"), "images": ["pics/a.png"]}, "places (<image>) in the user's messages: 0 (1 more in messages that can't hold media"),  # noqa: E501
    "no marker, two turns": (lambda p: {"messages": [*turn(ASK, SAY), *turn(ASK, SAY)], "images": ["pics/a.png"]}, "nothing says where what the field 'images' holds belongs, since there are 2 messages"),  # noqa: E501
    "parts with files and a column": (lambda p: talk([{"type": "image", "image": "pics/a.png"}, TEXT], images=["pics/a.png"]), "nothing says where what the field 'images' holds belongs, since the messages name 1"),  # noqa: E501
    "two fields": (lambda p: talk(ASK, image="pics/a.png", images=["pics/a.png"]), "the fields 'images' and 'image' both hold media"),  # noqa: E501
    "the assistant's": (lambda p: {"messages": [{"role": "user", "content": ASK}, {"role": "assistant", "content": [{"type": "image", "image": "pics/a.png"}]}]}, "message 2: image stands in assistant's message"),  # noqa: E501
    "the system's": (lambda p: {"messages": [{"role": "system", "content": [{"type": "image", "image": "pics/a.png"}]}, *turn(ASK, SAY)]}, "message 1: image stands in system's message"),  # noqa: E501
    "the message's, missing": (lambda p: {"messages": [{"role": "user", "content": ASK, "images": ["no.png"]}, ANSWER]}, "message 1: the field 'messages.images.0': {0}/no.png: there is no"),  # noqa: E501
    "a PDF of Google's": (lambda p: google({"fileData": {"mimeType": "application/pdf", "fileUri": "a.pdf"}}), "message 1 holds a file of the type 'application/pdf'"),  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_names_its_place(media: Path, name: str) -> None:
    (media / "empty.png").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(media / "cut.png")
    (media / "cut.png").write_bytes((media / "cut.png").read_bytes()[:2000])
    huge(media / "bomb.png", 60_000, 60_000)
    row, said = FAULTS[name]
    good = talk("Fine.")
    file = write(media / "rows.jsonl", good, row(media))
    message = refusal(DataConfig(train_file=file))
    assert message.startswith(f"{file}:2: {said.format(media)}"), message
    skipping = training(DataConfig(train_file=file, on_bad_row="skip"))
    assert len(list(skipping)) == 1 and list(skipping.skipped) == [message.split(" 1 row is bad")[0]]


def test_ignored_images_leave_no_markers_in_the_text(media: Path) -> None:
    row = talk(f"<image>{ASK}", images=["pics/a.png"])
    with pytest.raises(UserError, match=r"the texts still hold <image> \(1 ×\), which would be trained as text"):
        row_of(media, row, ignore_fields=["images"])
    record = row_of(media, talk(ASK, images=["pics/a.png"]), ignore_fields=["images"])
    assert record.messages == [{"role": "user", "content": ASK}, ANSWER]


def test_markers_of_rows_without_media_are_text(media: Path) -> None:
    record = row_of(media, talk("What does <image> mean in XML?"))
    assert record.messages == [{"role": "user", "content": "What does <image> mean in XML?"}, ANSWER]


def test_markers_beside_a_file_of_an_unknown_field_are_refused(media: Path) -> None:
    row = talk(f"<image>{ASK}", pic="pics/a.png")
    with pytest.raises(UserError, match=r"the texts hold <image>, and what the field 'pic' names isn't read: call it"):
        row_of(media, row)
    assert row_of(media, row, ignore_fields=["pic"]).messages == turn(f"<image>{ASK}", SAY)


def test_a_message_may_be_nothing_but_an_image(media: Path) -> None:
    for row in (
        talk("", images=["pics/a.png"]),
        talk("<image>\n", images=["pics/a.png"]),
        talk([{"type": "image"}], image="pics/a.png"),
    ):
        assert [p["type"] for p in row_of(media, row).messages[0]["content"]] == ["image"]  # type: ignore[index]


def test_prompts_of_a_file_have_media_beside_it(media: Path) -> None:
    file = write(
        media / "asked.jsonl",
        {"prompt": ASK, "images": ["pics/a.png"]},
        {"instruction": f"<image>{ASK}", "image": "pics/a.png"},
    )
    for record in read_chat_prompts(ChatConfig(prompts_file=file)):
        assert found(record) == [str(media / "pics/a.png")] and record.unused == ()


@pytest.mark.slow
def test_data_sets_are_not_decoded(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features Image and lists of them, loaded at once or streamed; relative paths in a folder's rows."""
    import datasets

    monkeypatch.setattr(datasets.Image, "decode_example", lambda *given, **keys: pytest.fail("decoded"))
    path = media / "pics" / "a.png"
    content = {"bytes": path.read_bytes(), "path": None}
    for feature, value in ((datasets.Image(), content), (datasets.List(datasets.Image()), [content])):
        features = datasets.Features(
            {"prompt": datasets.Value("string"), "completion": datasets.Value("string"), "images": feature}
        )
        rows = datasets.Dataset.from_list([{"prompt": ASK, "completion": SAY, "images": value}], features=features)
        folder = media / type(feature).__name__
        folder.mkdir()
        rows.to_parquet(folder / "train.parquet")
        for streaming in (False, True):
            (record,) = training(DataConfig(dataset_name=str(folder), streaming=streaming))
            assert Path(*found(record)).read_bytes() == path.read_bytes()
    (media / "lines").mkdir()
    write(media / "lines" / "train.jsonl", {"prompt": ASK, "completion": SAY, "image": "../pics/a.png"})
    (record,) = training(DataConfig(dataset_name=str(media / "lines")))
    assert found(record) == [str(path)]


def test_a_text_model_says_that_it_sees_no_images(media: Path, tiny: Path) -> None:
    from transformers import AutoTokenizer

    record = row_of(media, talk(ASK, images=["pics/a.png"]))
    with pytest.raises(
        BadRow, match=r"row\.jsonl:1: there is no place for an image.* data\.ignore_fields=\[images\] reads"
    ):
        render_record(record, AutoTokenizer.from_pretrained(tiny))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"image": "pics/a.png", "question": ASK, "answer": SAY},
            "data.prompt_column=question data.completion_column=answer.",
        ),
        ({"audio": "pics/s.wav", "text": SAY}, "data.completion_column=text. Write a question into each row"),
    ],
)
def test_rows_of_no_known_format_are_told_what_reads_them(media: Path, row: Row, says: str) -> None:
    with pytest.raises(UserError) as caught:
        row_of(media, row)
    assert says in str(caught.value) and "doesn't use" not in str(caught.value)


def test_running_text_has_no_place_for_media(media: Path) -> None:
    with pytest.raises(UserError, match="images, sound and video stand in the user's messages of conversations"):
        row_of(media, {"text": "a", "image": "pics/a.png"}, format="text")


def test_rows_are_told_apart_by_what_their_images_hold(media: Path) -> None:
    copy = media / "copy.png"
    copy.write_bytes((media / "pics/a.png").read_bytes())
    one, same, other = (
        digest(row_of(media, talk(ASK, image=name))) for name in ("pics/a.png", "copy.png", "pics/b.jpg")
    )
    as_bytes = digest(row_of(media, talk(ASK, image=f"data:image/png;base64,{b64(copy)}")))
    assert one == same == as_bytes != other


def test_readers_of_the_users_own_give_parts(media: Path) -> None:
    (media / "own.py").write_text(
        "import json\nfrom gemma_tune.data.records import Record\n\n"
        "def rows(source, data):\n"
        "    for number, line in enumerate(open(source), 1):\n"
        "        row = json.loads(line)\n"
        "        asked = [{'type': 'image', 'image': row['pic']}, {'type': 'text', 'text': row['q']}]\n"
        "        talk = [{'role': 'user', 'content': asked}, {'role': 'assistant', 'content': row['a']}]\n"
        "        yield Record(f'{source}:{number}', messages=talk)\n"
    )
    row = {"pic": "pics/a.png", "q": ASK, "a": SAY}
    record = row_of(media, row, format=f"{media / 'own.py'}:rows")
    assert found(record) == [str(media / "pics/a.png")]
    with pytest.raises(UserError, match=r"row\.jsonl:1: message 1: image: .*no such file"):
        row_of(media, {**row, "pic": "no.png"}, format=f"{media / 'own.py'}:rows")


def test_only_headers_are_read(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand rows: no image is decoded."""
    decoded: list[Any] = []
    monkeypatch.setattr(Image.Image, "load", lambda image: decoded.append(image))
    rows = [talk(f"{ASK} {n}", image="pics/b.jpg") for n in range(1000)]
    (media / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read(media / "rows.jsonl")) == 1000 and not decoded
