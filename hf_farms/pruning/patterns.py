"""Which entries of a score matrix go: patterns of zeros."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["lowest", "lowest_of_groups", "lowest_per_row"]


def lowest_per_row(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` lowest scores, as evenly over the rows as whole numbers allow.

    The released rule of Wanda removes floor(columns x ratio) entries of every row. What is then missing to the exact
    total is the next lowest entry of those rows in which that entry is lowest. Ties go to the smaller column, then to
    the smaller row.

    Costs one selection per row, O(rows x columns).

    Args:
        scores: `(rows, columns)`, finite.
        count: entries to mark, at most rows x columns.

    Returns:
        `(rows, columns)` bool, True = goes; exactly `count` are True.
    """
    rows, columns = scores.shape
    if not 0 <= count <= rows * columns:
        raise ValueError(f"count must be between 0 and {rows * columns}, got {count}.")
    per_row, extra = divmod(count, rows)
    mask = _lowest(scores, per_row)
    if extra:
        lowest = scores.masked_fill(mask, torch.inf).amin(dim=1)
        # argmax takes the first of equal values, which min does not promise.
        column = ((scores == lowest[:, None]) & ~mask).int().argmax(dim=1)
        chosen = lowest.sort(stable=True).indices[:extra]
        mask[chosen, column[chosen]] = True
    return mask


def _lowest(scores: Tensor, k: int) -> Tensor:
    """The k lowest of every row, ties by column."""
    if k == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(k, dim=1, keepdim=True).values
    below = scores < threshold
    tied = scores == threshold
    missing = k - below.sum(dim=1, keepdim=True)
    return below | (tied & (tied.cumsum(dim=1) <= missing))


def lowest(scores: Tensor, count: int) -> Tensor:
    """Mark exactly the `count` lowest scores of a matrix, ties by position.

    Args:
        scores: `(rows, columns)`, finite.
        count: entries to mark.

    Returns:
        `(rows, columns)` bool.
    """
    return _lowest(scores.reshape(1, -1), count).reshape(scores.shape)


def lowest_of_groups(scores: Tensor, pattern: tuple[int, int]) -> Tensor:
    """Mark the N lowest of every M neighbours in a row, ties by column.

    Args:
        scores: `(rows, columns)`, finite; columns a multiple of M.
        pattern: N and M.

    Returns:
        `(rows, columns)` bool; exactly N of every M are True.
    """
    number, size = pattern
    groups = scores.reshape(-1, size)
    order = groups.argsort(dim=1, stable=True)[:, :number]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order, True).reshape(scores.shape)
