"""The grid: what stays as it is, which bits, and against an independent reference (gguf's own quantization)."""

from __future__ import annotations

from collections.abc import Iterator

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import quantize

from gemma_tune.quant.grid import _IN_CACHE, GRIDS, ChannelGrid, Encoded, Grid, NotOnGrid

KINDS = ("normal", "heavy", "tiny", "huge", "zero", "tied", "tied_negative", "sparse", "one", "subnormal")
# Those of a channel are held to the phone format in test_channels.py
OF_BLOCKS = [name for name, grid in GRIDS.items() if not isinstance(grid, ChannelGrid)]


def weights(kind: str, seed: int) -> torch.Tensor:
    """A matrix of a kind, [48, 128]."""
    rng = torch.Generator().manual_seed(seed)
    w = torch.randn(48, 128, generator=rng)
    if kind == "heavy":
        w = w / torch.rand(48, 128, generator=rng).clamp_min(1e-3)
    elif kind == "tiny":
        w = w * 2e-4
    elif kind == "huge":
        w = w * 6000
    elif kind == "zero":
        w[:, ::2] = 0
        w[::3] = 0
    elif kind in ("tied", "tied_negative"):
        sign = 1 if kind == "tied" else -1
        w[:, 3::32], w[:, 20::32] = 5.0 * sign, -5.0 * sign
    elif kind == "sparse":
        w = torch.where(torch.rand(48, 128, generator=rng) < 0.95, 0.0, w)
    elif kind == "one":
        w[:, ::32] *= 1e4
    elif kind == "subnormal":
        w = w * 1e-40
    return w


def cases() -> Iterator[tuple[str, torch.Tensor]]:
    for kind in KINDS:
        for seed in range(5):
            yield f"{kind} {seed}", weights(kind, seed)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32)


def blocks(encoded: Encoded) -> np.ndarray:
    """Q4_0 blocks, written here once more: a float16 scale, then element j in the low and j + 16 in the high nibble."""
    nibbles = (encoded.codes.numpy().astype(np.int16) + 8).astype(np.uint8).reshape(*encoded.scales.shape, 2, 16)
    packed = nibbles[..., 0, :] | (nibbles[..., 1, :] << 4)
    scales = encoded.scales.numpy().astype(np.float16)[..., None].view(np.uint8)
    return np.concatenate([scales, packed], axis=-1).reshape(encoded.codes.shape[0], -1)


@pytest.mark.parametrize("name", OF_BLOCKS)
def test_what_is_on_the_grid_stays(name: str) -> None:
    """encode ∘ decode ∘ encode = encode, scales and the signs of their zeros included."""
    grid = GRIDS[name]
    for kind, w in cases():
        first = grid.encode(w)
        second = grid.encode(grid.decode(first))
        assert torch.equal(first.codes, second.codes), kind
        assert torch.equal(bits(first.scales), bits(second.scales)), kind


@pytest.mark.parametrize("name", ["q4_0", "q3_0", "q8_0"])
def test_the_same_numbers_in_every_float_type(name: str) -> None:
    for kind, w in cases():
        decoded = GRIDS[name].decode(GRIDS[name].encode(w))
        for dtype in (torch.float16, torch.bfloat16):
            assert torch.equal(bits(decoded.to(dtype).float()), bits(decoded)), (kind, dtype)


def test_the_fp16_grid_is_for_float32() -> None:
    """What the specification says of it: most values survive float16, few bfloat16."""
    decoded = GRIDS["q4_0_fp16"].decode(GRIDS["q4_0_fp16"].encode(torch.randn(512, 512)))
    survive = [(decoded.to(d).float() == decoded).float().mean().item() for d in (torch.float16, torch.bfloat16)]
    assert 0.7 < survive[0] < 0.9 and 0.15 < survive[1] < 0.3


def test_llama_cpp_gives_the_same_bytes() -> None:
    """`q4_0`: of what is on the grid, by llama.cpp's own rule; `q4_0_fp16`: of any weights."""
    for kind, w in cases():
        on_grid = GRIDS["q4_0"].encode(w)
        naive = quantize(GRIDS["q4_0"].decode(on_grid).numpy(), gguf.GGMLQuantizationType.Q4_0)
        assert np.array_equal(blocks(on_grid), naive), kind
        if kind.split()[0] not in ("huge", "subnormal"):  # float16 has no such scales
            same = quantize(w.numpy(), gguf.GGMLQuantizationType.Q4_0)
            assert np.array_equal(blocks(GRIDS["q4_0_fp16"].encode(w)), same), kind


def test_blocks_of_zeros() -> None:
    for zero in (torch.zeros(1, 32), -torch.zeros(1, 32), torch.full((1, 32), 1e-30)):
        encoded = GRIDS["q4_0"].encode(zero)
        assert encoded.scales.numpy().astype(np.float16).view(np.uint16).tolist() == [[0x8000]]
        assert bits(GRIDS["q4_0"].decode(encoded)).abs().sum() == 0  # +0.0


def test_the_extreme_weight_has_the_lowest_code() -> None:
    for _, w in cases():
        for name, lowest in (("q4_0", -8), ("q3_0", -4)):
            encoded = GRIDS[name].encode(w)
            used = encoded.codes.unflatten(-1, (-1, 32)).amin(-1)
            assert torch.equal(used == lowest, encoded.scales != 0)


