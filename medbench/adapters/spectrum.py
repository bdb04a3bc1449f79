"""Where the experts start in the spectrum of a weight, and the factors they start from.

`segment_factors` is the only place that asks for a weight's decomposition; `decomposition` computes it, and inside a
`decomposition_cache` it is computed once.
"""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch

from medbench.adapters.decomposition_cache import singular_triplets
from medbench.errors import RequestError, did_you_mean


class SegmentFactors(NamedTuple):
    """N segments of a singular value decomposition, d triplets each, in float64.

    Attributes:
        u: [N, m, d], left singular vectors as columns.
        s: [N, d], singular values, descending within a segment.
        vh: [N, d, n], right singular vectors as rows.
    """

    u: torch.Tensor
    s: torch.Tensor
    vh: torch.Tensor


def segment_starts(init: str, h: int, num_experts: int, d: int, seed: int = 0) -> list[int]:
    """Index of the first singular triplet of every expert (GOAT, arXiv 2502.16894, eq. 13).

    With t = h // N and j = 0 .. N-1: `spectral` j t, `segment_end` (j + 1) t - d, `principal` j d, `minor`
    h - (j + 1) d, `random` drawn uniformly from all placements without overlap.

    Args:
        init: Name of the segment choice.
        h: Number of singular values, min(m, n) of the weight.
        num_experts: N.
        d: Rank of one expert.
        seed: Only used by `random`; the same seed gives every layer of the same h the same starts.

    Returns:
        N indices, each segment [start, start + d) inside [0, h), no two overlapping.

    Raises:
        RequestError: The name is unknown, or N d > h.

    Example:
        >>> segment_starts("spectral", h=16, num_experts=4, d=2)
        [0, 4, 8, 12]
    """
    if num_experts * d > h:
        raise RequestError(f"{num_experts} experts of rank {d} need {num_experts * d} singular values, there are {h}")
    segment = h // num_experts
    experts = range(num_experts)
    if init == "spectral":
        return [j * segment for j in experts]
    if init == "segment_end":
        return [(j + 1) * segment - d for j in experts]
    if init == "principal":
        return [j * d for j in experts]
    if init == "minor":
        return [h - (j + 1) * d for j in experts]
    if init == "random":
        # Shrinking every segment to one slot turns "no overlap" into "distinct": sample, then stretch again.
        slots = random.Random(seed).sample(range(h - num_experts * (d - 1)), num_experts)  # noqa: S311
        return [slot + j * (d - 1) for j, slot in enumerate(sorted(slots))]
    known = ("spectral", "segment_end", "principal", "minor", "random")
    raise RequestError(f"init {init!r} takes no segments of the spectrum; {did_you_mean(init, known)}")


def segment_factors(weight: torch.Tensor, starts: Sequence[int], d: int) -> SegmentFactors:
    """Singular triplets [start, start + d) of a weight, for every start.

    Everything runs in float64 whatever the weight's dtype: in float32 the small end of the spectrum of an
    ill-conditioned weight is noise. A segment's product u s vh differs from that of a float64 SVD by less than 1e-5 of
    its norm, unless a segment cuts through repeated singular values, where no product is defined. A singular pair is
    only defined up to its sign; here the entry of largest magnitude of every left vector is positive, so that two
    machines agree.

    Args:
        weight: [m, n], any floating dtype, not on the meta device.
        starts: N start indices into the descending spectrum.
        d: Triplets per segment.

    Returns:
        The N segments, float64, on the weight's device (on the CPU where the device has no float64).

    Raises:
        RequestError: The weight is not a matrix of finite numbers, it is on the meta device, or a segment does not fit
            into its spectrum.
    """
    shape = tuple(weight.shape)
    if weight.ndim != 2 or not weight.is_floating_point():
        raise RequestError(f"cannot decompose a {weight.dtype} tensor of shape {shape}; a floating matrix is needed")
    h = min(shape)
    if len(starts) * d > h:
        raise RequestError(
            f"total rank {len(starts) * d} ({len(starts)} experts of rank {d}) is more than a layer of shape "
            f"{shape[0]} x {shape[1]} has singular values ({h})"
        )
    if any(start < 0 or start + d > h for start in starts):
        raise RequestError(f"segments of {d} from {list(starts)} leave the {h} singular values of shape {shape}")
    if weight.is_meta:
        raise RequestError(f"cannot decompose a weight of shape {shape} on the meta device: it has no values yet")
    matrix = weight.detach()
    if matrix.device.type == "mps":
        matrix = matrix.cpu()
    values, short, long = singular_triplets(matrix, [(start, start + d) for start in starts])
    left, right = (short, long) if shape[0] <= shape[1] else (long, short)  # [N d, m], [N d, n]
    sign = left.gather(1, left.abs().argmax(1, keepdim=True)).sign()  # never 0: a unit vector has a non-zero entry
    u, vh = ((side * sign).unflatten(0, (len(starts), d)) for side in (left, right))
    return SegmentFactors(u.transpose(1, 2), values.unflatten(0, (len(starts), d)), vh)


def balanced_factors(factors: SegmentFactors, scale: float, rho: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert matrices whose scaled product is 1 / rho of their segment: s B_i A_i = U_i S_i V_i^T / rho.

    B_i = sqrt(1 / (s rho)) U_i S_i^(1/2) and A_i = sqrt(1 / (s rho)) S_i^(1/2) V_i^T (arXiv 2604.01310,
    spectral initialisation).

    Args:
        factors: Segments of the weight.
        scale: s > 0.
        rho: Damping > 0.

    Returns:
        A [N, d, n] and B [m, N, d]: the layout in which `B.reshape(m, N * d)` is a free view.
    """
    root = factors.s.sqrt() * math.sqrt(1 / (scale * rho))  # [N, d]
    a = root.unsqueeze(-1) * factors.vh
    b = (factors.u * root.unsqueeze(1)).permute(1, 0, 2)
    return a.contiguous(), b.contiguous()
