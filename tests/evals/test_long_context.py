"""Long-context rows under a limit, and what is counted of the answers."""

from __future__ import annotations

from collections import Counter
from typing import Any

from transformers import AutoTokenizer

from gemma_tune.cli.compose import compose_config
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.evals.base import Inputs
from gemma_tune.evals.haystack import HaystackRow
from gemma_tune.evals.long_context import equal_shares, prepare
from gemma_tune.run.paths import ASSETS

CELLS = [("needle", 512), ("needle", 1024), ("multi_key", 512), ("multi_key", 1024)]


def cells(n: int) -> list[HaystackRow]:
    return [
        HaystackRow(f"{kind}-{length}-{i}", kind, length, length, i / (n - 1), [], [])  # type: ignore[arg-type]
        for kind, length in CELLS
        for i in range(n)
    ]


def test_every_cell_has_an_equal_share_from_all_depths() -> None:
    for limit, share, depths in (
        (1, 1, [0.5]), (7, 1, [0.5]), (8, 2, [0, 1]), (12, 3, [0, 0.5, 1]), (20, 5, [0, 0.2, 0.5, 0.8, 1]),
        (44, 11, None), (400, 11, None),
    ):  # fmt: skip
        found = equal_shares(cells(11), limit)
        assert Counter((row.kind, row.length) for row in found) == dict.fromkeys(CELLS, share)
        assert [row.id for row in found] == [row.id for row in cells(11) if row in found]  # in their order
        if depths:
            assert [row.depth for row in found[:share]] == depths


class Silent:
    """An engine that says nothing, and stops at every second prompt."""

    max_length, stops = 600, frozenset([1])

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")

    def answers(self, prompts: Any, max_new_tokens: int, name: str) -> list[list[int]]:
        return [[5, 1] if i % 2 else [5] for i in range(len(prompts))]


def test_figures() -> None:
    engine: Any = Silent()
    words = ["eval=long_context", "eval.long_context.lengths=[512,1024]", "eval.long_context.num_samples=3"]
    run = prepare(Inputs(compose_config("evaluate", words), engine.tokenizer, TokenizedRows(), {}))
    names = {f"{k}_{n}_accuracy" for k in ("needle", "multi_key", "variable_tracking") for n in (512, 1024)}
    for limit, asked in ((None, 18), (6, 6), (1, 6)):
        found = run(engine, limit)
        assert set(found.rows) == names and sum(map(len, found.rows.values())) == asked
        assert set(found.figures) == names | {"long_context_stopped", "long_context_rows_beyond"}
        assert found.figures["long_context_stopped"] == 0.5
        assert found.figures["long_context_rows_beyond"] == asked / 2
