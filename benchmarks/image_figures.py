"""`make figures-images`: the embedded model with an image tower learns to read a meter in three seeds, and is served.

Written to docs/benchmarks/. Each run is a process of its own, with the command line a user types. With a run folder
as its argument (`image_figures.py RUN`), that run is asked through llama.cpp and the other figures stay as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from figures import DOCS, conditions, conditions_line, table
from transformers import AutoProcessor, Gemma3ForConditionalGeneration

from gemma_tune.engines.llama_media import ask_with_media
from gemma_tune.engines.llama_server import LlamaServer
from gemma_tune.run.paths import ASSETS, gguf_models, mmproj_beside

SEEDS = (42, 1, 2)
MARGIN = 1e-3  # between the two best tokens, nats: closer ones may be taken either way
FLOATS = ("gguf_f32", "gguf_f16", "gguf_q8_0")
_WORDS = ["recipe=qlora_sft", "model=tiny_vision", "data=sample_images", "tracker=none"]
_NEW_TOKENS = 16
_TEST = ASSETS / "sample_images" / "test.jsonl"


def tuned(*words: str) -> None:
    """A command as a user types it."""
    subprocess.run([sys.executable, "-m", "gemma_tune", *words], check=True, stdout=subprocess.DEVNULL)


def run(seed: int, folder: Path) -> dict[str, Any]:
    """One training with the defaults; the seconds are those of the clock and of the processors."""
    begun, used = time.perf_counter(), os.times()
    tuned(*_WORDS, f"seed={seed}", f"output_dir={folder}")
    ended = os.times()
    result = json.loads((folder / "result.json").read_text("utf-8"))
    processor = sum(ended[2:4]) - sum(used[2:4])
    clock = time.perf_counter() - begun
    return {"seed": seed, "wall_seconds": clock, "processor_seconds": processor, **result}


def questions() -> tuple[list[list[dict[str, Any]]], list[str]]:
    """The prompts of the test rows, with the paths of their pictures, and the right answers."""
    rows = [json.loads(line)["messages"] for line in _TEST.read_text("utf-8").splitlines()]
    for user, _ in rows:
        user["content"] = [
            {"type": "image", "image": str(_TEST.parent / part["image_url"]["url"])} if "image_url" in part else part
            for part in user["content"]
        ]
    return [[user] for user, _ in rows], [assistant["content"] for _, assistant in rows]


@torch.no_grad()
def by_transformers(folder: Path, prompts: list[Any]) -> list[tuple[list[int], list[float], int]]:
    """Greedy answers of the checkpoint's own class and processor in float32.

    Returns:
        Of each prompt the new token ids, its end included, the margin at each of them, and the prompt's length.
    """
    processor = AutoProcessor.from_pretrained(folder)
    model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for (user,) in prompts:
        content = [{"type": "image", "path": part["image"]} if "image" in part else part for part in user["content"]]
        given = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        made = model.generate(
            **given, max_new_tokens=_NEW_TOKENS, do_sample=False, top_k=None, top_p=None,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        length = given["input_ids"].shape[1]
        best = [logits[0].float().topk(2).values for logits in made.logits]
        found.append((made.sequences[0, length:].tolist(), [float(a - b) for a, b in best], length))
    return found


def by_llama_cpp(folder: Path, prompts: list[Any], exact: bool) -> list[tuple[list[int], bool, int]]:
    """Greedy answers through the chat endpoint, with the template of the file.

    Args:
        folder: Of the GGUF file and its towers.
        prompts: Messages.
        exact: Whether keys and values are float32; else the server has its defaults.

    Returns:
        Of each prompt the new token ids without the end, whether there was one, and the prompt's length.
    """
    (file,) = gguf_models(folder)
    server = LlamaServer(file, 512, 1, torch.get_num_threads(), exact, 600.0, mmproj=mmproj_beside(file))
    try:
        answers = [ask_with_media(server, messages, _NEW_TOKENS, 1) for messages in prompts]
    finally:
        server.close()
    return [(answer.ids, answer.stopped, answer.prompt_tokens) for answer in answers]


def compared(theirs: list[Any], ours: list[Any]) -> dict[str, int]:
    """How llama.cpp's answers differ from those of Transformers."""
    counts = {"rows": len(ours), "equal": 0, "parted_within_margin": 0, "parted": 0, "other_prompt": 0}
    for (ids, ended, read), (wanted, margins, length) in zip(theirs, ours, strict=True):
        said = [*ids, *wanted[-1:]] if ended and ids == wanted[:-1] else ids
        parts = next((i for i, (a, b) in enumerate(zip(said, wanted, strict=False)) if a != b), len(said))
        if read != length:
            counts["other_prompt"] += 1
        elif said == wanted:
            counts["equal"] += 1
        else:
            near = margins[min(parts, len(margins) - 1)] < MARGIN
            counts["parted_within_margin" if near else "parted"] += 1
    return counts


