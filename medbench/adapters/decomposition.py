"""Singular triplets of a weight by the cheapest exact route, in float64 whatever the weight's dtype.

A weight [m, n] has a short side h = min(m, n) and a long one. Its *decomposition* is what takes long to find and
little to keep: the h singular values and the h vectors of the short side, from `eigh` of the h x h Gram matrix. The
vectors of the long side are one thin product with the weight, made only for the triplets that are asked for.

Squaring a weight squares its condition: of one Gram matrix the small singular values have lost half their digits and
more. So only what lies above `SURE` of the largest value is taken from it; the rest comes from the Gram matrix of the
weight *without* that part, and so on. What then still lies below `LIMIT` (rank-deficient and zero weights) is left to
`torch.linalg.svd`. Randomised methods are not exact on the flat spectra of weights: `benchmarks/svd.py` measures it.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal, eigvalsh_tridiagonal, lapack

from medbench.errors import RequestError

SURE = 1e-3  # of the largest value of a Gram matrix: a relative gap is then seen 1e6 times less sharply than by an SVD
LIMIT = 1e-6  # of the largest value of the weight
_BLOCK = 2**20  # entries of a weight that are float64 at a time (8 MiB)
_PANELS = 8  # a Gram matrix is symmetric: in 8 panels, 56 % of it is computed

Span = tuple[int, int]


class Rows(Protocol):
    """Rows of a matrix: a tensor, or a part of a file of which only the rows asked for are read."""

    def __getitem__(self, rows: slice, /) -> torch.Tensor:
        """The rows, in float64."""


class Triplets(NamedTuple):
    """k singular triplets, float64, on the weight's device.

    Attributes:
        values: [k], singular values.
        short: [k, min(m, n)], singular vectors of the short side as rows: the left ones where m <= n.
        long: [k, max(m, n)], those of the long side as rows.
    """

    values: torch.Tensor
    short: torch.Tensor
    long: torch.Tensor


class Decomposition(NamedTuple):
    """What is kept of a weight.

    Attributes:
        values: [h], singular values, descending.
        short: [h, h], singular vectors of the short side as rows, so that a segment is one piece of a file.
        long: [h, max(m, n)], those of the long side from an SVD; None where they follow from the weight.
    """

    values: torch.Tensor
    short: Rows
    long: Rows | None = None

    def triplets(self, weight: torch.Tensor, spans: Sequence[Span]) -> Triplets | None:
        """The triplets [start, stop) of every span, one after another.

        Args:
            weight: [m, n], the weight that was decomposed.
            spans: Pieces of the descending spectrum, each within [0, h).

        Returns:
            None where a value is too small for this route, or the vectors are not those of the weight.
        """
        top = self.values[0].item()
        values, short = (_take(rows, spans).to(weight.device) for rows in (self.values, self.short))
        if self.long is None and not values.min() > LIMIT * top:
            return None
        image = _image(weight, short)
        if self.long is None:
            image /= values.unsqueeze(1)
            norms = image.norm(dim=1, keepdim=True)
            long, error = image / norms, (norms - 1).abs().max()
        else:
            long = _take(self.long, spans).to(weight.device)
            error = (image - values.unsqueeze(1) * long).abs().max() / (top or 1)
        error = torch.maximum(error, (short.norm(dim=1) - 1).abs().max())
        return Triplets(values, short, long) if error <= 1e-6 else None  # NaN is not


def find_triplets(weight: torch.Tensor, spans: Sequence[Span]) -> Triplets:
    """Singular triplets of a weight for a single use: where they are few, no others are computed.

    Args:
        weight: [m, n], floating, with values.
        spans: Pieces [start, stop) of the descending spectrum, each within [0, min(m, n)).

    Raises:
        RequestError: The weight has values that are not finite.
    """
    gram = _whole_gram(weight)
    few = weight.device.type == "cpu" and 4 * sum(stop - start for start, stop in spans) < min(weight.shape)
    found = _selected(gram, spans) if few and gram is not None else None
    triplets = None if found is None else found.triplets(weight, [(0, len(found.values))])
    return _find(weight, spans, gram)[1] if triplets is None else triplets


def find_decomposition(weight: torch.Tensor, spans: Sequence[Span]) -> tuple[Decomposition, Triplets]:
    """The whole decomposition of a weight, and its triplets in some spans; as `find_triplets`."""
    return _find(weight, spans, _whole_gram(weight))


def _find(weight: torch.Tensor, spans: Sequence[Span], gram: torch.Tensor | None) -> tuple[Decomposition, Triplets]:
    if gram is not None:
        try:
            decomposition = _peeled(weight, gram)
            triplets = decomposition.triplets(weight, spans)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # no convergence
            triplets = None
        if triplets is not None:
            return decomposition, triplets
    u, values, vh = torch.linalg.svd(weight.detach().to(torch.float64), full_matrices=False)
    short, long = (side.contiguous() for side in ((u.T, vh) if _is_wide(weight) else (vh, u.T)))
    return Decomposition(values, short, long), Triplets(*(_take(rows, spans) for rows in (values, short, long)))


def _peeled(weight: torch.Tensor, gram: torch.Tensor) -> Decomposition:
    """All values and short vectors, from the Gram matrices of less and less of the weight."""
    values: list[torch.Tensor] = []
    vectors: list[torch.Tensor] = []
    rest: torch.Tensor | None = None  # [p, h], an orthonormal basis of what is left; None is everything
    while True:
        squares, columns = torch.linalg.eigh(gram, UPLO="U")
        found, rows = squares.flip(0).clamp(min=0).sqrt(), columns.T.flip(0)
        if rest is not None:
            rows = rows @ rest
        sure = int((found > SURE * found[0]).sum())
        last = sure == len(found) or bool(values and found[0] <= LIMIT * values[0][0])
        values.append(found if last else found[:sure])
        vectors.append(rows if last else rows[:sure])
        if last:
            # Where two Gram matrices meet, rounding may have swapped neighbours.
            return Decomposition(torch.cat(values).cummin(0).values, torch.cat(vectors))
        rest = rows[sure:]
        gram = _gram(weight, rest)


def _selected(gram: torch.Tensor, spans: Sequence[Span]) -> Decomposition | None:
    """The decomposition in some spans alone; None where one Gram matrix is not enough for them.

    Reducing a matrix to tridiagonal form is a quarter of the work of `eigh`, the eigenvectors are the rest of it.
    (`scipy.linalg.eigh` with `subset_by_index` would reduce it once for every span.)
    """
    h = len(gram)
    # LAPACK's matrices are column-major: in the transpose, the lower triangle is the one that is filled.
    size = int(lapack.dsytrd_lwork(h, lower=1)[0])
    reflectors, diagonal, beside, factors, failed = lapack.dsytrd(gram.numpy().T, lower=1, lwork=size)
    squares = eigvalsh_tridiagonal(diagonal, beside)[::-1]
    if failed or not min(squares[stop - 1] for _, stop in spans) > SURE**2 * squares[0]:
        return None
    ascending = [(h - stop, h - start - 1) for start, stop in spans]
    parts = [eigh_tridiagonal(diagonal, beside, select="i", select_range=ends)[1][:, ::-1] for ends in ascending]
    columns = np.concatenate(parts, axis=1)  # [h, k]
    size = 64 * columns.shape[1]
    columns[1:], _, failed = lapack.dormqr("L", "N", reflectors[1:, :-1], factors, columns[1:], lwork=size)
    values = np.concatenate([squares[start:stop] for start, stop in spans]) ** 0.5
    return None if failed else Decomposition(torch.from_numpy(values), torch.from_numpy(columns.T.copy()))


def _whole_gram(weight: torch.Tensor) -> torch.Tensor | None:
    """The Gram matrix of a weight, or None where its squares leave the range of float64."""
    gram = _gram(weight)
    trace = gram.trace().item()
    if not math.isfinite(trace) and not all(block.isfinite().all() for block in _blocks(weight)):
        m, n = weight.shape
        raise RequestError(f"cannot decompose a weight of shape {m} x {n}: it has values that are not finite")
    return gram if 1e-200 < trace < 1e200 else None


def _gram(weight: torch.Tensor, basis: torch.Tensor | None = None) -> torch.Tensor:
    """The upper triangle of the Gram matrix of a weight's short side.

    Args:
        weight: [m, n].
        basis: [p, h], rows onto which the short side is projected; None leaves it as it is.

    Returns:
        [p, p], float64, not filled below the panels on the diagonal.
    """
    size = min(weight.shape) if basis is None else len(basis)
    gram = torch.zeros(size, size, dtype=torch.float64, device=weight.device)
    width = -(-size // _PANELS)
    for block in _blocks(weight.T if _is_wide(weight) else weight):
        rows = block if basis is None else block @ basis.T  # [b, p]
        for start in range(0, size, width):
            gram[start : start + width, start:].addmm_(rows[:, start : start + width].T, rows[:, start:])
    return gram


def _image(weight: torch.Tensor, short: torch.Tensor) -> torch.Tensor:
    """Rows of the short side, [k, h], carried to the long one, [k, max(m, n)], by a weight or its transpose."""
    if not _is_wide(weight):
        return torch.cat([short @ block.T for block in _blocks(weight)], dim=1)
    # A sum over the rows of the weight as they lie in memory: taking columns out of them would be half the time.
    image = torch.zeros(len(short), weight.shape[1], dtype=torch.float64, device=weight.device)
    start = 0
    for block in _blocks(weight):
        image.addmm_(short[:, start : start + len(block)], block)
        start += len(block)
    return image


def _blocks(matrix: torch.Tensor) -> Iterator[torch.Tensor]:
    """A matrix in float64, some rows after others; the next ones take the place of the last."""
    step = max(1, _BLOCK // matrix.shape[1])
    buffer = torch.empty_like(matrix[:step], dtype=torch.float64)  # laid out like the matrix
    for start in range(0, len(matrix), step):
        rows = matrix[start : start + step].detach()
        yield buffer[: len(rows)].copy_(rows)


def _take(rows: Rows, spans: Sequence[Span]) -> torch.Tensor:
    return torch.cat([rows[start:stop] for start, stop in spans])


def _is_wide(weight: torch.Tensor) -> bool:
    return weight.shape[0] <= weight.shape[1]
