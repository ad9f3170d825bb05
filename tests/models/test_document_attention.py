"""Attention by documents against plain SDPA on rows by themselves: outputs and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from document_models import CLASSES, text_model, use_small_blocks
from small_models import MODELS

from gemma_tune.models.contexts import attention, training_attention
from gemma_tune.models.kernels import attention_plan, document_attention
from gemma_tune.models.kernels.compact_batch import compact
from gemma_tune.models.kernels.document_attention import by_document
from gemma_tune.models.kernels.documents import Documents, documents_of, grouped
from gemma_tune.models.kernels.label_positions import at_labels

LENGTHS = (5, 9, 70, 2, 41)  # short ones that go together, one beyond the window (16) and the blocks


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch, 48)  # the longest document is beyond it, the next is not


@pytest.fixture(scope="module", params=CLASSES)
def model(request: pytest.FixtureRequest) -> Any:
    return text_model(request.param)


def rows(lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(3, 1500, (1, n), generator=draw) for n in lengths]


def packed(some: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.cat(some, 1),
        "position_ids": torch.cat([torch.arange(row.shape[1]) for row in some])[None],
    }


def padded(some: list[torch.Tensor], left: bool) -> dict[str, torch.Tensor]:
    width = max(row.shape[1] for row in some)

    def filled(row: torch.Tensor, by: int) -> torch.Tensor:
        missing = width - row.shape[1]
        return torch.nn.functional.pad(row, (missing, 0) if left else (0, missing), value=by)

    return {
        "input_ids": torch.cat([filled(row, 0) for row in some]),
        "attention_mask": torch.cat([filled(torch.ones_like(row), 0) for row in some]),
        "position_ids": torch.cat([filled(torch.arange(row.shape[1])[None], 0) for row in some]),
    }


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def one_by_one(model: Any, some: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    logits = torch.cat([model(input_ids=row, use_cache=False).logits[0] for row in some])
    logits.logsumexp(-1).sum().backward()
    return logits.detach(), gradients(model)


@pytest.mark.parametrize("form", ["packed", "right", "left"])
def test_rows_by_themselves(model: Any, form: str) -> None:
    some = rows()
    expected, theirs = one_by_one(model, some)
    inputs = packed(some) if form == "packed" else padded(some, left=form == "left")
    with by_document(model):
        logits = model(**inputs, use_cache=False).logits
        logits = logits[inputs["attention_mask"].bool()] if "attention_mask" in inputs else logits[0]
        logits.logsumexp(-1).sum().backward()
    ours = gradients(model)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=2e-5)
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-6, name


def test_no_tensor_of_all_pairs(model: Any) -> None:
    """The largest tensor that the backward pass keeps has fewer entries than the pairs of tokens."""
    some = rows((300, 300, 300, 300))
    largest = 0

    def saw(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with by_document(model), torch.autograd.graph.saved_tensors_hooks(saw, lambda tensor: tensor):
        model.base_model(**packed(some), use_cache=False)
    assert largest < 1200**2 / 4


def test_generation_and_given_masks_are_plain(model: Any) -> None:
    row = rows()[2]
    expected = model.eval().generate(row, max_new_tokens=4, do_sample=False)
    mask = torch.ones(1, 1, row.shape[1], row.shape[1], dtype=torch.bool)  # everybody sees everybody
    given = {"full_attention": mask, "sliding_attention": mask}
    whole = model(input_ids=row, attention_mask=given, use_cache=False).logits
    with by_document(model):
        assert torch.equal(model.generate(row, max_new_tokens=4, do_sample=False), expected)
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=row, attention_mask=given, use_cache=False).logits, whole)
        trained = model(input_ids=row, attention_mask=given, use_cache=False).logits
        torch.testing.assert_close(trained, whole, rtol=1e-5, atol=2e-5)
    model.train()
    assert model.config._attn_implementation == "sdpa"
    assert not model.base_model._forward_pre_hooks


def test_short_documents_go_together() -> None:
    positions = torch.cat([torch.arange(n) for n in (5, 9, 70, 2, 41)])[None]
    found = documents_of(positions, None, (1, 127), "cpu")
    assert [(p.start, p.end, p.several) for p in found.groups[0]] == [
        (0, 14, True), (14, 84, False), (84, 86, False), (86, 127, False),
    ]  # fmt: skip
    some = found.at(torch.tensor([[3, 13, 14, 90]]))
    assert [(p.first, p.last) for p in some.groups[0]] == [(0, 2), (2, 3), (3, 3), (3, 4)]


def test_no_scores_of_long_documents_with_few_queries(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers at labels, and completions of a long prompt: full layers keep no scores of all keys either."""
    attention, widest = document_attention.block_attention, 0

    def block(*given: Any) -> torch.Tensor:
        nonlocal widest
        widest = max([widest, *(batch.size[1] for part in given[3].parts for batch in part.batches)])
        return attention(*given)

    monkeypatch.setattr(document_attention, "block_attention", block)
    row = rows((400,))[0]
    labels = torch.full((2, 400), -100)
    ids = torch.cat([row, torch.cat([row[:, :300], row[:, :100]], 1)])
    labels[:, 300:] = ids[:, 300:]
    short = compact(ids, None, labels)
    assert short is not None
    with by_document(model):
        with at_labels(model, torch.rand(1, 400, generator=torch.Generator().manual_seed(0)) < 0.8):
            model.base_model(input_ids=row, use_cache=False)
        model.base_model(**short.inputs(), use_cache=False)
    assert 0 < widest <= document_attention.PRODUCTS + 16  # filled up


