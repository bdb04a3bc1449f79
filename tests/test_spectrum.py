"""Segments of a spectrum are those of a float64 SVD, whatever the weight and whichever route finds them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from medbench.adapters import decomposition
from medbench.adapters.decomposition_cache import decomposition_cache
from medbench.adapters.spectrum import SegmentFactors, segment_factors, segment_starts
from medbench.errors import RequestError

SHAPES = [(64, 48), (48, 64), (48, 48)]
INITS = ["spectral", "segment_end", "principal", "minor", "random"]


@pytest.fixture(params=["single use", "cached"], autouse=True)
def route(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways through the library, on weights that are larger than one block."""
    monkeypatch.setattr(decomposition, "_BLOCK", 1000)
    with decomposition_cache(tmp_path / "cache" if request.param == "cached" else None):
        yield request.param


def weight_of(shape: tuple[int, int], values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A float64 weight with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    sides = [torch.randn(size, len(values), generator=generator, dtype=torch.float64) for size in shape]
    left, right = (torch.linalg.qr(side)[0] for side in sides)
    return (left * values) @ right.T


def log_spectrum(condition: float, h: int = 48) -> torch.Tensor:
    return condition ** -torch.linspace(0, 1, h, dtype=torch.float64)


def products(factors: SegmentFactors) -> torch.Tensor:
    return (factors.u * factors.s.unsqueeze(1)) @ factors.vh


def reference(weight: torch.Tensor, starts: list[int], d: int) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return torch.stack([(u[:, i : i + d] * s[i : i + d]) @ vh[i : i + d] for i in starts])


def largest_error(weight: torch.Tensor, starts: list[int], d: int) -> float:
    """Over the segments, the error of a product beside that of a float64 SVD, relative to its norm."""
    expected = reference(weight, starts, d)
    error = products(segment_factors(weight, starts, d)) - expected
    return float((error.norm(dim=(1, 2)) / expected.norm(dim=(1, 2))).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", [10, 1e4, 1e5, 1e6, 1e8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_products_are_those_of_a_float64_svd(shape: tuple[int, int], condition: float, dtype: torch.dtype) -> None:
    weight = weight_of(shape, log_spectrum(condition)).to(dtype)
    for init in INITS:
        assert largest_error(weight, segment_starts(init, 48, 4, 2, seed=1), 2) <= 1e-5


@pytest.mark.parametrize("shape", [(240, 180), (180, 240), (180, 180)])
@pytest.mark.parametrize("condition", [10, 1e4, 1e5])
def test_a_dense_spectrum_needs_no_svd(
    shape: tuple[int, int], condition: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # eigenvectors of one Gram matrix are 1e-6 off here
    weight = weight_of(shape, log_spectrum(condition, 180))
    starts = segment_starts("segment_end", 180, 8, 2)
    expected = reference(weight, starts, 2)
    monkeypatch.delattr(torch.linalg, "svd")
    error = products(segment_factors(weight, starts, 2)) - expected
    assert (error.norm(dim=(1, 2)) <= 1e-7 * expected.norm(dim=(1, 2))).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("magnitude", [1e-300, 1e-170, 1e-30, 1e30, 1e170])
def test_the_magnitude_of_a_weight_does_not_matter(shape: tuple[int, int], magnitude: float) -> None:
    weight = weight_of(shape, log_spectrum(1e4) * magnitude)
    expected = reference(weight / magnitude, [0, 20, 46], 2)
    error = products(segment_factors(weight, [0, 20, 46], 2)) / magnitude - expected
    assert (error.norm(dim=(1, 2)) <= 1e-5 * expected.norm(dim=(1, 2))).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_repeated_singular_values_are_no_harm_inside_a_segment(shape: tuple[int, int]) -> None:
    values = torch.repeat_interleave(2.0 ** -torch.arange(12, dtype=torch.float64), 4)
    assert largest_error(weight_of(shape, values), [0, 12, 24, 44], 4) <= 1e-5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [0, 1, 20])
def test_a_rank_deficient_weight_has_zeros_with_orthonormal_vectors(shape: tuple[int, int], rank: int) -> None:
    values = log_spectrum(100)
    values[rank:] = 0
    weight = weight_of(shape, values)
    if rank == 20:
        assert largest_error(weight, [0, 10, 16], 4) <= 1e-5
    factors = segment_factors(weight, [24, 32, 40], 4)
    assert factors.s.abs().max() <= 1e-14
    for vectors in (factors.u, factors.vh.transpose(1, 2)):
        flat = vectors.transpose(0, 1).flatten(1)
        torch.testing.assert_close(flat.T @ flat, torch.eye(12, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", [10, 1e4])
def test_factors_are_singular_triplets(shape: tuple[int, int], condition: float) -> None:
    weight = weight_of(shape, log_spectrum(condition))
    factors = segment_factors(weight, segment_starts("spectral", 48, 4, 2), 2)
    torch.testing.assert_close(factors.s, torch.linalg.svdvals(weight).view(4, 12)[:, :2])
    for vectors in (factors.u, factors.vh.transpose(1, 2)):
        flat = vectors.transpose(0, 1).flatten(1)  # those of all segments together
        torch.testing.assert_close(flat.T @ flat, torch.eye(8, dtype=torch.float64), atol=1e-8, rtol=0)
    assert (factors.u.gather(1, factors.u.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 2)])
def test_the_smallest_weights(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert largest_error(weight, list(range(min(shape))), 1) <= 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_how_a_weight_lies_in_memory_does_not_matter(shape: tuple[int, int]) -> None:
    weight = weight_of(shape, log_spectrum(1e4))
    parameter = torch.nn.Parameter(weight.repeat(2, 2)[: shape[0], : shape[1]])
    for other in (parameter, weight.T.contiguous().T):
        assert not other.is_contiguous()
        torch.testing.assert_close(
            products(segment_factors(other, [0, 30], 4)), products(segment_factors(weight, [0, 30], 4))
        )
    assert not any(part.requires_grad for part in segment_factors(parameter, [0], 4))


def test_segments_may_come_in_any_order_and_overlap() -> None:
    weight = weight_of((48, 64), log_spectrum(1e4))
    assert largest_error(weight, [46, 0, 44, 1], 2) <= 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_values_that_are_not_finite_are_refused(bad: float, dtype: torch.dtype) -> None:
    weight = torch.ones(48, 64, dtype=dtype)
    weight[47, 63] = bad
    with pytest.raises(RequestError, match=r"48 x 64: it has values that are not finite"):
        segment_factors(weight, [0], 2)


def test_a_weight_without_values_is_refused() -> None:
    with pytest.raises(RequestError, match=r"\(48, 64\) on the meta device"):
        segment_factors(torch.empty(48, 64, device="meta"), [0], 2)


@pytest.mark.parametrize("weight", [torch.zeros(4), torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(2, 4, 4)])
def test_only_floating_matrices_are_decomposed(weight: torch.Tensor) -> None:
    with pytest.raises(RequestError, match="a floating matrix is needed"):
        segment_factors(weight, [0], 2)


@pytest.mark.parametrize("start", [-1, 47])
def test_a_segment_beyond_the_spectrum_is_refused(start: int) -> None:
    with pytest.raises(RequestError, match="leave the 48 singular values"):
        segment_factors(torch.ones(48, 64), [start], 2)
