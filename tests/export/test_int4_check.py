"""The table of an int4 export: every line of it holds on the embedded model, and every line can fail."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from grid_models import ROWS, TINY, logits_of, on_grid
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

from gemma_tune.config import ExportConfig
from gemma_tune.export import gguf, merged_from_grid, w4a16
from gemma_tune.export.engine_agreement import EngineAgreement, best_tokens, engine_kl, measure_agreement
from gemma_tune.export.engine_lines import exact_line, gross_line, same_each_time
from gemma_tune.export.int4_check import FAIL, OK, WARN, CheckLine, forward_line, raise_failed, stored_lines
from gemma_tune.export.model_on_grid import ModelOnGrid
from gemma_tune.export.read_back import StoredTensor, read_folder
from gemma_tune.export.read_gguf import read_gguf
from gemma_tune.export.tensors import TrainedTensors, decoded_tensors, decoded_weight, trained_tensors
from gemma_tune.export.transformers_check import TrainedForward, in_float32, transformers_line
from gemma_tune.export.verify import ArtifactDiffers
from gemma_tune.quant.grid import GRIDS, Encoded

UP = "model.layers.1.mlp.up_proj.weight"
FORMATS = ("merged", "w4a16", "gguf")


def write(what: str, trained: ModelOnGrid, tensors: TrainedTensors, folder: Path) -> Path:
    """The artifact, with these tensors in it."""
    folder.mkdir(exist_ok=True)
    if what == "gguf":
        base, file = trained.model, folder / "model.gguf"
        gguf.export(tensors, base.config, trained.tokenizer, base.generation_config, trained.plan, file, name="tiny")
        return file
    writer = merged_from_grid if what == "merged" else w4a16
    writer.export(replace(trained, trained=tensors), folder, ExportConfig())
    return folder


def read(what: str, path: Path, trained: ModelOnGrid) -> Iterator[tuple[str, StoredTensor]]:
    return read_gguf(path, trained.model.config) if what == "gguf" else read_folder(path)


def check(what: str, path: Path, trained: ModelOnGrid) -> list[CheckLine]:
    return stored_lines(what, read(what, path, trained), trained.trained, trained.plan)


@pytest.fixture(scope="module")
def trained() -> ModelOnGrid:
    return on_grid("q4_0", "q4_0")


@pytest.fixture(scope="module")
def written(trained: ModelOnGrid, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("written")
    return {what: write(what, trained, trained.trained, folder / what) for what in FORMATS}


@pytest.mark.parametrize(
    ("grid", "embedding", "adapter"),
    [
        ("q4_0", "q4_0", False),
        pytest.param("q4_0", None, False, marks=pytest.mark.slow),
        ("q4_0", "q8_0", True),
        pytest.param("q4_0_fp16", "q4_0_fp16", False, marks=pytest.mark.slow),
        ("q4_0_fp16", None, True),
        pytest.param("q3_0", "q8_0", False, marks=pytest.mark.slow),
    ],
)
def test_every_line_holds(grid: str, embedding: str | None, adapter: bool, tmp_path: Path) -> None:
    """Full and adapter mode, both grids, every format: all codes, all weights, the same logits."""
    trained = on_grid(grid, embedding, adapter)
    lines = [forward_line(trained.model, trained.trained, trained.plan)]
    for what in FORMATS:
        path = write(what, trained, trained.trained, tmp_path / what)
        lines += check(what, path, trained)
        if what != "gguf":
            lines.append(transformers_line(what, path, TrainedForward(trained.model, ROWS)))
    assert [x for x in lines if x.verdict != OK] == []
    raise_failed(lines)
    named = {x.name: x.found for x in lines}
    projections, on = 42, 42 + (embedding is not None)
    assert named["weights of the training forward"] == "80 of 80 tensors (100%)"
    assert named["w4a16: codes and scales"] == f"{projections} of {projections} tensors (100%)"
    assert named["gguf: codes and scales"] == f"{on} of {on} tensors (100%)"
    assert all(named[f"{what}: decoded weights"] == "80 of 80 tensors (100%)" for what in FORMATS)
    # 3 bit codes come back as 4 bit ones, and 8 bit scales are powers of two here
    again = 0 if grid == "q3_0" else on - (embedding == "q8_0")
    assert named.get("gguf: re-quantized naively", "0 of").startswith(f"{again} of")


def test_what_the_forward_did_not_use_is_named() -> None:
    """An embedding that was trained in float32 and is kept in 16 bit; a model that isn't on its grid."""
    trained = on_grid("q4_0", None)
    with torch.no_grad():
        trained.model.model.embed_tokens.weight[7, 7] += 1e-6
    trained = replace(trained, trained=trained_tensors(trained.model, trained.plan))
    with pytest.raises(ArtifactDiffers, match=r"79 of 80 tensors .*embed_tokens\.weight: 1 of 393,216 weights differ"):
        raise_failed([forward_line(trained.model, trained.trained, trained.plan)])
    plain = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    line = forward_line(plain, trained_tensors(plain, trained.plan), trained.plan)
    assert (line.verdict, line.found) == (FAIL, "38 of 80 tensors (48%)")


