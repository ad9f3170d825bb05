"""Rows with images, and short runs on them with the small models of media_models."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from media_plain import picture
from short_runs import short_run

ROWS = 6


def media_rows(folder: Path, turns: int) -> Path:
    """Rows with one image, two images, none, and with two turns where `turns` is 2; noise of other sizes each."""
    draw = random.Random(0)
    chats = []
    for number in range(ROWS):
        pictures = [picture(folder / f"{number}-{i}.png", draw) for i in range((1, 2, 1, 0, 1, 1)[number])]
        content: list[dict[str, Any]] = [{"type": "image", "image": path} for path in pictures]
        said = {"type": "text", "text": " ".join(draw.choices(["What", "is", "on", "the", "meter"], k=number + 2))}
        messages = [
            {"role": "user", "content": [*content, said]},
            {"role": "assistant", "content": f"{number * 37} kWh"},
        ]
        if turns == 2 and number == 2:
            more = [*content, {"type": "text", "text": "And now?"}]
            messages += [{"role": "user", "content": more}, {"role": "assistant", "content": "The same."}]
        chats.append({"messages": messages})
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, chats)) + "\n", encoding="utf-8")
    return file


def trained(recipe: str, model: Path, rows: Path, folder: Path, *words: str, steps: int = 1) -> Path:
    """Trains on all rows in each step, and gives the run folder."""
    given = [
        f"model.model_name_or_path={model}",
        "data=messages",
        f"data.train_file={rows}",
        "eval=none",
        "export=merged",
    ]
    every = f"train.per_device_train_batch_size={ROWS}"
    short_run(recipe, folder, *given, "eval.num_samples=0", every, *words, steps=steps)
    return folder