def served(folder: Path, scratch: Path) -> list[dict[str, Any]]:
    """Every GGUF file of a run, asked about all test rows through the chat endpoint, beside Transformers."""
    model, quiet = f"model.model_name_or_path={folder}", ["tracker=none", "export.quality_samples=0"]
    floats, int4 = scratch / "floats", scratch / "int4"
    written = f"export.formats=[merged,{','.join(FLOATS)}]"
    tuned("recipe=export", model, written, "export.dtype=float32", *quiet, f"output_dir={floats}")
    both = "export.formats=[merged,gguf]"
    tuned("recipe=export", model, "quant=q4_0", both, "export.dtype=float32", *quiet, f"output_dir={int4}")
    prompts, right = questions()
    found = []
    for place, formats in ((floats, FLOATS), (int4, ("gguf",))):
        ours = by_transformers(place / "export" / "merged", prompts)
        for name in formats:
            theirs = by_llama_cpp(place / "export" / name, prompts, exact=name == "gguf_f32")
            processor = AutoProcessor.from_pretrained(place / "export" / "merged")
            texts = [processor.decode(ids, skip_special_tokens=True).strip() for ids, _, _ in theirs]
            exact_match = sum(text == answer for text, answer in zip(texts, right, strict=True)) / len(right)
            found.append({"format": name, "exact_match": exact_match, **compared(theirs, ours)})
    return found


def row(found: dict[str, Any]) -> str:
    """A line of the table of trainings."""
    before, after = (found["metrics"][when]["test_exact_match"] for when in ("before", "after"))
    seconds = f"{found['seconds']['train']:.0f} | {found['wall_seconds']:.0f} | {found['processor_seconds']:.0f}"
    return f"| {found['seed']} | {before:.1%} | {after:.1%} | {seconds} |"


def served_row(found: dict[str, Any]) -> str:
    """A line of the table of files."""
    counts = " | ".join(str(found[key]) for key in ("rows", "equal", "parted_within_margin", "parted", "other_prompt"))
    return f"| {found['format']} | {counts} | {found['exact_match']:.1%} |"


def page(report: dict[str, Any]) -> str:
    """The page of what was measured."""
    head = ["seed", "exact match before", "after", "training s", "whole command s", "processor s"]
    files = ["file", "rows", "equal", f"parted below {MARGIN:g}", "parted", "other prompts", "exact match"]
    lines = [
        "# Learning to read a meter from pictures",
        "",
        f"Made by `make figures-images` on {conditions_line(report)} `recipe=qlora_sft model=tiny_vision "
        "data=sample_images` with its defaults: tower, projector and adapter are trained on 2,400 pictures of meters "
        "with four digits, each seen once, and asked about 200 others. Before training no answer is exact, but half "
        "of them repeat the right number without an end: the tower knows single digits, and training teaches the rest "
        "and the form of the answer ([data/README.md](../../data/README.md#the-embedded-model-with-an-image-tower)).",
        "",
        table(head, [*map(row, report["runs"])]),
        "",
        "Required: at least 90 % in at most three minutes on two cores.",
        "",
        "## Served by llama.cpp",
        "",
        f"On {conditions_line(report['served'])} Each GGUF file of a run, with its mmproj file, was asked all 200 "
        "test rows through llama.cpp's chat endpoint (`/v1/chat/completions`), the pictures as data URLs and the "
        "chat template that the file holds; beside it the checkpoint's own class and processor in Transformers, in "
        "float32, of the same weights (export/merged; of int4 that of the int4 numbers). Equal means token for token, "
        f"the end included. Parted below {MARGIN:g}: where the answers part, the two best tokens lie closer than that, "
        "in nats. `gguf_f32` is computed with keys and values in float32, the others with the server's defaults, which "
        "round activations for 8-bit and int4 weights.",
        "",
        table(files, [*map(served_row, report["served"]["files"])]),
        "",
        "Required: no answer of `gguf_f32` and `gguf_f16` parts but below the margin, and no prompt is another.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs every seed and asks the first run's files, or those of the run that is named, and writes the page."""
    with tempfile.TemporaryDirectory() as scratch:
        if sys.argv[1:]:
            report = json.loads((DOCS / "images.json").read_text("utf-8"))
            folder = Path(sys.argv[1])
        else:
            runs = [run(seed, Path(scratch) / str(seed)) for seed in SEEDS]
            report, folder = {**conditions(), "runs": runs}, Path(scratch) / str(SEEDS[0])
        report["served"] = {**conditions(), "files": served(folder, Path(scratch))}
    (DOCS / "images.md").write_text(page(report), encoding="utf-8")
    (DOCS / "images.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
