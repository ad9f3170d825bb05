"""Builds the embedded model that sees: `data/tiny` with an image tower that was trained here.

    python -m tools.tiny_vision --output build/tiny_vision

writes the model folder build/tiny_vision/tiny_vision and the metrics build/tiny_vision/figures.json;
`data/tiny_vision` is such a model folder.

    python -m tools.tiny_vision --sheet docs/tiny-vision.png

draws pictures that the tower is trained on and, in the last two rows, some of `data/sample_images`.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from tools import sample_images
from tools.tiny_vision import model as models
from tools.tiny_vision.pictures import SIDE
from tools.tiny_vision.tower import Reader, accuracy, picture_and_targets, train

STEPS = 4800
PICTURES_SEED, HELD_OUT_SEED = 1_000_000, 2_000_000


def sheet(file: Path, across: int = 12, gap: int = 4) -> None:
    """Writes a picture of pictures: four rows that the tower is trained on, and two of the sample's test rows.

    Args:
        file: A PNG file.
        across: Pictures in a row.
        gap: Pixels between two of them.
    """
    rng = random.Random(PICTURES_SEED)
    pictures = [picture_and_targets(rng)[0] for _ in range(4 * across)]
    pictures += [Image.open(io.BytesIO(row[2])) for row in sample_images.rows("test", 0)[: 2 * across]]
    step = SIDE + gap
    paper = Image.new("RGB", (across * step - gap, 6 * step - gap), "white")
    for i, picture in enumerate(pictures):
        paper.paste(picture.convert("RGB"), (i % across * step, i // across * step))
    paper.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)


def main(words: Sequence[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser("python -m tools.tiny_vision", description="Builds the embedded model that sees.")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--output", type=Path, metavar="FOLDER", help="a new folder for what is built")
    target.add_argument("--sheet", type=Path, metavar="PNG", help="draw samples into this file, and build nothing")
    parser.add_argument("--steps", type=int, default=STEPS, help="batches of 32 pictures to train on (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the pictures (%(default)s)")
    options = parser.parse_args(words)
    if options.sheet:
        sheet(options.sheet)
        return
    if options.output.exists():
        parser.error(f"--output={options.output} exists already: name a new folder, or delete that one")
    options.output.mkdir(parents=True)

    tokenizer = models.build_tokenizer()
    model = models.build_model(tokenizer, options.seed)
    reader = Reader(model, tokenizer)
    start = time.process_time()
    train(reader, options.steps, options.seed + PICTURES_SEED, options.output / "log.jsonl")
    seconds = time.process_time() - start
    models.save(model, tokenizer, options.output / "tiny_vision")

    # With the weights as they were saved
    model.to(torch.bfloat16).float()
    figures = {"steps": options.steps, "processor_seconds": seconds}
    figures |= accuracy(reader, options.seed + HELD_OUT_SEED, 64)
    (options.output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
