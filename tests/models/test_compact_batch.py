"""A batch without padding, shared prompts once, against the rows one by one: log-probabilities and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from document_models import CLASSES, text_model, use_small_blocks

from gemma_tune.models.kernels import compact_batch
from gemma_tune.models.kernels.compact_batch import compact, computed_tokens
from gemma_tune.models.kernels.document_attention import by_document
from gemma_tune.models.kernels.label_positions import at_labels

# Prompts, and the lengths of each one's completions: beyond the window of 16 and the blocks, within, and of one token
GROUPS = ((40, (3, 25, 1, 7, 18)), (9, (4, 30)), (1, (6, 2)))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch, 32)
    monkeypatch.setattr(compact_batch, "_LONG", 100)


@pytest.fixture(scope="module", params=CLASSES)
def model(request: pytest.FixtureRequest) -> Any:
    return text_model(request.param, "eager")


def batch(shared: int = 0) -> dict[str, torch.Tensor]:
    """Rows of `GROUPS`, all of which begin with so many tokens alike."""
    draw = torch.Generator().manual_seed(4)
    system = torch.randint(3, 1500, (shared,), generator=draw).tolist()
    rows = []
    for prompt_length, lengths in GROUPS:
        prompt = system + torch.randint(3, 1500, (prompt_length,), generator=draw).tolist()
        rows += [(prompt, torch.randint(3, 1500, (n,), generator=draw).tolist()) for n in lengths]
    rows = rows[::2] + rows[1::2]  # groups don't lie side by side
    before, after = (max(len(row[n]) for row in rows) for n in range(2))
    ids, labels, mask = [], [], []
    for prompt, completion in rows:
        left, right = before - len(prompt), after - len(completion)
        ids.append([0] * left + prompt + completion + [0] * right)
        labels.append([-100] * before + completion + [-100] * right)
        mask.append([0] * left + [1] * (len(prompt) + len(completion)) + [0] * right)
    found = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    return {name: torch.tensor(rows) for name, rows in found.items()}


def scores(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = model.lm_head(hidden).float()
    if cap := getattr(model.config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]


def one_by_one(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of each row without padding, one after the other."""
    found = []
    for ids, labels, mask in zip(inputs["input_ids"], inputs["labels"], inputs["attention_mask"].bool(), strict=True):
        row, wanted = ids[mask][None], labels[mask][1:]
        hidden = model.base_model(input_ids=row, use_cache=False).last_hidden_state[0, :-1]
        found.append(scores(model, hidden[wanted != -100], wanted[wanted != -100]))
    return torch.cat(found)