class _Seen(TorchFunctionMode):
    """Notes every matrix that a linear layer or an embedding computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (functional.linear, functional.embedding):
            self.weights.append(args[1].detach().clone())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("adapter", "autocast"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("training", [False, True])
def test_exported_codes_are_those_that_the_forward_multiplies_with(
    adapter: bool, autocast: bool, training: bool
) -> None:
    """Whatever a real forward hands to torch's kernels, in training and under autocast, too."""
    trained = on_grid("q4_0", "q4_0", adapter)
    trained.model.train(training)
    with (
        torch.set_grad_enabled(training),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
        _Seen() as seen,
    ):
        trained.model(input_ids=torch.tensor(ROWS[:1]))
    assert len(seen.weights) == 44  # 42 projections, embedding, head
    grid = {n: decoded_weight(n, trained.trained, trained.plan) for n in trained.plan.grids}
    for weight in seen.weights:
        assert any(weight.shape == w.shape and torch.equal(weight.float(), w) for w in grid.values())


def positive_scale(weight: torch.Tensor) -> Encoded:
    """What other trainers do: absmax / 8, always positive, +8 clipped to +7."""
    blocks = weight.unflatten(-1, (-1, 32))
    scales = blocks.abs().amax(-1, keepdim=True) / 8
    scales = scales.half().float()
    codes = (blocks / scales).round().clamp(-8, 7)
    return Encoded(codes.flatten(-2).to(torch.int8), scales.squeeze(-1))


@pytest.mark.parametrize("what", FORMATS)
def test_a_grid_derived_again_on_export_fails(what: str, tmp_path: Path, trained: ModelOnGrid) -> None:
    """The control: a positive absmax / 8 grid, taken from the trained, rounded weights."""
    again = {
        n: positive_scale(decoded_weight(n, trained.trained, trained.plan)) if n in trained.plan.grids else t
        for n, t in trained.trained.items()
    }
    if what == "merged":  # the weights that the other grid decodes to
        again = {n: t if torch.is_tensor(t) else GRIDS["q4_0"].decode(t) for n, t in again.items()}
        path = tmp_path
        merged_from_grid.write_folder(
            again, torch.float32, None, trained.model, trained.tokenizer, path, ExportConfig(), trained.source
        )
    else:
        path = write(what, trained, again, tmp_path)
    lines = check(what, path, trained)
    assert [x.verdict for x in lines] == [FAIL] * len(lines)
    assert all(x.found.startswith(("0 of", f"{80 - 43} of")) for x in lines)  # norms are as they were
    with pytest.raises(ArtifactDiffers, match=r"model\.embed_tokens\.weight: [\d,]+ of 393,216 weights differ"):
        raise_failed(lines)
    if what != "gguf":
        assert transformers_line(what, path, TrainedForward(trained.model, ROWS)).verdict == FAIL