def test_the_first_of_two_extremes_counts() -> None:
    w = torch.zeros(2, 32)
    w[0, 4], w[0, 9] = 3.0, -3.0
    w[1, 4], w[1, 9] = -3.0, 3.0
    assert GRIDS["q4_0"].encode(w).scales.sign().tolist() == [[-1.0], [1.0]]


def written_out(w: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales by the rule of docs/int4.md, a block after the other, for grids with scales of 5 bits."""
    codes, scales = [], []
    for block in w.reshape(-1, 32):
        m = block[np.argmax(np.abs(block))]
        mantissa, exponent = np.frexp(np.float32(m / -np.float32(2 ** (bits - 1))))
        d = np.float32(np.ldexp(np.rint(mantissa * np.float32(32)) / np.float32(32), exponent))
        d = d if abs(d) >= 2.0**-20 else np.float32(0)
        half = np.float32(2 ** (bits - 1) + 0.5)
        steps = np.trunc(block / d + half) if d else np.full(32, 2 ** (bits - 1))
        codes.append(np.clip(steps, 0, 2**bits - 1) - 2 ** (bits - 1))
        scales.append(d or np.float32(-0.0))
    return np.stack(codes).reshape(w.shape), np.array(scales, dtype=np.float32).reshape(w.shape[0], -1)


@pytest.mark.parametrize(("name", "bits"), [("q4_0", 4), ("q3_0", 3)])
def test_against_the_rule_written_out(name: str, bits: int) -> None:
    for kind, w in cases():
        codes, scales = written_out(w.numpy(), bits)
        encoded = GRIDS[name].encode(w)
        assert np.array_equal(encoded.codes.numpy(), codes), kind
        assert np.array_equal(encoded.scales.numpy().view(np.int32), scales.view(np.int32)), kind


@pytest.mark.parametrize("name", OF_BLOCKS)
def test_more_than_is_rounded_at_once(name: str) -> None:
    """Blocks don't know of each other: many experts' matrices at once, of another layout in memory, and row by row."""
    w = torch.randn(3, 96, 1100, generator=torch.Generator().manual_seed(0)).transpose(1, 2)
    assert w.numel() > _IN_CACHE and not w.is_contiguous()
    grid = GRIDS[name]
    whole = grid.encode(w)
    assert whole.codes.shape == w.shape and whole.scales.shape == (3, 1100, 3)
    for i in range(3):
        for rows in (slice(0, 1), slice(400, 700), slice(1099, 1100)):
            part = grid.encode(w[i, rows])
            assert torch.equal(whole.codes[i, rows], part.codes) and torch.equal(whole.scales[i, rows], part.scales)
    assert torch.equal(grid.rounded(w), grid.decode(whole))
    assert torch.equal(grid.rounded(w.bfloat16()), grid.rounded(w.bfloat16().float()))


@pytest.mark.parametrize(("name", "error"), [("q4_0", 0.0863), ("q4_0_fp16", 0.0861)])
def test_what_rounding_costs(name: str, error: float) -> None:
    """The relative error on Gaussian weights that the specification gives."""
    w = torch.randn(2048, 1024, generator=torch.Generator().manual_seed(0))
    decoded = GRIDS[name].decode(GRIDS[name].encode(w))
    assert ((decoded - w).norm() / w.norm()).item() == pytest.approx(error, abs=2e-4)


@pytest.mark.parametrize("name", GRIDS)
def test_training_sees_what_is_encoded(name: str) -> None:
    """fake_quantize = decode ∘ encode to the bit, with the gradient of the identity."""
    grid = GRIDS[name]
    for kind, w in cases():
        w = w.clone().requires_grad_(True)
        faked = grid.fake_quantize(w)
        assert torch.equal(bits(faked.detach()), bits(grid.decode(grid.encode(w)))), kind
        seed = torch.randn_like(w)
        (gradient,) = torch.autograd.grad(faked, w, seed)
        assert torch.equal(gradient, seed)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(4, 40), "its width, 40, is not a multiple of 32"),
        (torch.full((1, 32), torch.nan), "NaN or infinity"),
        (torch.tensor([[1.0] * 31 + [torch.inf]]), "NaN or infinity"),
        (torch.full((1, 32), 1e5), "its scale is too large for float16"),
    ],
)
def test_weights_that_have_no_place(weight: torch.Tensor, message: str) -> None:
    with pytest.raises(NotOnGrid, match=message):
        GRIDS["q4_0"].encode(weight)


def test_a_positive_scale_is_another_grid() -> None:
    """The control: absmax/8 with +8 clipped, re-derived by llama.cpp's rule, is not what was trained."""
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).unflatten(-1, (-1, 32))
    scale = w.abs().amax(-1, keepdim=True) / 8
    trained = ((w / scale).round().clamp(-8, 7) * scale).flatten(-2)
    derived = GRIDS["q4_0_fp16"].decode(GRIDS["q4_0_fp16"].encode(trained))
    assert ((derived - trained).norm() / trained.norm()).item() > 0.03
    assert not isinstance(GRIDS["q4_0"], type) and isinstance(GRIDS["q4_0"], Grid)
