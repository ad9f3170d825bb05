"""Several sets mixed: the shares, the order, where it ends."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from row_files import read_records, turn, write

from gemma_tune.config import DataConfig
from gemma_tune.data.split import split_rows


def mixed(folder: Path, sizes: dict[str, int], **options: object) -> tuple[list[str], DataConfig]:
    """The questions in the order they come, of sets of so many rows."""
    files: dict[str, str | None] = {
        name: write(folder / f"{name}.jsonl", *({"messages": turn(f"{name} {i}", "Answer")} for i in range(n)))
        for name, n in sizes.items()
    }
    data = DataConfig(train_files=files, **options)  # type: ignore[arg-type]
    return [r.messages[0]["content"] for r in read_records(data, seed=0)[0] if r.messages], data


def test_shares_over_ten_thousand_rows(tmp_path: Path) -> None:
    weights = {"a": 0.5, "b": 0.2, "c": 0.3}
    said, _ = mixed(tmp_path, dict.fromkeys(weights, 6000), weights=weights, max_train_samples=10_000)
    assert len(said) == 10_000
    for upto in (100, 1000, 10_000):
        shares = Counter(text.split()[0] for text in said[:upto])
        assert all(abs(shares[name] / upto - weight) <= 1 / upto for name, weight in weights.items())
    for name in weights:  # each set in its own order, none twice
        assert [text for text in said if text.startswith(name)] == [
            f"{name} {i}" for i in range(int(weights[name] * 10_000))
        ]


def test_the_same_order_each_time(tmp_path: Path) -> None:
    first, data = mixed(tmp_path, {"a": 50, "b": 30}, weights={"a": 2, "b": 1})
    assert first == [r.messages[0]["content"] for r in read_records(data, seed=0)[0] if r.messages]


def test_rows_held_out_of_a_set_that_is_begun_again(tmp_path: Path) -> None:
    """They are measured once, and a row that is given again is no row that stands twice."""
    _, data = mixed(tmp_path, {"a": 10, "b": 100}, stopping_strategy="all_exhausted", validation_split_percentage=20)
    train, held_out = read_records(data, seed=0)
    for records in (held_out, list({r.where: r for r in train}.values())):
        assert len({r.where for r in records}) == len(records)
    assert len({r.where for r in train} | {r.where for r in held_out}) == 110
    split = split_rows(data, 0)
    assert len(list(split.train())) > 110 and split.repeated_at == []


@pytest.mark.parametrize(("strategy", "counts"), [("first_exhausted", (10, 10)), ("all_exhausted", (30, 30))])
def test_where_it_ends(tmp_path: Path, strategy: str, counts: tuple[int, int]) -> None:
    said, _ = mixed(tmp_path, {"a": 10, "b": 30}, stopping_strategy=strategy)
    found = Counter(text.split()[0] for text in said)
    assert abs(found["a"] - counts[0]) <= 1 and abs(found["b"] - counts[1]) <= 1
    if strategy == "all_exhausted":
        assert {text for text in said if text.startswith("b")} == {f"b {i}" for i in range(30)}