def start_of(what: str, path: Path) -> tuple[Path, int]:
    """A file, and where the weights of `UP` begin in it."""
    if what == "gguf":
        return path, next(int(t.data_offset) for t in GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight")
    file = path / "model.safetensors"
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    return file, start + json.loads(content[8:start])[UP + ("_packed" if what == "w4a16" else "")]["data_offsets"][0]


def copied(what: str, path: Path, folder: Path) -> Path:
    if what == "gguf":
        return Path(shutil.copy(path, folder))
    return Path(shutil.copytree(path, folder / what))


@pytest.mark.parametrize("what", FORMATS)
@pytest.mark.parametrize("bit", [0, 7, 70, 1000])
def test_one_flipped_bit_is_named(
    what: str, bit: int, tmp_path: Path, written: dict[str, Path], trained: ModelOnGrid
) -> None:
    path = copied(what, written[what], tmp_path)
    file, start = start_of(what, path)
    content = bytearray(file.read_bytes())
    content[start + bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    with pytest.raises(ArtifactDiffers, match=rf"{UP}: 1 of 196,608 |{UP}: \d+ of 196,608 weights differ"):
        raise_failed(check(what, path, trained))


@pytest.mark.parametrize("what", FORMATS)
def test_a_truncated_file_is_named(what: str, tmp_path: Path, written: dict[str, Path], trained: ModelOnGrid) -> None:
    path = copied(what, written[what], tmp_path)
    file, start = start_of(what, path)
    content = file.read_bytes()
    name = "blk.1.ffn_up.weight" if what == "gguf" else UP
    file.write_bytes(content[: start + 1000])
    with pytest.raises(ArtifactDiffers, match=f"it ends before {name}"):
        raise_failed(check(what, path, trained))
    for length in (0, 5, 3000, start - 1, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(ArtifactDiffers, match=file.name):
            raise_failed(check(what, path, trained))


@pytest.mark.parametrize("what", FORMATS)
def test_a_file_of_another_model_is_named(what: str, written: dict[str, Path], trained: ModelOnGrid) -> None:
    """One with other weights, and one with other tensors."""
    other = on_grid("q4_0", "q4_0", adapter=True)
    lines = check(what, written[what], other)
    assert all(x.verdict == FAIL for x in lines if "naively" not in x.name)
    with pytest.raises(ArtifactDiffers, match=r"model\.\S+\.weight: [\d,]+ of [\d,]+ weights differ"):
        raise_failed(lines)
    stored = [(n, t) for n, t in read(what, written[what], trained) if n != UP]
    with pytest.raises(ArtifactDiffers, match=f"found 79 of 80 tensors .*{UP}: it is not there"):
        raise_failed(stored_lines(what, stored, trained.trained, trained.plan))
    stored.append(("model.extra.weight", StoredTensor(torch.zeros(2))))
    with pytest.raises(ArtifactDiffers, match=r"model\.extra\.weight: the trained model has no such tensor"):
        raise_failed(stored_lines(what, stored, trained.trained, trained.plan))
    stored = [(n, StoredTensor(t.values[:-1], added=t.added)) for n, t in stored[:1]]
    with pytest.raises(ArtifactDiffers, match=r"its shape is \(\d+.*\), and \(\d+.*\) was trained"):
        raise_failed(stored_lines(what, stored, trained.trained, trained.plan))


def test_a_float32_file_holds_the_decoded_weights(tmp_path: Path, trained: ModelOnGrid) -> None:
    """What llama.cpp is given for the exact line."""
    model, tensors = trained.model, decoded_tensors(trained.trained, trained.plan)
    types, file = torch.float32, tmp_path / "exact.gguf"
    gguf.export(tensors, model.config, trained.tokenizer, model.generation_config, types, file, name="tiny")
    (line,) = check("gguf", file, trained)
    assert (line.name, line.verdict, line.found) == ("gguf: decoded weights", OK, "80 of 80 tensors (100%)")


def test_a_model_that_trains_in_bfloat16_is_compared_in_float32(tmp_path: Path) -> None:
    """And is afterwards as it was."""
    trained = on_grid("q4_0", None, adapter=True, dtype=torch.bfloat16)
    before = {n: (p.dtype, p.detach().clone()) for n, p in trained.model.named_parameters()}
    logits = logits_of(trained.model)
    with in_float32(trained.model):
        assert logits_of(trained.model).dtype == torch.float32
    assert torch.equal(logits_of(trained.model), logits)
    path = write("w4a16", trained, trained.trained, tmp_path)
    assert transformers_line("w4a16", path, TrainedForward(trained.model, ROWS)).verdict == OK
    for name, parameter in trained.model.named_parameters():
        dtype, value = before[name]
        assert parameter.dtype == dtype and torch.equal(parameter, value), name
    assert torch.equal(logits_of(trained.model), logits)


def test_other_logits_fail(tmp_path: Path, trained: ModelOnGrid, written: dict[str, Path]) -> None:
    """A thousandth on one weight of a norm, and NaN."""
    model = AutoModelForCausalLM.from_pretrained(written["merged"], dtype=torch.float32)
    for change in (1e-3, math.nan):
        with torch.no_grad():
            model.model.norm.weight[0] += change
        model.save_pretrained(tmp_path)
        assert transformers_line("merged", tmp_path, TrainedForward(trained.model, ROWS)).verdict == FAIL


def brute(reference: torch.Tensor, ids: torch.Tensor, found: torch.Tensor) -> list[float]:
    """KL over the tokens given and a bucket, number by number: the least one over what a float32 sum may be off by."""
    error = 1e-6 * reference.shape[-1] ** 0.5
    factors = [1 + error * i / 100 for i in range(-100, 101)]
    kls = []
    for row, tokens, log_q in zip(reference.double().softmax(-1).tolist(), ids.tolist(), found.tolist(), strict=True):
        p = [row[t] for t in tokens] + [1 - sum(row[t] for t in tokens)]
        given = [math.exp(x) for x in log_q]
        every = [[x * factor for x in given] + [1 - sum(given) * factor] for factor in factors]
        kls.append(min(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) for q in every))
    return kls


@pytest.mark.parametrize("seed", range(5))
def test_bucketed_kl(seed: int) -> None:
    """Equal to the sum over buckets; at most the whole KL, and the whole one where all tokens are given."""
    torch.manual_seed(seed)
    reference = (3 * torch.randn(7, 400)).log_softmax(-1)
    engine = (reference + 0.3 * torch.randn(7, 400)).log_softmax(-1)
    whole = (reference.double().exp() * (reference.double() - engine.double())).sum(-1)
    best = engine.topk(50, dim=-1)
    found = engine_kl(reference, best.indices, best.values)
    expected = torch.tensor(brute(reference, best.indices, best.values), dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0.0)
    assert (found > 0).all() and (found <= whole).all()
    every = torch.arange(400).expand(7, -1)
    torch.testing.assert_close(engine_kl(reference, every, engine), whole, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize(("off", "seen"), [(0.0, False), (1e-5, False), (-1e-5, False), (1e-3, True), (-1e-3, True)])
def test_the_error_of_a_float32_sum_is_not_a_difference(off: float, seen: bool) -> None:
    """All log-probabilities moved by as much: what llama.cpp's sums are off by, and a hundred times that.

    Of spread distributions, and of ones that leave nothing outside the best tokens. Digits are those of JSON.
    """
    torch.manual_seed(0)
    spread = (3 * torch.randn(7, 1536)).log_softmax(-1)
    sure = torch.full((7, 1536), -40.0).scatter(1, torch.randint(1536, (7, 1)), 0.0).log_softmax(-1)
    for reference in (spread, sure):
        best = reference.topk(256, dim=-1)
        found = engine_kl(reference, best.indices, (best.values.double() * 1e7).round() / 1e7 + off)
        assert (found.abs() < 1e-9).all() if not seen else (found > 1e-7).all()


def test_best_tokens() -> None:
    """Rows: the same; another one by a hair; another one beyond the margin."""
    reference = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0005, -3.0], [-1.0, -1.002, -3.0]])
    same, close = best_tokens(reference, torch.tensor([0, 1, 1]), 1e-3)
    assert (same.tolist(), close.tolist()) == ([True, False, False], [False, True, False])
    ids = torch.tensor([[0, 1], [1, 0], [0, 1]])
    found = torch.tensor([[-1.0, -2.0], [-0.9, -1.0], [-1.1, -1.0]])
    (both,) = measure_agreement([(reference, [(ids, found)]), (reference[:1], [(ids[:1], found[:1])])])
    assert (both.positions, both.same, both.close, both.apart, both.top1) == (4, 2, 1, 1, 0.5)
    kl = engine_kl(reference, ids, found).sum() + engine_kl(reference[:1], ids[:1], found[:1]).sum()
    assert both.mean_kl == pytest.approx(kl.item() / 4)


