"""The loss of the first step equals one computed with plain Transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from reference import load_plain, mean_loss, rows_for
from short_runs import losses, short_run

from gemma_tune.paths import ASSETS

TINY = ASSETS / "tiny"


@pytest.fixture(scope="module")
def plain_chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve conversations of user and assistant only, some with several turns."""
    import json

    file = tmp_path_factory.mktemp("rows") / "plain.jsonl"
    rows = [json.loads(line) for line in (ASSETS / "sample" / "train.jsonl").read_text("utf-8").splitlines()]
    chats = [r for r in rows if "tools" not in r and {m["role"] for m in r["messages"]} == {"user", "assistant"}]
    several = [r for r in chats if len(r["messages"]) > 2][:4]
    file.write_text("\n".join(json.dumps(r) for r in [*chats[:8], *several]) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("recipe", ["full_sft", "lora_sft", "qlora_sft"])
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
    overrides = ["data=messages", f"data.train_file={plain_chats}", "eval=none"]
    found = []
    for batch, accumulation in ((12, 1), (1, 12)):
        words = [f"train.per_device_train_batch_size={batch}", f"train.gradient_accumulation_steps={accumulation}"]
        folder = tmp_path / str(batch)
        short_run("lora_sft", folder, *overrides, *words, steps=2)
        found.append(losses(folder))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
