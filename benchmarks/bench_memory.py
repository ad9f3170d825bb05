"""`make bench-memory`: the estimate of memory against measured peaks of every recipe, written to docs/benchmarks/.

Each training is a process of its own, of few steps, on a CPU: random weights in a shape of Gemma 3, rows as long as
`train.max_length`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shape_270m
from figures import DOCS, conditions, conditions_line, table
from memory_lines import train
from step_lines import lines_of
from tqdm import tqdm
from transformers import AutoTokenizer

import gemma_tune

HERE = Path(__file__).resolve().parent
SHAPE = {"num_hidden_layers": 8, "vocab_size": 32_768}  # of the 270M otherwise: 66 million weights
LENGTH, COMPLETION, STEPS = 512, 128, 3
MOST = 0.15
REWARD = "def own(completions, records):\n    return [float(len(c) % 7) for c in completions]\n"


@dataclass(frozen=True)
class Case:
    """A recipe, what is set beside it, and the rows that it reads."""

    recipe: str
    words: tuple[str, ...] = ()
    rows: str = "answers"


_LORA, _AGAIN = "adapter=lora", "train.gradient_checkpointing=true"
_RL = (
    "train.per_device_train_batch_size=8", "train.num_generations=8", f"train.max_completion_length={COMPLETION}",
    "train.extra.generation_kwargs={min_new_tokens: " + str(COMPLETION) + "}", "reward=none",
)  # fmt: skip
_QAT = ("quant.max_kl_samples=1", "export.quality_samples=1")
_INT4 = (
    "export=gguf", "eval=default", "data.validation_split_percentage=20", f"quant.stage2.max_steps={STEPS}",
)  # fmt: skip
CASES = {
    "lora_sft": Case("lora_sft"),
    "lora_sft, float32": Case("lora_sft", ("model.dtype=float32",)),
    "lora_sft, recomputed": Case("lora_sft", (_AGAIN,)),
    "lora_sft, packed": Case("lora_sft", ("train.packing=true",)),
    "lora_sft, SDPA, TRL's head": Case(
        "lora_sft", ("model.attn_implementation=sdpa", "train.tiled_head=false", "train.compact_batches=false")
    ),
    "lora_sft, trained tokens": Case("lora_sft", ("adapter.trainable_token_indices=[5,6,7]",)),
    "qlora_sft": Case("qlora_sft"),
    "full_sft": Case("full_sft"),
    "full_sft, bfloat16": Case("full_sft", ("train.bf16=true",)),
    "full_sft, recomputed": Case("full_sft", (_AGAIN,)),
    "full_sft, adafactor": Case("full_sft", ("train.optim=adafactor",)),
    "dpo": Case("dpo", (), "pairs"),
    "dpo, lora": Case("dpo", (_LORA,), "pairs"),
    "kto": Case("kto", (), "labelled"),
    "kto, lora": Case("kto", (_LORA,), "labelled"),
    "reward_model": Case("reward_model", (), "pairs"),
    "reward_model, lora": Case("reward_model", (_LORA,), "pairs"),
    "grpo": Case("grpo", _RL, "prompts"),
    "grpo, lora, beta": Case("grpo", (*_RL, _LORA, "train.beta=0.04"), "prompts"),
    "grpo, beta": Case("grpo", (*_RL, "train.beta=0.04"), "prompts"),
    # All completions here are cut off, which DAPO leaves out
    "dapo": Case("dapo", (*_RL, "train.mask_truncated_completions=false"), "prompts"),
    "dr_grpo": Case("dr_grpo", _RL, "prompts"),
    "gspo": Case("gspo", _RL, "prompts"),
    "rloo": Case("rloo", _RL, "prompts"),
    "qat": Case("qat", _QAT),
    "qat, live teacher": Case("qat", (*_QAT, "quant.teacher=live")),
    "qat, lora": Case("qat", (*_QAT, _LORA)),
    "tune_to_int4": Case("tune_to_int4", (*_QAT, *_INT4)),
}  # fmt: skip


def write_rows(folder: Path, model: Path, count: int = 12) -> None:
    """Rows of each kind, as long as a training takes them, to a few tokens; they share nothing but the template."""
    tokenizer, draw = AutoTokenizer.from_pretrained(model), random.Random(0)
    words = [
        "the",
        "train",
        "from",
        "north",
        "comes",
        "in",
        "at",
        "nine",
        "and",
        "leaves",
        "again",
        "half",
        "past",
        "ten",
        "as",
        "it",
        "does",
        "every",
        "day",
    ]

    def text(tokens: int) -> str:
        ids = tokenizer(" ".join(draw.choices(words, k=tokens)), add_special_tokens=False)["input_ids"]
        found: str = tokenizer.decode(ids[:tokens]).strip()
        return found

    def rows(kind: str, n: int) -> dict[str, Any]:
        if kind == "prompts":
            return {"question": text(LENGTH - 40), "answer": "#### 1"}
        prompt, answer = text(24), text(LENGTH - 40)
        more = {"pairs": {"chosen": answer, "rejected": text(LENGTH - 40)}}
        more["labelled"] = {"completion": answer, "label": n % 2 == 0}
        return {"prompt": prompt} | more.get(kind, {"completion": answer})

    for kind in _READ:
        lines = [json.dumps(rows(kind, n)) + "\n" for n in range(count)]
        (folder / f"{kind}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "mine.py").write_text(REWARD, encoding="utf-8")


# One process imports everything and forks one for each case
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["memory_lines", "trl", "peft", "bitsandbytes", "gemma_tune.cli.runner"])
_ALONE = threading.Lock()  # standard output is the process's
_READ = {
    "answers": ["data=prompt_completion"],
    "pairs": ["data=preference"],
    "labelled": ["data=unpaired_preference"],
    "prompts": ["data=columns", "data.prompt_column=question", "data.completion_column=answer"],
}


def words_of(case: Case, scratch: Path) -> list[str]:
    """The words of the command line, but for the recipe and the run folder."""
    words = [
        f"model.model_name_or_path={scratch}/model", "model.device=cpu", *_READ[case.rows],
        f"data.train_file={scratch}/{case.rows}.jsonl", "data.validation_split_percentage=0", "tracker=none",
        "eval=none", "export=none", f"train.max_steps={STEPS}", "train.save_steps=1000", f"train.max_length={LENGTH}",
        "train.per_device_train_batch_size=2", "train.warmup_steps=0", "train.bf16=false",
        *(["train.packing=false"] if case.rows == "answers" else []), *case.words,
    ]  # fmt: skip
    if case.rows == "prompts":
        words = [w for w in words if not w.startswith("train.max_length")]
        words.append(f"reward.functions.own={scratch}/mine.py:own")
    return list({word.split("=", 1)[0]: word for word in words}.values())


def estimated(case: Case, scratch: Path) -> dict[str, float]:
    """The estimate by part, MiB."""
    with _ALONE, contextlib.redirect_stdout(io.StringIO()):
        planned = gemma_tune.run(case.recipe, [*words_of(case, scratch), "dry_run=true"]).metrics["memory_gib"]
    return {part: gib * 1024 for part, gib in planned.items()}


def measure(case: Case, scratch: Path, name: str) -> dict[str, Any]:
    """What was measured, MiB; of several trainings the one that takes most."""
    begun, folder = time.perf_counter(), scratch / name.replace(" ", "_").replace(",", "")
    file, counts = folder.with_suffix(".txt"), case.rows != "prompts"
    command = [f"recipe={case.recipe}", *words_of(case, scratch), f"output_dir={folder}"]
    process = _FORKED.Process(target=train, args=(command, file, counts))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{name}: {file.read_text('utf-8')[-3000:]}")
    said = lines_of(file.read_text("utf-8"))
    trainings = [before | last for before, last in zip(said[::2], said[1::2], strict=True)]
    for one in trainings:
        one["measured"] = one["peak"] - one["baseline"]
    largest = max(trainings, key=lambda one: one["measured"])
    return {**largest, "seconds": time.perf_counter() - begun}


_HEAD = ("recipe", "estimate", "measured", "estimate is off", "tensors")


def as_markdown(report: dict[str, Any]) -> str:
    """The table."""
    rows = []
    for name, found in report["cases"].items():
        parts = ", ".join(f"{part} {mib:,.0f}" for part, mib in found["estimate"].items() if part != "total")
        figures = [f"{found['estimate']['total']:,.0f}", f"{found['measured']:,.0f}", f"{found['off']:+.1%}"]
        rest = ["–" if found[n] is None else f"{found[n]:,.0f}" for n in ("tensors", "baseline", "peak")]
        rows.append(f"| {' | '.join([name, *figures, *rest, parts])} |")
    missing = ", ".join(f"`{name}`" for name in CASES if name not in report["cases"])
    worst = max((abs(found["off"]) for found in report["cases"].values()), default=0.0)
    return "\n".join([
        "# The estimate of memory, compared with measured peaks", "",
        f"Made by `make bench-memory` on {conditions_line(report)}", "",
        f"The shape of Gemma 3 270M with {SHAPE['num_hidden_layers']} layers and {SHAPE['vocab_size']:,} tokens, "
        f"random weights, on a CPU; batches of 2 rows of {LENGTH} tokens, pairs of twice as many, with rewards 8 "
        f"completions of {COMPLETION} tokens of a prompt of {LENGTH}; {STEPS} steps; each a process of its own.", "",
        "Rows are as long as `train.max_length` and share nothing but what a method shares by design: the answers of a "
        "pair and the completions of a group have one prompt. That is the work that the estimate is of.", "",
        "The peak is that of the process (VmHWM) over all steps but the last, without pages of files. Memory that was "
        "freed before training is handed back first (`malloc_trim`): kept, it would be taken for what the process "
        "holds anyway. The baseline is what it holds besides tensors after these steps, freed memory handed back: "
        "Python, the libraries and what they set up in a first step, and the rows. Measured is the peak less the "
        "baseline. Tensors are a second count, of the last step: the most bytes that torch's allocator had given out "
        "at once. The process needs more, since freed blocks lie between others in the heap. The estimate is that of "
        "`dry_run=true`. All in MiB.", "",
        table([*_HEAD, "baseline", "peak", "estimate by part"], rows), "",
        f"Required: at most {MOST:.0%} off. The largest here: {worst:.1%}.", "",
        *([f"Not measured yet: {missing}.", ""] if missing else []),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="cases whose names contain this; the others stay as they were measured before")
    parser.add_argument("--jobs", type=int, default=1, help="so many at once: memory doesn't depend on it")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    stored, known = DOCS / "memory.json", {}
    if options.only is not None:
        known = json.loads(stored.read_text("utf-8"))["cases"]
    failed = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as jobs:
        scratch = Path(folder)
        shape_270m.make(scratch / "model", **SHAPE)
        write_rows(scratch, scratch / "model")
        estimates = {name: estimated(case, scratch) for name, case in CASES.items()}
        chosen = [name for name in CASES if (options.only or "") in name]
        asked = {jobs.submit(measure, CASES[name], scratch, name): name for name in chosen}
        for done in tqdm(as_completed(asked), total=len(asked), desc="cases"):
            try:
                known[asked[done]] = done.result()
            except Exception as error:  # a case that fails costs no other
                failed.append(f"{asked[done]}: {error}")
                continue
            found = {name: known[name] | {"estimate": estimates[name]} for name in CASES if name in known}
            for one in found.values():
                one["off"] = one["estimate"]["total"] / one["measured"] - 1
            report = {**conditions(), "cases": found}  # after each, since all take half an hour
            stored.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            stored.with_suffix(".md").write_text(as_markdown(report), encoding="utf-8")
    if failed:
        sys.exit("bench-memory: not measured:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
