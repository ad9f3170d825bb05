"""How much of what quantization costs is gone after training."""

from __future__ import annotations

import pytest
import torch

from gemma_tune.quant.metrics import recovered_share


def test_recovered_share() -> None:
    share, low, high = recovered_share([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert share == pytest.approx(0.5) and low == pytest.approx(0.5) and high == pytest.approx(0.5)
    share, low, high = recovered_share([2.0, 4.0, 6.0, 1.0], [1.0, 1.0, 5.0, 1.0])
    assert share == pytest.approx(5 / 13) and low < share < high
    nats, tokens = ([3.0, 3.0], [2.5, 2.5], [2.0, 2.0]), [2, 2]
    e = [torch.tensor(x[0] / 2).exp().item() for x in nats]
    assert recovered_share(*nats, tokens)[0] == pytest.approx((e[0] - e[1]) / (e[0] - e[2]))
    assert str(recovered_share([1.0], [1.0], [1.0])[0]) == "nan"
