"""All speed-ups at once, in a model whose layers share keys and values: two processes are one, a run goes on exactly.

Their short forms: `test_two.py`, and runs of `test_every_recipe.py`, where all but the last two are on, as on any CPU.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import small_models
from resumed import lines, stopped_at, weights
from runs import ALL_ON, assert_equal, started, steps
from short_runs import short_run

LORA = ["adapter=lora", "train.learning_rate=1e-2"]
REWARDED = [
    "train.num_generations=4", "train.max_completion_length=12", "data.max_train_samples=32", "train.beta=0.04",
    "reward=none",
]  # fmt: skip
REWARD = """
def spelled(completions):
    return [sum(map(ord, completion)) % 7 / 7 for completion in completions]
"""
CASES = {
    "sft": ["lora_sft", *LORA],
    "full": ["full_sft", "train.learning_rate=1e-3"],
    "packed": ["lora_sft", *LORA, "train.packing=true", "train.max_length=256", "data.max_train_samples=200"],
    "grpo": ["grpo", *LORA, *REWARDED],
}
# What turns off one of them, and a function that is called where it is on
OFF = {
    "train.tiled_head=false": "gemma_tune.train.scored_forward.token_log_probs",
    "model.attn_implementation=sdpa": "gemma_tune.models.kernels.document_attention.block_attention",
    "train.compact_batches=false": "gemma_tune.train.scored_forward.compact",
    "model.layers_at_labels=false": "gemma_tune.models.kernels.label_positions.positions_of",
    "model.fused_layers=false": "gemma_tune.models.kernels.training_layers._norm",
    "train.keep_freed_memory=false": "gemma_tune.models.contexts.keep_freed_memory",
    "data.dataset_num_proc=1": "gemma_tune.data.render_ahead.RenderProcess",
}
# Turned off in the files that the page names: of 4-bit weights, texts and completions
ELSEWHERE = {
    "model.keep_decoded=false",
    "data.encode_by_word=false",
    "train.prefix_caching=false",
    "train.skip_zero_advantages=false",
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The runs of a small Gemma 4 E2B: recipe, and what is set."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "mine.py").write_text(REWARD, encoding="utf-8")
    model = f"model.model_name_or_path={small_models.save('gemma4_e2b', folder / 'model')}"
    rewarded = [f"reward.functions.spelled={folder}/mine.py:spelled"]
    return {n: [*words, *ALL_ON, model, *(rewarded if n == "grpo" else [])] for n, words in CASES.items()}


@pytest.fixture(scope="module")
def both(cases: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The runs of one process and those of two."""
    folder = tmp_path_factory.mktemp("processes")
    one, two = (
        {n: [*words, f"train.per_device_train_batch_size={rows}"] for n, words in cases.items()} for rows in (8, 4)
    )
    return started(1, one, folder / "one"), started(2, two, folder / "two")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(name: str, both: Any) -> None:
    """Gemma 4 doesn't scale the scores of its attention: norms of later steps are some 1e-5 apart, of any kernel."""
    assert_equal(name, *(runs[name] for runs in both), norms=2 if name == "grpo" else 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_whole_one(name: str, cases: dict[str, list[str]], tmp_path: Path) -> None:
    recipe, *words = cases[name]
    words += [
        "train.save_steps=1",
        "train.save_total_limit=null",
        "eval=none",
        "eval.num_samples=0",
        "train.bf16=false",
    ]
    words += ["export.dtype=float32", "train.per_device_train_batch_size=4"]
    short_run(recipe, tmp_path / "whole", *words)
    stopped_at(tmp_path / "whole", tmp_path / "begun", 1)
    short_run(recipe, tmp_path / "begun", *words)
    assert lines(tmp_path / "begun") == lines(tmp_path / "whole")
    assert weights(tmp_path / "begun") == weights(tmp_path / "whole") != {}


def test_the_page_names_all() -> None:
    """Each row of its table has a key, or says why it has none, and names files of tests."""
    lines = (Path(__file__).parents[2] / "docs" / "speed.md").read_text("utf-8").splitlines()
    below = itertools.dropwhile(lambda line: line[:1] != "|", lines)
    first = itertools.takewhile(lambda line: line[:1] == "|", below)
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in first]
    assert table[0][-2:] == ["off by", "test"]
    assert {row[-2].strip("`") for row in table[2:] if "`" in row[-2]} == {*OFF, *ELSEWHERE}
    assert all("tests/" in row[-1] for row in table[2:])


def logged(recipe: str, folder: Path, *words: str) -> tuple[list[dict[str, Any]], set[str]]:
    """Two steps, and which functions of `OFF` were called."""
    called: set[str] = set()

    def watched(name: str) -> Any:
        inner = resolve_name(name)
        return lambda *args, **kwargs: (called.add(name), inner(*args, **kwargs))[1]

    with pytest.MonkeyPatch.context() as patch:
        for name in OFF.values():
            patch.setattr(name, watched(name))
        short_run(recipe, folder, *words, "eval=none", "eval.num_samples=0", "export=none", steps=2)
    return steps(folder), called


@pytest.mark.slow
@pytest.mark.parametrize(("name", "off"), [*(("sft", (word,)) for word in OFF), ("grpo", tuple(OFF)[:-1])])
def test_off_by_its_key(name: str, off: tuple[str, ...], cases: dict[str, list[str]], tmp_path: Path) -> None:
    """Losses to 1e-6; the norm as far as Gemma 4's kernels are apart."""
    recipe, *words = cases[name]
    words += ["train.per_device_train_batch_size=4", "train.bf16=false", "train.max_grad_norm=0"]
    (expected, on), (found, left) = (logged(recipe, tmp_path / str(len(w)), *words, *w) for w in ((), off))
    assert on >= {OFF[word] for word in off} and not left & {OFF[word] for word in off}
    for one, two in zip(expected, found, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6, abs=1e-6)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
