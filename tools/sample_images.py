"""Writes data/sample_images: pictures of a meter with four digits, and a question about each.

    python -m tools.sample_images --output build/sample_images

`train.parquet` has the pictures in a column, as `datasets` writes them: `images`, a list of {bytes, path}, beside
`messages` with the marker <image>. `validation.jsonl` and `test.jsonl` have OpenAI's parts, and the pictures are files
beside them. A number's SHA-256 decides whether it is one to train on or one to test with.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

from tools.tiny_vision.pictures import draw_characters

QUESTIONS = ("Read it.", "Read the meter.", "What does the meter show?", "Which number is it?", "What is the reading?")
ROWS = {"train": 2400, "validation": 60, "test": 200}
SHADES = 16  # as many colours as four bits of a pixel can name: a PNG of 430 bytes, a third of that with all shades


def is_held_out(number: str) -> bool:
    """Whether a number belongs to the validation and test rows: one in five does."""
    return int(hashlib.sha256(number.encode()).hexdigest(), 16) % 5 == 0


def png(number: str, rng: random.Random) -> bytes:
    """The picture of a meter as a PNG file of 64 by 64 pixels."""
    picture = draw_characters(number, rng).quantize(SHADES, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def numbers(seed: int) -> dict[str, list[str]]:
    """For each split its numbers of four digits, no number twice."""
    rng = random.Random(seed)
    every = [f"{i:04}" for i in range(10_000)]
    rng.shuffle(every)
    held_out = [n for n in every if is_held_out(n)]
    train = [n for n in every if not is_held_out(n)]
    first = ROWS["validation"]
    return {
        "train": train[: ROWS["train"]],
        "validation": held_out[:first],
        "test": held_out[first : first + ROWS["test"]],
    }


def rows(split: str, seed: int) -> list[tuple[str, str, bytes]]:
    """Question, answer and picture of each row of a split."""
    rng = random.Random(f"{split} {seed}")
    return [(rng.choice(QUESTIONS), number, png(number, rng)) for number in numbers(seed)[split]]


def write_parquet(found: list[tuple[str, str, bytes]], file: Path) -> None:
    """The rows with their pictures, in the types that `datasets` knows as a list of images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    turns = [_messages(f"<image>{question}", answer) for question, answer, _ in found]
    pictures = [[{"bytes": picture, "path": None}] for *_, picture in found]
    columns = {"messages": pa.array(turns, pa.list_(message)), "images": pa.array(pictures, pa.list_(image))}
    # PNG is compressed already
    pq.write_table(pa.table(columns), file, compression={"messages.list.element.content": "zstd"}, row_group_size=1000)


def write_jsonl(found: list[tuple[str, str, bytes]], file: Path) -> None:
    """The rows with OpenAI's parts, and their pictures in a folder of the file's name."""
    folder = file.with_suffix("")
    folder.mkdir()
    lines = []
    for number, (question, answer, picture) in enumerate(found):
        name = f"{number:03}.png"
        (folder / name).write_bytes(picture)
        url = {"url": f"{folder.name}/{name}"}
        parts = [{"type": "image_url", "image_url": url}, {"type": "text", "text": question}]
        lines.append(json.dumps({"messages": _messages(parts, answer)}) + "\n")
    file.write_text("".join(lines), encoding="utf-8")


def _messages(question: Any, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser("python -m tools.sample_images", description="Writes the sample with images.")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--seed", type=int, default=0, help="of numbers, questions and pictures (%(default)s)")
    options = parser.parse_args()
    if options.output.exists():
        parser.error(f"--output={options.output} exists already: name a new folder, or delete that one")
    options.output.mkdir(parents=True)
    write_parquet(rows("train", options.seed), options.output / "train.parquet")
    for split in ("validation", "test"):
        write_jsonl(rows(split, options.seed), options.output / f"{split}.jsonl")


if __name__ == "__main__":
    main()
