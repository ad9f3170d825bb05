"""What processes tell one another, without a second one."""

from __future__ import annotations

import pytest

from gemma_tune import process_failures, processes
from gemma_tune.config import Config
from gemma_tune.errors import EndedByOthers, RunError, UserError
from gemma_tune.evals.evaluation import evaluate
from gemma_tune.run.identity import identity, identity_of


def test_no_evaluator_hides_that_another_process_has_ended() -> None:
    """An evaluator that fails is noted, and the run goes on; after the end of another process nothing does."""

    def ended(engine: object, limit: int | None) -> None:
        raise EndedByOthers("rank 1: no such thing")

    def broken(engine: object, limit: int | None) -> None:
        raise RunError("no such thing")

    assert evaluate({"mine": broken}, None).failures == {"mine": "no such thing"}  # type: ignore[arg-type,dict-item]
    with pytest.raises(EndedByOthers):
        evaluate({"mine": ended}, None)  # type: ignore[arg-type,dict-item]


@pytest.mark.parametrize(
    ("said", "means"),
    [
        (
            "[/x/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 18000ms for recv",
            "did not answer within launch.timeout_minutes",
        ),
        ("[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5", "has ended without a word"),
        ("CUDA out of memory", None),
        ("https://example.com timed out", None),
    ],
)
def test_what_a_broken_connection_means(said: str, means: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an error of the connection is another process's."""
    monkeypatch.setattr(processes.group, "joined", True)
    monkeypatch.setattr(process_failures._own, "ends", False)  # it stays set, and then signals end nothing
    monkeypatch.setattr(process_failures, "failure_of_others", lambda wait_seconds=0.0: None)
    with (
        pytest.raises(EndedByOthers if means else RuntimeError, match=means or said),
        process_failures.ending_together(),
    ):
        raise RuntimeError(said)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("items", range(7))
def test_shares_are_everything_once(count: int, items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where they are filled up, all have as many."""
    monkeypatch.setattr(processes, "several", lambda: count > 1)
    shares, equal = [], []
    for rank in range(count):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(count))
        shares.append(processes.share(range(items)))
        equal.append(processes.share(range(items), equal=True))
    assert sorted(i for share in shares for i in share) == list(range(items))
    assert len({len(share) for share in equal}) == 1
    assert all(share[: len(mine)] == mine for share, mine in zip(equal, shares, strict=True))


def test_the_batch_of_all_processes_is_what_makes_a_run() -> None:
    """1 × 8, 2 × 4, 2 × 2 × 2 passes and 8 × 1 are one run; another batch is another."""
    runs = [(1, 1, 8, 1), (2, 1, 4, 1), (2, 1, 2, 2), (2, 2, 2, 1), (8, 1, 1, 1)]
    trees = []
    for processes_, nodes, rows, passes in runs:
        cfg = Config(recipe="lora_sft", method="sft")
        cfg.launch.num_processes, cfg.launch.num_nodes = processes_, nodes
        cfg.train.per_device_train_batch_size, cfg.train.gradient_accumulation_steps = rows, passes
        trees.append(identity(cfg))
    assert all(tree == trees[0] for tree in trees)
    cfg.train.per_device_train_batch_size = 2
    assert identity(cfg) != trees[0]
    kto = {"method": "kto", "train": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}}
    more = {"method": "kto", "train": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}}
    assert identity_of(kto) != identity_of(more)  # its KL is that of one forward pass


def test_a_mistake_of_another_process_is_whole() -> None:
    """Pickled and back."""
    import pickle

    error = pickle.loads(pickle.dumps(UserError("one", "two")))
    assert error.problems == ["one", "two"] and str(error) == str(UserError("one", "two"))
