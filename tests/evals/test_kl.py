"""The divergence in pieces, and what is said of a reference that can't be used."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from gemma_tune.cli.compose import compose_config
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.errors import UserError
from gemma_tune.evals.base import Inputs
from gemma_tune.evals.kl import kl_and_agreement, prepare, reference_of


def test_pieces_are_the_whole() -> None:
    """More positions than one piece has, against torch's own."""
    p, q = torch.randn(2, 600, 40, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    kl, same = kl_and_agreement(p, q)
    whole = torch.nn.functional.kl_div(q.double(), p.double(), reduction="none", log_target=True).sum(-1)
    assert kl.dtype == torch.float64 and torch.allclose(kl, whole, rtol=1e-12)
    assert torch.equal(same, p.argmax(-1) == q.argmax(-1))


@pytest.mark.parametrize(("place", "whose"), [(0, "the reference"), (1, "the model")])
def test_nan_is_an_error(place: int, whose: str) -> None:
    pair = [torch.zeros(3, 4).log_softmax(-1) for _ in range(2)]
    pair[place][2, 1] = math.nan
    with pytest.raises(ValueError, match=f"{whose} gives NaN as a log-probability"):
        kl_and_agreement(*pair)


def test_the_reference_is_spoken_of_by_its_key(tmp_path: Path) -> None:
    for name, message in (("owner/name", "^no network: "), (str(tmp_path), "has no config.json")):
        cfg = compose_config("evaluate", ["eval.evaluators=[kl]", f"eval.kl.reference={name}"])
        with pytest.raises(UserError, match=message) as error:
            prepare(Inputs(cfg, None, TokenizedRows(), {}))
        assert f"eval.kl.reference={name}: " in str(error.value)
        assert "model.model_name_or_path" not in str(error.value)


def test_the_revision_is_the_models_own() -> None:
    words = ["eval.evaluators=[kl]", "eval.kl.reference=a/b", "model.revision=abc"]
    other, source = reference_of(compose_config("evaluate", words))
    assert (other.revision, source.revision, source.base) == (None, None, "a/b")
