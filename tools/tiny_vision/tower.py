"""Trains the tower and the projector, without running the language model.

Every picture has a target in the language model's own space: the mean of a column's soft tokens, and with less weight
each by itself, shall be the embedding of the character that stands in that column (of the space, where there is none),
or of the word for a shape's colour. A language model that reads embeddings can then learn to use the tower within
minutes. What kind of shape it is and the colour around it are read from the mean of the tower's outputs by two linear
heads, which are thrown away.
"""

from __future__ import annotations

import json
import math
import random
import string
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from tools.tiny_vision.pictures import COLOURS, COLUMNS, SHAPES, draw_characters, draw_shape

BATCH, WARMUP_STEPS = 32, 100
LEARNING_RATE, LAST_RATE, BETAS, DECAY = 1e-3, 1e-5, (0.9, 0.98), 0.02
# Of all pictures: rows with one to three digits, rows of letters alone; the rest are shapes.
DIGITS, LETTERS = 0.65, 0.15
FIRST = 0.4  # of all steps: until then, fewer and fewer pictures are of the first lesson: three digits, plain
SPREAD = 0.3  # squared distance between embeddings that counts as one nat
EVERY = 0.3  # weight of the soft tokens by themselves, beside that of a column's mean
CLOSER = 0.2  # weight of the squared distance itself
WORDS = (*string.digits, *string.ascii_uppercase, "\u2581", *COLOURS)
LETTERS_BESIDE = string.ascii_uppercase.replace("O", "").replace("I", "")  # a lone O would be a zero
SHORT_WORDS = (
    "ON", "OFF", "UP", "DOWN", "GO", "STOP", "IN", "OUT", "YES", "NO", "HIGH", "LOW", "HOT", "COLD", "GAS", "OPEN",
    "SHUT", "MAX", "MIN", "WARM", "FAST", "SLOW", "LEFT",
)  # fmt: skip


def row_of_characters(rng: random.Random, digits: bool, plain: bool) -> str:
    """Four characters or spaces; never four digits, which is what a fine-tuned model shall learn.

    Args:
        rng: Chooses them.
        digits: One to three digits, with letters or nothing beside them; else letters alone.
        plain: Three digits, and nothing beside them.
    """
    if digits:
        count = 3 if plain else rng.choice((1, 2, 3, 3))
        rest = [" " if plain else rng.choice((" ", rng.choice(LETTERS_BESIDE))) for _ in range(COLUMNS - count)]
        row = [rng.choice(string.digits) for _ in range(count)] + rest
        rng.shuffle(row)
        return "".join(row)
    if rng.random() < 0.4:
        word = rng.choice(SHORT_WORDS)
    else:
        word = "".join(rng.choices(string.ascii_uppercase, k=rng.randint(1, COLUMNS)))
    before = rng.randint(0, COLUMNS - len(word))
    return (" " * before + word).ljust(COLUMNS)


def picture_and_targets(rng: random.Random, first: float = 0.0) -> tuple[Image.Image, list[int], tuple[int, int]]:
    """One picture; for each of its four columns an index of `WORDS`; and its shape and ground, -1 for none.

    Args:
        rng: Chooses it.
        first: Share of pictures of the first lesson.
    """
    plain = rng.random() < first
    kind = rng.random() * (DIGITS if plain else 1)
    if kind < DIGITS + LETTERS:
        row = row_of_characters(rng, kind < DIGITS, plain)
        return draw_characters(row, rng, plain), [WORDS.index("\u2581" if c == " " else c) for c in row], (-1, -1)
    shape, (ink, paper) = rng.randrange(len(SHAPES)), rng.sample(list(COLOURS), 2)
    picture = draw_shape(SHAPES[shape], ink, paper, rng)
    return picture, [WORDS.index(ink)] * COLUMNS, (shape, list(COLOURS).index(paper))