@pytest.mark.parametrize(
    ("line", "found", "verdict"),
    [
        (exact_line, EngineAgreement(512, 1e-6, 511, 1), OK),
        (exact_line, EngineAgreement(512, 1.1e-6, 512, 0), FAIL),
        (exact_line, EngineAgreement(512, math.nan, 512, 0), FAIL),
        (exact_line, EngineAgreement(512, 0.0, 511, 0), FAIL),
        (exact_line, EngineAgreement(511, 0.0, 511, 0), WARN),
        (gross_line, EngineAgreement(1000, 5e-4, 980, 0), OK),
        (gross_line, EngineAgreement(1000, 6e-4, 980, 0), WARN),
        (gross_line, EngineAgreement(1000, 5e-4, 979, 0), WARN),
        (gross_line, EngineAgreement(1000, 1.1e-2, 980, 0), FAIL),
        (gross_line, EngineAgreement(1000, 5e-4, 899, 0), FAIL),
        (gross_line, EngineAgreement(1000, math.nan, 1000, 0), FAIL),
        (gross_line, EngineAgreement(500, 5e-4, 500, 0), WARN),
    ],
)
def test_limits(line: Callable[[str, EngineAgreement], CheckLine], found: EngineAgreement, verdict: str) -> None:
    assert line("x", found).verdict == verdict
    if verdict == FAIL:
        with pytest.raises(ArtifactDiffers, match=f"of {found.positions} positions"):
            raise_failed([line("x", found)])


@pytest.mark.parametrize(
    ("found", "rough"),
    [
        ("KL 3.1e-07, the same best token at 100.00% of 565 positions", "KL below 1e-06, {}100% of 565 positions"),
        ("KL 0, the same best token at 100.00% of 565 positions", "KL below 1e-06, {}100% of 565 positions"),
        ("KL 1e-06, the same best token at 99.98% of 9 positions", "KL below 1e-05, {}99% of 9 positions"),
        ("KL 0.00041, the same best token at 98.23% of 565 positions (3 closer than the margin), fewer than 512",
         "KL below 0.001, {}98% of 565 positions, fewer than 512"),
        ("KL 1.2, the same best token at 9.00% of 5 positions; from the base KL 0.11",
         "KL below 10, {}9% of 5 positions; from the base KL below 1"),
        ("43 of 43 tensors (100%)", "43 of 43 tensors (100%)"),
    ],
)  # fmt: skip
def test_what_engines_say_at_each_run(found: str, rough: str) -> None:
    """The last bits of an engine's sums differ from run to run; a model card says what doesn't."""
    assert same_each_time(found) == rough.format("the same best token at ")
