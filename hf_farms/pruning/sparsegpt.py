"""SparseGPT (arXiv 2301.00774): what goes is chosen by what it costs, and what stays makes up for it.

Symbols: m outputs, n inputs, t tokens; weight (m, n), inputs X (t, n); H = X^T X / t, damped; U its inverse's upper
Cholesky factor, H^-1 = U^T U. Inside the algorithm weights lie as (n, m), so that a column of the paper is contiguous.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from hf_farms.allocation.sparsity import apportion
from hf_farms.errors import HfFarmsWarning, ModelError
from hf_farms.pruning.patterns import Removal, lowest, lowest_down_columns

__all__ = ["DAMPING", "InputProducts", "InverseFactor", "inverse_factor", "sparsegpt"]

# Columns whose mask is chosen together, as released, and columns of them that are corrected one by one.
COLUMNS, ONE_BY_ONE = 128, 32
# Inputs that are made float32 at once.
AT_ONCE = 2**24
DAMPING, MOST_DAMPING = 0.01, 1e3
# The smallest float16 that is not zero.
LEAST = 2.0**-24


class InverseFactor(NamedTuple):
    """What SparseGPT needs to know of a layer's inputs.

    Attributes:
        upper: `(n, n)` float32, U with positive diagonal.
        unused: `(n,)` bool, inputs that are always 0.
        damping: what was added to the diagonal, in units of its mean.
    """

    upper: Tensor
    unused: Tensor
    damping: float


class InputProducts:
    """Running X^T X of one layer's inputs; n x n float32, whatever the number of tokens.

    Args:
        width: input channels n.
        device: of the layer.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._sum = torch.zeros(width, width, dtype=torch.float32, device=device)
        self.num_tokens = 0

    @staticmethod
    def nbytes(width: int) -> int:
        """Memory for so many inputs."""
        return 4 * width**2

    @staticmethod
    def tokens_needed(width: int) -> int:
        """A Hessian of n inputs has full rank from n tokens on."""
        return width

    def add(self, inputs: Tensor) -> None:
        """Count the tokens of `(..., n)` inputs, in float32 whatever their dtype."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        for part in rows.split(max(1, AT_ONCE // rows.shape[1])):
            part = part.to(self._sum.device, torch.float32)
            self._sum.addmm_(part.mT, part)
        self.num_tokens += len(rows)

    def merge(self, other: InputProducts) -> None:
        """Count the tokens of another one too."""
        self._sum += other._sum
        self.num_tokens += other.num_tokens

    def is_finite(self) -> bool:
        """Whether no input was NaN or infinite; each shows in its square on the diagonal."""
        return bool(torch.isfinite(self._sum.diagonal()).all())

    def prepared(self, name: str) -> InverseFactor:
        """The factor, damped by more where there are fewer tokens than inputs: 1% x n / t.

        Such products are singular: most directions were never seen, and without the additional damping all weights
        would be bent to please the few that were.
        """
        few = len(self._sum) / max(1, self.num_tokens)
        # The released code has twice this mean, which changes nothing. In place: n x n may be more than the block.
        self._sum /= max(1, self.num_tokens)
        return inverse_factor(self._sum, damping=DAMPING * max(1.0, few), name=name)


def inverse_factor(products: Tensor, *, damping: float = DAMPING, name: str = "") -> InverseFactor:
    """Upper Cholesky factor of the inverse of the damped products, and the inputs that are always 0.

    Ten times the damping, with a warning, as often as the factorisation fails. With J the matrix that reverses the
    order and J H J = L L^T, the factor is J L^-1 J: one factorisation and one triangular inverse, O(n^3), and nothing
    that is not positive definite by rounding can come up in between.

    Args:
        products: `(n, n)`, mean of X^T X; not modified.
        damping: added to the diagonal, in units of its mean over the inputs that are used.
        name: of the layer, for the warning.

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
    # Transposed, because the solver works in place on Fortran's order only.
    inverse = torch.eye(len(lower), dtype=lower.dtype, device=lower.device).mT
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    del lower
    return InverseFactor(inverse.flip(0, 1).contiguous(), unused.flip(0), damping)


def sparsegpt(weight: Tensor, factor: InverseFactor, cut: Removal) -> Tensor:
    """Remove weights, and correct those to the right of each for the error that its removal makes (algorithm 1).

    Of every 128 columns those entries go whose w^2 / U_jj^2 is lowest, as many as the cut gives them; of groups of
    neighbours the lowest of each. Weights of inputs that are always 0 go first and are not changed otherwise. Costs
    O(m n^2).

    Args:
        weight: `(m, n)`, any float dtype; not modified.
        factor: of the layer's inputs.
        cut: how many weights go, and from where.

    Returns:
        `(m, n)` in the weight's dtype; exactly the cut is 0 (and what was 0 before).
    """
    w = weight.float().mT.contiguous().masked_fill_(factor.unused[:, None], 0)
    n, m = w.shape
    # A group must not be parted.
    size = cut.group[1] if cut.group else 1
    columns = max(size, COLUMNS // size * size)
    starts = range(0, n, columns)
    sizes = [m * min(columns, n - start) for start in starts]
    counts = apportion(cut.count, [cut.count * part / w.numel() for part in sizes], sizes)
    gone = torch.zeros_like(w, dtype=torch.bool)
    for start, count in zip(starts, counts, strict=True):
        stop = min(start + columns, n)
        if cut.group is None:
            scale = factor.upper.diagonal()[start:stop, None]
            gone[start:stop] = lowest((w[start:stop] / scale).square(), count)
        errors = _correct(w, gone, factor.upper, (start, stop), cut.group)
        w[stop:].addmm_(factor.upper[start:stop, stop:].mT, errors, alpha=-1)
    if weight.dtype == torch.float16:
        # What is rounded to zero would count as removed.
        w = torch.where((w != 0) & (w.abs() < LEAST), torch.full_like(w, LEAST).copysign(w), w)
    kept = w.mT.to(weight.dtype).contiguous()
    kept[:, factor.unused] = weight[:, factor.unused]
    return kept.masked_fill_(gone.mT, 0)


def _correct(w: Tensor, gone: Tensor, upper: Tensor, span: tuple[int, int], group: tuple[int, int] | None) -> Tensor:
    """Columns of a span, one by one; returns their errors, whose effect beyond the span is left to the caller."""
    start, stop = span
    errors = torch.empty_like(w[start:stop])
    size = group[1] if group else 1
    width = max(size, ONE_BY_ONE // size * size)
    for first in range(start, stop, width):
        end = min(first + width, stop)
        for column in range(first, end):
            if group is not None and (column - start) % size == 0:
                near = slice(column, column + size)
                scores = (w[near] / upper.diagonal()[near, None]).square()
                gone[near] = lowest_down_columns(scores, group[0])
            error = errors[column - start]
            torch.div(w[column], upper[column, column], out=error)
            error.masked_fill_(~gone[column], 0)
            w[column:end].addr_(upper[column, column:end], error, alpha=-1)
        w[end:stop].addmm_(upper[first:end, end:stop].mT, errors[first - start : end - start], alpha=-1)
    return errors
