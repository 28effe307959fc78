"""Which entries of a score matrix go: patterns of zeros."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Removal", "lowest", "lowest_down_columns", "lowest_of_groups", "lowest_per_row"]

# Entries whose mask is chosen at once: what that takes beside them is several times their size.
AT_ONCE = 2**22


@dataclass(frozen=True)
class Removal:
    """What goes from one layer.

    Attributes:
        count: how many weights.
        group: so many zeros, in every so many neighbours of a row; None: anywhere. It must give the same count.
    """

    count: int
    group: tuple[int, int] | None = None

    def mask(self, scores: Tensor) -> Tensor:
        """Mark what goes by its scores: the lowest of every row, or of every group.

        Args:
            scores: `(rows, columns)`, finite.

        Returns:
            `(rows, columns)` bool, True = goes.
        """
        return lowest_per_row(scores, self.count) if self.group is None else lowest_of_groups(scores, *self.group)


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
    mask = torch.empty_like(scores, dtype=torch.bool)
    following = []
    for part, marked in zip(_parts(scores), _parts(mask), strict=True):
        marked.copy_(_lowest(part, per_row))
        if extra:
            following.append(_next_lowest(part, marked))
    if extra:
        lowest, column = (torch.cat(found) for found in zip(*following, strict=True))
        chosen = lowest.sort(stable=True).indices[:extra]
        mask[chosen, column[chosen]] = True
    return mask


def _parts(scores: Tensor) -> Iterable[Tensor]:
    """Some rows at a time."""
    yield from scores.split(max(1, AT_ONCE // scores.shape[1]))


def _next_lowest(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest entry of every row that is not marked, and its column."""
    lowest = scores.masked_fill(mask, torch.inf).amin(dim=1)
    # argmax takes the first of equal values, which min does not promise.
    return lowest, ((scores == lowest[:, None]) & ~mask).int().argmax(dim=1)


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


def lowest_of_groups(scores: Tensor, zeros: int, size: int) -> Tensor:
    """Mark the lowest of every `size` neighbours in a row, ties by column.

    Args:
        scores: `(rows, columns)`, finite; columns a multiple of `size`.
        zeros: how many of each group.
        size: of a group.

    Returns:
        `(rows, columns)` bool.
    """
    mask = torch.empty_like(scores, dtype=torch.bool)
    for part, marked in zip(_parts(scores), _parts(mask), strict=True):
        columns = part.reshape(-1, size).mT.contiguous()
        marked.copy_(lowest_down_columns(columns, zeros).mT.reshape(part.shape))
    return mask


def lowest_down_columns(scores: Tensor, zeros: int) -> Tensor:
    """Mark the lowest of every column, ties by row.

    Costs O(rows^2 x columns): for the few rows of a group.

    Args:
        scores: `(rows, columns)`, finite, contiguous.
        zeros: how many of each column.

    Returns:
        `(rows, columns)` bool.
    """
    # A rank by comparisons, each on all columns at once: sorting millions of short ones takes six times as long.
    rows = len(scores)
    rank = torch.arange(rows, dtype=torch.int16 if rows > 255 else torch.uint8, device=scores.device)
    rank = rank[:, None].repeat(1, scores.shape[1])
    for apart in range(1, rows):
        lower = (scores[apart:] < scores[:-apart]).to(rank.dtype)
        rank[:-apart] += lower
        rank[apart:] -= lower
    return rank < zeros
