"""Pictures of 64 by 64 pixels: characters in four columns, and shapes in colours.

Fonts are DejaVu's from matplotlib's package, so that every machine draws the same.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

SIDE, COLUMNS = 64, 4
CELL = SIDE // COLUMNS
FONTS = ("DejaVuSansMono-Bold", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSans", "DejaVuSerif-Bold")
SIZES = range(18, 26)
WIDEST = 18  # pixels of a character: a little more than its column
# How far the line of characters stands from the middle, in pixels.
ASIDE, UP_OR_DOWN = 2, 11
SHAPES = ("circle", "square", "triangle", "diamond", "ring", "plus", "bar", "arch")
# Words that are one token of the embedded model, each with its colour.
COLOURS = {
    "red": (205, 40, 40), "green": (40, 150, 60), "blue": (45, 75, 205), "yellow": (235, 215, 50),
    "black": (20, 20, 20), "white": (240, 240, 240), "orange": (240, 145, 30), "purple": (130, 50, 160),
    "brown": (120, 75, 40),
}  # fmt: skip

Colour = tuple[int, int, int]


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)


def two_colours(rng: random.Random, plain: bool = False) -> tuple[Colour, Colour]:
    """A light and a dark colour with a good contrast: paper and ink, or the other way round."""

    def near(base: int, spread: int) -> Colour:
        r, g, b = (min(255, max(0, base + rng.randint(-spread, spread))) for _ in range(3))
        return r, g, b

    light, dark = near(rng.randrange(165, 240), 25), near(rng.randrange(25, 75), 30)
    return (light, dark) if plain or rng.random() < 0.65 else (dark, light)


def draw_characters(text: str, rng: random.Random, plain: bool = False) -> Image.Image:
    """Characters, each about the middle of its column, on one line somewhere in the picture.

    Args:
        text: Four characters at most; a space leaves its column empty.
        rng: Chooses font, size, colours and place.
        plain: Dark on light, bold and large, as a first lesson.

    Returns:
        An RGB picture of 64 by 64 pixels.
    """
    paper, ink = two_colours(rng, plain)
    picture = Image.new("RGB", (SIDE, SIDE), paper)
    draw = ImageDraw.Draw(picture)
    name, size = rng.choice(FONTS[:2] if plain else FONTS), rng.choice(SIZES[3:] if plain else SIZES)
    aside, middle = rng.randint(-ASIDE, ASIDE), SIDE // 2 + rng.randint(-UP_OR_DOWN, UP_OR_DOWN)
    boxes = [_font(name, size).getbbox(c) for c in text]
    while max(right - left for left, _, right, _ in boxes) > WIDEST:
        size -= 1
        boxes = [_font(name, size).getbbox(c) for c in text]
    # All stand on the line of their capitals, which digits reach as well
    _, top, _, bottom = _font(name, size).getbbox("0")
    for i, (c, (left, _, right, _)) in enumerate(zip(text, boxes, strict=True)):
        place = CELL * i + CELL / 2 + aside - (left + right) / 2, middle - (top + bottom) / 2
        draw.text(place, c, font=_font(name, size), fill=ink)
    return picture


def draw_shape(shape: str, ink: str, paper: str, rng: random.Random) -> Image.Image:
    """One shape in one colour, of any size from a third of the picture on, anywhere.

    Args:
        shape: One of `SHAPES`.
        ink: Its colour, a key of `COLOURS`.
        paper: The colour around it, another key.
        rng: Chooses size, place and shades.

    Returns:
        An RGB picture of 64 by 64 pixels.
    """

    def shade(name: str) -> Colour:
        r, g, b = (min(255, max(0, value + rng.randint(-15, 15))) for value in COLOURS[name])
        return r, g, b

    fill, ground = shade(ink), shade(paper)
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    draw = ImageDraw.Draw(picture)
    w = rng.randint(22, 56)
    x, y = rng.randint(2, SIDE - 2 - w), rng.randint(2, SIDE - 2 - w)
    box, half, third = (x, y, x + w, y + w), w / 2, w / 3
    match shape:
        case "circle":
            draw.ellipse(box, fill=fill)
        case "square":
            draw.rectangle(box, fill=fill)
        case "triangle":
            draw.polygon([(x + half, y), (x + w, y + w), (x, y + w)], fill=fill)
        case "diamond":
            draw.polygon([(x + half, y), (x + w, y + half), (x + half, y + w), (x, y + half)], fill=fill)
        case "ring":
            draw.ellipse(box, outline=fill, width=max(4, w // 5))
        case "plus":
            draw.rectangle((x + third, y, x + 2 * third, y + w), fill=fill)
            draw.rectangle((x, y + third, x + w, y + 2 * third), fill=fill)
        case "bar":
            draw.rectangle((x, y + third, x + w, y + 2 * third), fill=fill)
        case "arch":
            draw.pieslice(box, 180, 360, fill=fill)
        case _:
            raise ValueError(shape)
    return picture