def in_short(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    short = compact(inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
    assert short is not None and short.input_ids.shape[1] % 16 == 0  # filled up
    read = short.shift_labels != -100
    with by_document(model), at_labels(model, read) as places:
        hidden = model.base_model(**short.inputs(), use_cache=False).last_hidden_state
    found = scores(model, hidden[read if places is None else places.read], short.shift_labels[read])
    values = torch.zeros(read.shape).masked_scatter(read, found)
    labels = inputs["labels"][:, 1:]
    return short.in_batch(values, labels.shape)[labels != -100]


def gradients(model: Any, log_probs: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (log_probs * torch.linspace(-1, 1, len(log_probs))).sum().backward()  # of either sign, as advantages
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("shared", [0, 50])
def test_log_probs_and_gradients(model: Any, shared: int) -> None:
    inputs = batch(shared)
    expected = one_by_one(model, inputs)
    theirs = gradients(model, expected)
    found = in_short(model, inputs)
    ours = gradients(model, found)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=3e-5)
    whole = sum(gradient.norm() ** 2 for gradient in theirs.values()) ** 0.5
    apart = {name: (ours[name] - gradient).norm() for name, gradient in theirs.items()}
    assert sum(x**2 for x in apart.values()) ** 0.5 <= 2e-5 * whole
    assert all(x <= 1e-4 * theirs[name].norm() + 1e-5 for name, x in apart.items())


def test_compact_form() -> None:
    ids = torch.tensor([[0, 7, 8, 9, 4, 5], [7, 8, 9, 6, 0, 0], [7, 3, 2, 2, 0, 0]])
    labels = torch.tensor([[-100] * 4 + [4, 5], [-100] * 3 + [6, -100, -100], [-100] * 6])
    found = compact(ids, (ids > 0).long(), labels)
    assert found is not None
    assert found.input_ids.tolist() == [[7, 8, 9, 4, 9]]  # the last token of a row predicts nothing
    assert found.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert found.shift_labels.tolist() == [[-100, -100, 4, 5, 6]]
    values = found.in_batch(torch.tensor([[1.0, 2, 3, 4, 5]]), torch.Size((3, 5)))
    assert values.tolist() == [[0, 0, 0, 3, 4], [0, 0, 5, 0, 0], [0] * 5]


def test_rows_share_what_leaves_the_fewest_tokens() -> None:
    """A beginning of all, or longer ones of some; not so few that they aren't worth their parts."""
    system, tail = list(range(10, 30)), list(range(40, 45))

    def tokens(*beginnings: list[int]) -> int:
        rows = [[*start, n + 100, *tail] for n, start in enumerate(beginnings)]
        width = 2 * max(map(len, rows))  # as much padding, so that there is a compact form
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        labels = torch.where((ids >= 40) & (ids < 45), ids, -100)
        found = compact(ids, (ids > 0).long(), labels)
        assert found is not None
        return found.input_ids.shape[1]

    own = len(tail)  # a row's own tokens: its number and all but the last label
    assert tokens(system) == 20 + own
    assert tokens(system, system) == 19 + 2 * (1 + own)
    assert tokens([*system, 1, 2], [*system, 3, 4], system) == 19 + 3 * (1 + own) + 4
    longer = [*system, *range(200, 230)]
    assert tokens(longer, system, longer) == min(49 + 2 * (1 + own) + 20 + own, 19 + 3 * (1 + own) + 60)
    assert tokens(longer[:2] + [5] * 40, longer[:2] + [6] * 40) == 2 * (42 + own)


def test_rows_that_share_nothing() -> None:
    ids = torch.tensor([[7, 8, 9, 4, 0, 0], [7, 8, 9, 6, 5, 0]])
    labels = torch.where(torch.arange(6) < 3, -100, ids).masked_fill(ids == 0, -100)
    found = compact(ids, (ids > 0).long(), labels, share=False)
    assert found is not None and found.input_ids.tolist() == [[7, 8, 9, 7, 8, 9, 6]]


def test_nothing_that_saves_nothing() -> None:
    ids = torch.arange(3, 63).view(2, 30)
    labels = ids.clone()
    labels[:, :5] = -100
    assert compact(ids, None, labels) is None  # nothing in common
    none = compact(ids, None, torch.full_like(ids, -100))
    assert none is not None and none.input_ids.numel() == 1  # a way for gradients
    labels[:, :20] = -100
    assert compact(ids, (torch.arange(30) < torch.tensor([[30], [9]])).long(), labels) is not None  # padding
    assert compact(ids[:1].expand(2, -1), None, labels[:1].expand(2, -1)) is not None


@pytest.mark.parametrize("shared", [0, 20])
def test_tokens_that_are_computed(shared: int) -> None:
    """As many as the compact form has without what fills it up; all places where it isn't worth it."""
    inputs = batch(shared)
    short = compact(inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
    masks = inputs["attention_mask"].bool()
    rows = [
        (ids[mask].tolist(), labels[mask].tolist())
        for ids, labels, mask in zip(inputs["input_ids"], inputs["labels"], masks, strict=True)
    ]
    count = computed_tokens(rows)
    assert short is not None and short.input_ids.shape[1] == count + -count % 16
    unlike = [([n] * 20, [-100] * 19 + [n]) for n in range(3)]
    assert computed_tokens(unlike) == 3 * 20