def test_plan_of_a_packed_row() -> None:
    """Blocks cost their queries times the keys of the window, in one size; all queries are there."""
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    docs = documents_of(positions, None, (1, 127), "cpu")
    plan = attention_plan.plan_of(docs, 16, 4, 2, torch.float32, 48)
    assert plan is attention_plan.plan_of(docs, 16, 4, 2, torch.float32, 48) and not plan.long and len(plan.parts) > 1
    batches = [batch for part in plan.parts for batch in part.batches]
    assert {size for batch in batches for size in batch.size} == {32}
    assert sum(batch.bias.numel() for batch in batches) == 10 * 32 * 32  # one block, five, one and three
    assert torch.equal(plan.queries[plan.results], torch.arange(2 * 127))
    for part in plan.parts:
        rows = part.bounds.diff().nonzero()[:, 0]
        assert torch.equal(part.keys[part.bags], rows.repeat_interleave(part.bounds.diff()[rows]))


def test_blocks_for_the_kernel_are_larger() -> None:
    """It is given copies of the keys of each block, so of few blocks."""
    docs = documents_of(torch.arange(100)[None], None, (1, 100), "cpu").at(torch.arange(1, 100)[None])
    plan = attention_plan.plan_of(docs, None, 4, 2, torch.float32, 48)
    ((_, _, blocks),) = plan.long
    assert [tuple(bias.shape) for bias in plan.long_biases] == [(32, 65), (32, 97), (3, 100)]
    assert [(b.first, b.queries, b.start, b.own) for b in blocks] == [(32, 32, 0, 65), (64, 32, 0, 97), (96, 3, 0, 100)]


def test_keys_of_many_blocks_have_exact_gradients() -> None:
    """Those of a prompt are sums over many parts of a plan: not rounded to bfloat16 with each."""
    lengths, prompts = [32, *[16] * 96], [-1, *[0] * 96]
    of = torch.arange(97).repeat_interleave(torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(32), torch.arange(32, 48).repeat(96)])[None]
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(1, 1, of.shape[1], 8, generator=draw).bfloat16() for _ in range(4)]
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        docs = Documents(of, positions, [grouped(0, lengths, range(97), prompts)])
        q, k, v, gradient = (x.to(dtype).requires_grad_() for x in given)
        out, _ = document_attention.attention_by_document(None, q, k, v, docs)
        found.append(torch.autograd.grad(out, (k, v), 1 + gradient.transpose(1, 2)))
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs)[:, :, :32].norm() < 4e-3 * theirs[:, :, :32].norm()


def test_mixed_precision_and_no_gradients() -> None:
    """In autocast's type, whatever comes in; without gradients the same numbers."""
    docs = documents_of(torch.arange(40)[None], None, (1, 40), "cpu")
    q, k, v = (torch.randn(1, heads, 40, 8, requires_grad=True) for heads in (4, 2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = document_attention.attention_by_document(None, q, k, v.bfloat16(), docs)
        with torch.no_grad():
            assert torch.equal(document_attention.attention_by_document(None, q, k, v, docs)[0], found)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2e-2, atol=2e-2)
    grads = [torch.autograd.grad(out.float().square().sum(), (q, k, v)) for out in (found, exact)]
    for ours, theirs in zip(*grads, strict=True):
        assert ours.dtype == torch.float32 and (ours - theirs).norm() < 2e-2 * theirs.norm()


@pytest.mark.parametrize(
    ("more", "asked", "kernel"),
    [
        ({}, None, "by_document"),
        ({"hidden_size": 512}, None, "by_document"),
        ({"hidden_size": 512}, "sdpa", "sdpa"),
        ({"attention_dropout": 0.1}, None, "sdpa"),
        ({"use_bidirectional_attention": True}, None, "sdpa"),
    ],
)
def test_which_attention_trains(more: dict[str, Any], asked: str | None, kernel: str) -> None:
    name, options, _ = MODELS["gemma3_text"]
    config = transformers.Gemma3TextConfig(
        **options | {"hidden_size": 64, "num_hidden_layers": 1, "layer_types": ["full_attention"]} | more,
        attn_implementation="sdpa",
    )
    base = getattr(transformers, name)(config)
    reference = getattr(transformers, name)(copy.deepcopy(config))
    with training_attention(base, asked, reference):
        assert base.config._attn_implementation == reference.config._attn_implementation == kernel
        with attention(base, "sdpa"):  # an evaluation during training
            base(input_ids=torch.ones(1, 4, dtype=torch.long))
    assert base.config._attn_implementation == "sdpa"
