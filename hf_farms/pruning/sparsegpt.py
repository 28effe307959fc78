"""SparseGPT (arXiv 2301.00774): remove weights by output error, and update the remaining ones to compensate.

Symbols: m outputs, n inputs, t tokens; weight (m, n), inputs X (t, n); H = X^T X / t, damped; U its inverse's upper
Cholesky factor, H^-1 = U^T U. The algorithm stores weights as (n, m), so that a column of the paper is contiguous.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from hf_farms.allocation.sparsity import apportion
from hf_farms.config import PruneConfig
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.processes import ONE_PROCESS, WorkingRanks, rows_of_rank
from hf_farms.pruning.patterns import Removal, lowest, lowest_down_columns
from hf_farms.pruning.totals import sum_over_ranks, total_dtype

__all__ = ["InputProducts", "InverseFactor", "inverse_factor", "refit", "sparsegpt"]

# Columns that are corrected one by one.
ONE_BY_ONE = 32
# Inputs that are converted to float32 at once.
INPUTS_AT_ONCE = 2**24
MOST_DAMPING = 1e3
# The smallest positive float16.
SMALLEST_FLOAT16 = 2.0**-24


class InverseFactor(NamedTuple):
    """Prepared statistic of the inputs of a layer for SparseGPT.

    Attributes:
        upper: `(n, n)` float32, U with positive diagonal.
        unused: `(n,)` bool, inputs that are always 0.
        damping: value added to the diagonal of H, in units of its mean.
    """

    upper: Tensor
    unused: Tensor
    damping: float


class InputProducts:
    """Running sum of X^T X over the inputs of one layer; n x n float64, independent of the number of tokens.

    The products of each batch are float32. Their sum is float64, so that it does not depend on the order of the batches
    or on the processes that add them, but for rounding at the last bit of the float32 mean in rare entries.

    Args:
        width: number of input channels n.
        device: device of the layer.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._sum = torch.zeros(width, width, dtype=total_dtype(device), device=device)
        self._is_mean = False
        self.num_tokens = 0

    @staticmethod
    def nbytes(width: int) -> int:
        """Return the memory for `width` inputs, in bytes."""
        return 8 * width**2

    @staticmethod
    def tokens_needed(width: int) -> int:
        """Return the number of inputs: a Hessian of n inputs needs n tokens to have full rank."""
        return width

    def add(self, inputs: Tensor) -> None:
        """Add `(..., n)` inputs of any float dtype, multiplied in float32 and accumulated in float64."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        for part in rows.split(max(1, INPUTS_AT_ONCE // rows.shape[1])):
            part = part.to(self._sum.device, torch.float32)
            self._sum += part.mT @ part
        self.num_tokens += len(rows)

    def merge(self, other: InputProducts) -> None:
        """Add the inputs of another statistic."""
        self._sum += other._sum
        self.num_tokens += other.num_tokens

    def sum_over(self, ranks: WorkingRanks) -> None:
        """Add the inputs of the statistics of the other ranks."""
        self.num_tokens = sum_over_ranks(self._sum, self.num_tokens, ranks)

    def is_finite(self) -> bool:
        """Return whether all inputs were finite: NaN and infinity appear on the diagonal."""
        return bool(torch.isfinite(self._sum.diagonal()).all())

    def prepared(self, name: str, *, damping: float = PruneConfig.damping) -> InverseFactor:
        """Return the inverse factor, with more damping for fewer tokens than inputs: `damping` x n / t.

        With t < n the products are singular. Without additional damping, weights would be overfitted to the few
        directions in the data.
        """
        damping_factor = len(self._sum) / max(1, self.num_tokens)
        # The released code uses twice this mean, which has no effect.
        return inverse_factor(self.mean(), damping=damping * max(1.0, damping_factor), name=name)

    def mean(self) -> Tensor:
        """Return the mean of X^T X, `(n, n)` float32; no inputs may be added after it."""
        if not self._is_mean:
            # In place, because n x n may exceed the block.
            self._sum /= max(1, self.num_tokens)
            self._sum, self._is_mean = self._sum.float(), True
        return self._sum


def inverse_factor(products: Tensor, *, damping: float = PruneConfig.damping, name: str = "") -> InverseFactor:
    """Compute the upper Cholesky factor of the inverse of the damped products.

    While the factorization fails, damping grows tenfold, with a warning. With J the matrix that reverses the order and
    J H J = L L^T, the factor is J L^-1 J: one factorization and one triangular inverse, O(n^3), without an explicit
    inverse that could lose positive definiteness by rounding.

    Args:
        products: `(n, n)`, mean of X^T X; not modified.
        damping: value added to the diagonal, in units of its mean over inputs that are not always 0.
        name: name of the layer, for the warning.

    Raises:
        ModelError: the products are not finite.
    """
    hessian = products.float().flip(0, 1)
    diagonal = hessian.diagonal()
    unused = diagonal == 0
    scale = float(diagonal[~unused].mean()) if not unused.all() else 1.0
    diagonal.add_(damping * scale)
    diagonal[unused] = scale
    while True:
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not failed and torch.isfinite(lower.diagonal()).all():
            break
        if damping >= MOST_DAMPING:
            raise ModelError(f"products of inputs must be finite and positive, got none that are in {name}.")
        diagonal[~unused] += 9 * damping * scale
        damping *= 10
        warnings.warn(
            f"The Hessian of {name} is singular: {damping:g} of its mean diagonal was added to the diagonal.",
            HfFarmsWarning,
            stacklevel=2,
        )
    del hessian, diagonal
    # Transposed, because the solver works in place only on column-major memory.
    inverse = torch.eye(len(lower), dtype=lower.dtype, device=lower.device).mT
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    del lower
    return InverseFactor(inverse.flip(0, 1).contiguous(), unused.flip(0), damping)


def sparsegpt(
    weight: Tensor,
    factor: InverseFactor,
    removal: Removal,
    *,
    block_size: int = PruneConfig.block_size,
    ranks: WorkingRanks = ONE_PROCESS,
) -> Tensor:
    """Remove weights, and update those to the right of each to compensate its error (algorithm 1 of the paper).

    In each span of `block_size` columns, the entries with the lowest w^2 / U_jj^2 are removed; with a pattern, the
    lowest of each group. Weights of inputs that are always 0 are removed first and not updated. Costs O(m n^2).

    Args:
        weight: `(m, n)`, any float dtype; not modified.
        factor: prepared statistic of the layer's inputs.
        removal: number and pattern of the weights to remove.
        block_size: columns whose mask is chosen together; a multiple of the group size is taken.
        ranks: with several processes, each computes some rows; all return the same weight.

    Returns:
        `(m, n)` in the dtype of the weight; zero exactly where weights were removed or were zero before.
    """
    return _correct(weight, factor, removal, None, block_size, ranks)


def refit(
    weight: Tensor, factor: InverseFactor, removed: Tensor, *, block_size: int = PruneConfig.block_size
) -> Tensor:
    """Remove the weights of a mask, and update those to the right of each to compensate its error, as `sparsegpt` does.

    Args:
        weight: `(m, n)` dense weight, any float dtype; not modified.
        factor: prepared statistic of the layer's inputs.
        removed: `(m, n)` bool, True to remove; not modified.
        block_size: columns that are corrected together; changes rounding errors only.

    Returns:
        `(m, n)` in the dtype of the weight; zero exactly where weights were removed.
    """
    return _correct(weight, factor, Removal(int(removed.sum())), removed.mT.contiguous(), block_size, ONE_PROCESS)


def _correct(
    weight: Tensor,
    factor: InverseFactor,
    removal: Removal,
    given: Tensor | None,
    block_size: int,
    ranks: WorkingRanks,
) -> Tensor:
    """Remove weights, those of a given mask `(n, m)` or the lowest scores of each span, and update the others."""
    m, n = weight.shape
    own = rows_of_rank(m, ranks)
    weight = weight[own]
    w = weight.float().mT.contiguous().masked_fill_(factor.unused[:, None], 0)
    # Spans must contain whole groups.
    size = removal.group[1] if removal.group else 1
    columns = max(size, block_size // size * size)
    starts = range(0, n, columns)
    sizes = [m * min(columns, n - start) for start in starts]
    counts = apportion(removal.count, [removal.count * part / (m * n) for part in sizes], sizes)
    removed = torch.zeros_like(w, dtype=torch.bool) if given is None else given
    for start, count in zip(starts, counts, strict=True):
        stop = min(start + columns, n)
        if removal.group is None and given is None:
            scale = factor.upper.diagonal()[start:stop, None]
            # The lowest of all rows, not of those of this rank.
            scores = ranks.concatenate((w[start:stop] / scale).square().mT).mT
            removed[start:stop] = lowest(scores, count)[:, own]
        errors = _correct_span(w, removed, factor.upper, (start, stop), removal.group)
        w[stop:].addmm_(factor.upper[start:stop, stop:].mT, errors, alpha=-1)
    if weight.dtype == torch.float16:
        # Weights must not round to zero, which would count as removed.
        smallest = torch.full_like(w, SMALLEST_FLOAT16)
        w = torch.where((w != 0) & (w.abs() < SMALLEST_FLOAT16), smallest.copysign(w), w)
    kept = w.mT.to(weight.dtype).contiguous()
    kept[:, factor.unused] = weight[:, factor.unused]
    return ranks.concatenate(kept.masked_fill_(removed.mT, 0))


def _correct_span(
    w: Tensor, removed: Tensor, upper: Tensor, span: tuple[int, int], group: tuple[int, int] | None
) -> Tensor:
    """Correct the columns of a span one by one; return their errors, for the update of columns beyond the span."""
    start, stop = span
    errors = torch.empty_like(w[start:stop])
    size = group[1] if group else 1
    width = max(size, ONE_BY_ONE // size * size)
    for first in range(start, stop, width):
        end = min(first + width, stop)
        for column in range(first, end):
            if group is not None and (column - start) % size == 0:
                in_group = slice(column, column + size)
                scores = (w[in_group] / upper.diagonal()[in_group, None]).square()
                removed[in_group] = lowest_down_columns(scores, group[0])
            error = errors[column - start]
            torch.div(w[column], upper[column, column], out=error)
            error.masked_fill_(~removed[column], 0)
            w[column:end].addr_(upper[column, column:end], error, alpha=-1)
        w[end:stop].addmm_(upper[first:end, end:stop].mT, errors[first - start : end - start], alpha=-1)
    return errors
