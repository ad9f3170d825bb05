"""The scales of a checkpoint that is on a 4-bit grid are found in its numbers, whatever the block is like."""

from __future__ import annotations

import pytest
import torch
from qat_checkpoint import by_googles_rule, products

from gemma_tune.quant.grid import GRIDS, NotOnGrid
from gemma_tune.quant.lattice import find_lattice, stored_grid

ONE = [1.0] * 32


def weights(seed: int = 0) -> torch.Tensor:
    """Rows of different sizes, some with heavy tails."""
    draw = torch.Generator().manual_seed(seed)
    normal = torch.randn(256, 256, generator=draw) * torch.logspace(-4, 1, 256).unsqueeze(1)
    normal[::2] *= torch.rand(128, 256, generator=draw).clamp_min(1e-3) ** -0.5
    return normal


@pytest.mark.parametrize("scale", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_codes_and_numbers_are_those_of_the_rule(stored: torch.dtype, scale: torch.dtype) -> None:
    """Where the numbers were rounded to bfloat16, several float16 scales give them; a bfloat16 one is found itself."""
    codes, scales = by_googles_rule(weights(), scale)
    values = products(codes, scales).to(stored)
    found = find_lattice(values.float())
    encoded = stored_grid(found.scales).encode(values.float())
    assert not found.off.any() and found.rounded == 0
    assert torch.equal(encoded.codes.float(), codes.flatten(-2))
    assert torch.equal(stored_grid(found.scales).decode(encoded).to(stored), values)
    if stored != torch.bfloat16 or scale == torch.bfloat16:
        assert torch.equal(encoded.scales, torch.where(scales == 0, -0.0, scales).squeeze(-1))


def test_a_scale_that_float16_lacks_is_counted() -> None:
    codes, scales = by_googles_rule(weights(), torch.float32)
    values = products(codes, scales)
    found = find_lattice(values)
    encoded = stored_grid(found.scales).encode(values)
    assert not found.off.any() and torch.equal(encoded.codes.float(), codes.flatten(-2))
    assert found.rounded > 1000
    changed = stored_grid(found.scales).decode(encoded) / values - 1
    assert changed[values.abs() > 8 * 2.0**-14].abs().max() <= 2.0**-11


@pytest.mark.parametrize("name", ["q4_0", "q4_0_fp16"])
def test_our_own_grids_are_found(name: str) -> None:
    values = GRIDS[name].decode(GRIDS[name].encode(weights()))
    found = find_lattice(values)
    assert not found.off.any() and found.rounded == 0
    encoded = stored_grid(found.scales).encode(values)
    assert torch.equal(stored_grid(found.scales).decode(encoded), values)
    assert torch.equal(encoded.codes, GRIDS[name].encode(values).codes)


@pytest.mark.parametrize(
    "block",
    [
        [0.0] * 32,
        ONE,
        [-0.3] * 32,
        [0.0] * 31 + [0.7],
        [0.0] * 31 + [-1e-3],
        [0.7, -0.7] * 16,
        [0.25 * c for c in range(-8, 8)] * 2,
        [-0.25 * c for c in range(-8, 8)] * 2,  # a negative scale
        [0.1 * c for c in (1, -1, 2, 0)] * 8,
        [0.1 * c for c in (6, -3)] * 16,
        [0.1 * c for c in (5, -6, 5, 0)] * 8,
        [3e-8, 0.0] * 16,  # below what float16 holds with all its bits
        [2.0**-24 * c for c in (7, -8, 3, 1)] * 8,
        [7000.0, -8000.0] * 16,
    ],
)
def test_hostile_blocks_keep_their_numbers(block: list[float]) -> None:
    values = torch.tensor([block]).bfloat16().float()
    found = find_lattice(values)
    grid = stored_grid(found.scales)
    assert not found.off.any()
    assert torch.equal(grid.rounded(values).bfloat16().float(), values) == (found.rounded == 0)
    assert torch.isfinite(grid.encode(values).scales).all()
    assert (grid.rounded(values) - values).abs().max() <= max(2.0**-9 * values.abs().max().item(), 8 * 2.0**-25)


@pytest.mark.parametrize(
    "block",
    [
        torch.randn(32, generator=torch.Generator().manual_seed(0)).tolist(),
        [1.0, 0.3] + [0.0] * 30,  # a number that would have the code 0, or none
        [9.0 * 0.25, 0.25] * 16,  # a code of 9
        [8.0, -8.0, 1.0, 7.0] * 8,  # 8 and -8: no sign of the scale holds both
    ],
)
def test_what_is_on_no_lattice(block: list[float]) -> None:
    values = torch.tensor([[*ONE, *block]])
    assert find_lattice(values).off.tolist() == [[False, True]]
    assert find_lattice(values.bfloat16().float()).off.tolist() == [[False, True]]


def test_numbers_off_by_one_bit_are_on_no_lattice() -> None:
    codes, scales = by_googles_rule(weights(), torch.bfloat16)
    values = products(codes, scales).bfloat16()
    wrong = torch.nextafter(values, torch.full_like(values, torch.inf)).float()
    values = values.float()
    values[:, ::64] = wrong[:, ::64]  # one number of every second block
    off = find_lattice(values).off
    assert not off[:, 1::2].any() and off[:, ::2].float().mean() > 0.5


def test_weights_that_no_block_holds() -> None:
    for weight, said in ((torch.ones(2, 40), "not a multiple"), (torch.full((2, 32), torch.nan), "NaN")):
        with pytest.raises(NotOnGrid, match=said):
            find_lattice(weight)
    with pytest.raises(NotOnGrid, match="NaN"):
        stored_grid(torch.ones(1, 1).half()).encode(torch.full((1, 32), torch.inf))
    with pytest.raises(NotOnGrid, match="its scales are"):
        stored_grid(torch.ones(1, 1).half()).encode(torch.ones(2, 32))


def test_the_grid_is_fixed_and_goes_by_rows() -> None:
    """Weights that training has moved are rounded to the nearest code of the given scale, and clipped at its ends."""
    codes, scales = by_googles_rule(weights(), torch.bfloat16)
    grid = stored_grid(find_lattice(products(codes, scales)).scales)
    moved = products(codes, scales) + 0.7 * scales.expand_as(codes).flatten(-2)
    encoded = grid.encode(moved)
    assert torch.equal(encoded.codes.float(), torch.where(scales == 0, 0, codes + 1).clamp(-8, 7).flatten(-2))
    some = slice(64, 96)
    for one, whole in zip(grid.of_rows(some).encode(moved[some]), encoded, strict=True):
        assert torch.equal(one, whole[some])
    assert grid == grid and grid != stored_grid(grid.scales) and not grid.derives_again
    weight = moved.clone().requires_grad_()
    grid.fake_quantize(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(moved))


def test_deriving_the_scales_again_loses_what_keeping_them_does_not() -> None:
    """The control: why there is this grid. Blocks with an extreme code of 7 get 7/8 of the scale."""
    codes, scales = by_googles_rule(weights(), torch.bfloat16)
    values = products(codes, scales)
    lost = {
        name: ((GRIDS[name].rounded(values) - values).norm() / values.norm()).item() for name in ("q4_0", "q4_0_fp16")
    }
    assert min(lost.values()) > 0.03 and max(lost.values()) < 0.08, lost
    assert torch.equal(stored_grid(find_lattice(values).scales).rounded(values), values)


@pytest.mark.parametrize("bits", [1, 2, 5, 8, 11])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_random_blocks_of_any_codes(stored: torch.dtype, bits: int) -> None:
    """Sparse, one-sided, of few codes, of either sign: the stored numbers to the bit, and exactly where they can be."""
    draw, n = torch.Generator().manual_seed(bits), 3000

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=draw)

    scales = 1 + torch.floor(uniform(n, 1) * 2 ** (bits - 1)) / 2 ** (bits - 1)
    scales = scales * 2.0 ** torch.randint(-12, 4, (n, 1), generator=draw) * torch.where(uniform(n, 1) < 0.3, -1, 1)
    low, high = (torch.randint(*ends, (n, 1), generator=draw) for ends in ((-8, 1), (0, 8)))
    codes = low + torch.floor(uniform(n, 32) * (high - low + 1))
    exact = torch.where(uniform(n, 32) < uniform(n, 1), codes, 0) * scales
    values = exact.to(stored).float()
    found = find_lattice(values)
    assert not found.off.any() and found.rounded == 0
    decoded = stored_grid(found.scales).rounded(values)
    assert torch.equal(decoded.to(stored).float(), values)
    needs_none = (exact == values).all(-1)
    assert torch.equal(decoded[needs_none], values[needs_none])
