"""How prompts are put into batches."""

from __future__ import annotations

import random

from gemma_tune.engines.generate import batches


def test_batches_are_bounded_by_rows_and_by_tokens() -> None:
    draw = random.Random(0)
    for _ in range(200):
        lengths = sorted(draw.choice([20, 3000, 9000, 40000]) + draw.randrange(100) for _ in range(draw.randrange(40)))
        size = draw.randrange(1, 20)
        found = list(batches(range(len(lengths)), lengths, size))
        assert [place for batch in found for place in batch] == list(range(len(lengths)))
        for batch in found:
            assert len(batch) == 1 or (len(batch) <= size and len(batch) * lengths[batch[-1]] <= 32768)
            following = batch[-1] + 1
            if following < len(lengths) and len(batch) < size:  # one more wouldn't have fitted
                assert (len(batch) + 1) * lengths[following] > 32768


def test_short_prompts_go_by_the_batch_size() -> None:
    assert [len(b) for b in batches(range(20), [100] * 20, 8)] == [8, 8, 4]
    assert [len(b) for b in batches(range(5), [8192] * 5, 8)] == [4, 1]