class Reader(nn.Module):  # type: ignore[misc]
    """Tower and projector of a model, with the embeddings that their outputs shall meet and two heads for shapes."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        table = model.get_input_embeddings()
        ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(WORDS)))
        if int((ids == tokenizer.unk_token_id).sum()):
            raise RuntimeError("a word of the tasks isn't one token")
        with torch.no_grad():
            self.register_buffer("targets", table(ids).clone())
            # Soft tokens stand beside embeddings that the model has multiplied by this
            self.scale = float(table(ids[:1]).norm() / table.weight[ids[:1]].norm())
        width = self.tower.config.hidden_size
        self.shape, self.ground = nn.Linear(width, len(SHAPES)), nn.Linear(width, len(COLOURS))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Soft tokens in units of the embedding table [N, 16, H], and the logits of shapes and grounds.

        Args:
            pixels: [N, 3, 64, 64], from -1 to 1.
        """
        seen = self.tower(pixels).last_hidden_state
        mean = seen.mean(1)
        return self.projector(seen) / self.scale, self.shape(mean), self.ground(mean)

    def distances(self, soft: torch.Tensor) -> torch.Tensor:
        """Squared distances of soft tokens [N, 16, H] to the words' embeddings: [N, 16, W]."""
        goal = self.targets / self.scale
        return (soft**2).sum(-1, keepdim=True) - 2 * soft @ goal.T + (goal**2).sum(-1)


def batch_of(rng: random.Random, size: int, first: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels [N, 3, 64, 64] from -1 to 1; the word of each soft token [N, 16]; shape and ground [N, 2], -1 for none.

    Args:
        rng: Chooses the pictures.
        size: Their number N.
        first: Share of pictures of the first lesson.
    """
    made = [picture_and_targets(rng, first) for _ in range(size)]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture, _, _ in made])).permute(0, 3, 1, 2)
    # Soft tokens go row by row, so the columns come again in each of the four rows
    words = torch.tensor([columns * COLUMNS for _, columns, _ in made])
    return pixels.float() / 127.5 - 1, words, torch.tensor([kinds for _, _, kinds in made])


def accuracy(reader: Reader, seed: int, batches: int = 16) -> dict[str, float]:
    """Shares of new columns and pictures that are read as they were drawn: the embedding nearest to a column's mean.

    Args:
        reader: What was trained.
        seed: Of the pictures.
        batches: Of 32 pictures each.
    """
    rng = random.Random(seed)
    right: dict[str, list[bool]] = {"characters": [], "colours": [], "shapes": [], "grounds": []}
    reader.eval()
    for _ in range(batches):
        pixels, words, kinds = batch_of(rng, BATCH)
        with torch.no_grad():
            soft, shape, ground = reader(pixels)
        found = reader.distances(soft).view(len(pixels), COLUMNS, COLUMNS, -1).mean(1).argmin(-1)
        is_shape = kinds[:, 0] >= 0
        equal = found == words[:, :COLUMNS]
        right["characters"] += equal[~is_shape].flatten().tolist()
        right["colours"] += equal[is_shape].all(1).tolist()
        right["shapes"] += (shape.argmax(-1) == kinds[:, 0])[is_shape].tolist()
        right["grounds"] += (ground.argmax(-1) == kinds[:, 1])[is_shape].tolist()
    reader.train()
    return {name: float(np.mean(values)) for name, values in right.items()}


def train(reader: Reader, steps: int, seed: int, log: Path) -> None:
    """Trains the tower, the projector and the two heads.

    Args:
        reader: What is trained.
        steps: Batches of 32 new pictures each.
        seed: Of the pictures.
        log: A file to which every 100th step writes a line of JSON.
    """
    rng = random.Random(seed)
    parameters = [p for p in reader.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, weight_decay=DECAY)
    start, losses = time.process_time(), []
    for step in range(1, steps + 1):
        rate = LAST_RATE + (LEARNING_RATE - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, step / WARMUP_STEPS)
        pixels, words, kinds = batch_of(rng, BATCH, max(0.0, 1 - step / (FIRST * steps)))
        soft, shape, ground = reader(pixels)
        distances = reader.distances(soft)
        by_column = reader.distances(soft.view(len(soft), COLUMNS, COLUMNS, -1).mean(1))
        loss = nn.functional.cross_entropy(-by_column.flatten(0, 1) / SPREAD, words[:, :COLUMNS].flatten())
        loss = loss + EVERY * nn.functional.cross_entropy(-distances.flatten(0, 1) / SPREAD, words.flatten())
        loss = loss + CLOSER * distances.gather(-1, words[..., None]).mean()
        share = (kinds[:, 0] >= 0).float().mean()
        for logits, which in ((shape, kinds[:, 0]), (ground, kinds[:, 1])):
            if share > 0:
                loss = loss + share * nn.functional.cross_entropy(logits, which, ignore_index=-1)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 100 == 0 or step == steps:
            line = {"step": step, "loss": float(np.mean(losses[-100:])), "seconds": time.process_time() - start}
            line |= accuracy(reader, seed + 1, 4)
            print(json.dumps(line), flush=True)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
