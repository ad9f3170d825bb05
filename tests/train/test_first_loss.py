"""The loss of the first step equals one computed with plain Transformers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from reference import load_plain, mean_loss, rows_for
from short_runs import losses, short_run

from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"


@pytest.fixture(scope="module")
def plain_chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve conversations of user and assistant only, a third of them with two or three turns."""
    file = tmp_path_factory.mktemp("rows") / "plain.jsonl"
    requests = iter((ASSETS / "sample" / "train.jsonl").read_text("utf-8").splitlines())
    chats = []
    for turns in [1] * 8 + [2, 2, 3, 3]:
        messages: list[dict[str, str]] = []
        for line in itertools.islice(requests, turns):
            said = json.loads(line)["messages"][0]["content"]
            messages += [{"role": "user", "content": said}, {"role": "assistant", "content": f"You said: {said}"}]
        chats.append({"messages": messages})
    file.write_text("\n".join(map(json.dumps, chats)) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("recipe", "packing"),
    [
        ("full_sft", False), ("lora_sft", True), pytest.param("qlora_sft", False, marks=pytest.mark.slow),
        pytest.param("full_sft", True, marks=pytest.mark.slow),
        pytest.param("lora_sft", False, marks=pytest.mark.slow),
        pytest.param("qlora_sft", True, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_first_loss(recipe: str, packing: bool, plain_chats: Path, tmp_path: Path) -> None:
    """One batch holds every row, so the order of the rows doesn't matter."""
    overrides = ["data=messages", f"data.train_file={plain_chats}", "train.per_device_train_batch_size=12"]
    if packing:
        overrides += ["train.packing=true", "train.max_length=256"]
    short_run(recipe, tmp_path / "run", *overrides, "eval=none", "export=merged", steps=1)
    expected = mean_loss(load_plain(TINY, recipe == "qlora_sft"), rows_for(TINY, plain_chats, 12))
    assert losses(tmp_path / "run")[0] == pytest.approx(expected, rel=1e-5)


def test_accumulation_counts_tokens(plain_chats: Path, tmp_path: Path) -> None:
    """12 × 1 rows accumulated are 1 × 12 rows: each token counts the same, whatever batch it stands in."""
    overrides = ["data=messages", f"data.train_file={plain_chats}", "eval=none", "eval.num_samples=0", "export=none"]
    found = []
    for batch, accumulation in ((12, 1), (1, 12)):
        words = [f"train.per_device_train_batch_size={batch}", f"train.gradient_accumulation_steps={accumulation}"]
        folder = tmp_path / str(batch)
        short_run("lora_sft", folder, *overrides, *words, steps=2)
        found.append(losses(folder))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
