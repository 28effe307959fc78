"""SparseGPT (arXiv 2301.00774): what goes is chosen by what it costs, and what stays makes up for it.

Symbols: m outputs, n inputs, t tokens; weight (m, n), inputs X (t, n); H = X^T X / t, damped; U its inverse's upper
Cholesky factor, H^-1 = U^T U.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from hf_farms.allocation.sparsity import apportion
from hf_farms.errors import HfFarmsWarning
from hf_farms.pruning.patterns import lowest, lowest_of_groups

__all__ = ["InputProducts", "inverse_factor", "sparsegpt"]

# Columns whose mask is chosen together, as released, and columns of them that are corrected one by one.
COLUMNS, AT_ONCE = 128, 32
DAMPING, MOST_DAMPING = 0.01, 10.0


class InputProducts:
    """Running X^T X of one layer's inputs; n x n float32, whatever the number of tokens.

    Args:
        width: input channels n.
        device: of the layer.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._sum = torch.zeros(width, width, dtype=torch.float32, device=device)
        self.num_tokens = 0

    def add(self, inputs: Tensor) -> None:
        """Count the tokens of `(..., n)` inputs, in float32 whatever their dtype."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float().to(self._sum.device)
        self._sum.addmm_(rows.mT, rows)
        self.num_tokens += len(rows)

    def mean(self) -> Tensor:
        """`(n, n)` float32: X^T X / t. The released code has twice that, which changes nothing."""
        return self._sum / max(1, self.num_tokens)


def inverse_factor(products: Tensor, *, name: str = "") -> tuple[Tensor, Tensor]:
    """Upper Cholesky factor of the inverse of the damped products, and the inputs that are always 0.

    1% of the mean diagonal is added to the diagonal; ten times as much, with a warning, as often as the factorisation
    fails. Costs O(n^3).

    Args:
        products: `(n, n)`, as `InputProducts.mean`; not modified.
        name: of the layer, for the warning.

    Returns:
        `(n, n)` float32 and `(n,)` bool.
    """
    hessian = products.float().clone()
    diagonal = hessian.diagonal()
    unused = diagonal == 0
    diagonal[unused] = 1
    step, damping = float(diagonal.mean()), DAMPING
    diagonal += damping * step
    while True:
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if not failed:
                break
        if damping >= MOST_DAMPING:
            raise ArithmeticError(f"products of inputs must be finite and symmetric, got a singular matrix in {name}.")
        diagonal += 9 * damping * step
        damping *= 10
        warnings.warn(f"Damping raised to {damping:g} of the mean diagonal in {name}.", HfFarmsWarning, stacklevel=2)
    return upper, unused


def sparsegpt(
    weight: Tensor, factor: Tensor, unused: Tensor, *, count: int, pattern: tuple[int, int] | None = None
) -> Tensor:
    """Remove weights, and correct those to the right of each for the error that its removal makes (algorithm 1).

    Of every 128 columns those entries go whose w^2 / U_jj^2 is lowest, as many as `count` gives them; with a pattern
    N:M the N lowest of every M neighbours in a row. Exactly that many are 0 at the end. Costs O(m n^2).

    Args:
        weight: `(m, n)`, any float dtype; not modified.
        factor: `(n, n)`, upper, of `inverse_factor`.
        unused: `(n,)` inputs that are always 0; their weights go first.
        count: how many weights go.
        pattern: N and M: N zeros in every M; `count` must be what it gives.

    Returns:
        `(m, n)` in the weight's dtype.
    """
    w = weight.float().masked_fill(unused, 0)
    m, n = w.shape
    starts = range(0, n, COLUMNS)
    sizes = [m * min(COLUMNS, n - start) for start in starts]
    counts = apportion(count, [count * size / w.numel() for size in sizes], sizes)
    gone = torch.zeros_like(w, dtype=torch.bool)
    for start, number in zip(starts, counts, strict=True):
        stop = min(start + COLUMNS, n)
        if pattern is None:
            scale = factor.diagonal()[start:stop]
            gone[:, start:stop] = lowest((w[:, start:stop] / scale).square(), number)
        errors = torch.empty(m, stop - start, device=w.device)
        width = AT_ONCE if pattern is None else max(pattern[1], AT_ONCE // pattern[1] * pattern[1])
        for inner in range(start, stop, width):
            end = min(inner + width, stop)
            _correct(w, gone, errors[:, inner - start : end - start], factor, (inner, end), pattern)
            w[:, end:stop] -= errors[:, inner - start : end - start] @ factor[inner:end, end:stop]
        w[:, stop:] -= errors @ factor[start:stop, stop:]
    return w.masked_fill(gone, 0).to(weight.dtype)


def _correct(
    w: Tensor,
    gone: Tensor,
    errors: Tensor,
    factor: Tensor,
    span: tuple[int, int],
    pattern: tuple[int, int] | None,
) -> None:
    """Columns of a span, one by one; the corrections beyond it are left to the caller."""
    start, stop = span
    for column in range(start, stop):
        if pattern is not None and (column - start) % pattern[1] == 0:
            group = slice(column, column + pattern[1])
            scores = (w[:, group] / factor.diagonal()[group]).square()
            gone[:, group] = lowest_of_groups(scores, pattern)
        error = torch.where(gone[:, column], w[:, column], 0) / factor[column, column]
        w[:, column:stop] -= error[:, None] * factor[column, column:stop]
        errors[:, column - start] = error
