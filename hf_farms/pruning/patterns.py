"""Choose the entries of a score matrix to remove: unstructured and N:M patterns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Removal", "count_ties", "lowest", "lowest_down_columns", "lowest_of_groups", "lowest_per_row"]

# Entries whose mask is chosen at once: temporary tensors need several times their size.
ENTRIES_AT_ONCE = 2**22
# Scores that are closer, relative to their size, may change places if the statistics are summed in another order: each
# is a product of float32 factors, one of which may differ in its last bit.
ROUNDING = 2**-21


@dataclass(frozen=True)
class Removal:
    """Number and pattern of the weights to remove from one layer.

    Attributes:
        count: number of weights to remove.
        group: (zeros, size): zeros in every `size` consecutive weights of a row, consistent with `count`; None for
            unstructured removal.
    """

    count: int
    group: tuple[int, int] | None = None

    def mask(self, scores: Tensor) -> Tensor:
        """Select the weights to remove: the lowest scores of every row, or of every group.

        Args:
            scores: `(rows, columns)`, finite.

        Returns:
            `(rows, columns)` bool, True to remove.
        """
        return lowest_per_row(scores, self.count) if self.group is None else lowest_of_groups(scores, *self.group)

    def ties(self, scores: Tensor, removed: Tensor) -> int:
        """Count the weights that were kept with the score of a removed one, but for rounding.

        Without any, a last bit in the scores cannot change the mask. Scores of zero are exact, and not counted.

        Args:
            scores: `(rows, columns)`, finite and not negative.
            removed: `(rows, columns)` bool, as `mask` returns it.
        """
        if self.group is not None:
            return count_ties(scores.reshape(-1, self.group[1]), removed.reshape(-1, self.group[1]))
        per_row, extra = divmod(self.count, len(scores))
        return count_ties(scores, removed) + (_ties_of_rows(scores, removed, per_row) if extra else 0)


def lowest_per_row(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` lowest scores, distributed over the rows as evenly as integers allow.

    The released code of Wanda removes floor(columns x ratio) entries of every row. To reach the exact total, this also
    marks the next lowest entry in the rows where that entry is lowest. Ties are broken by column, then by row.

    Costs one selection per row, O(rows x columns).

    Args:
        scores: `(rows, columns)`, finite.
        count: entries to mark, at most rows x columns.

    Returns:
        `(rows, columns)` bool; exactly `count` are True.

    Raises:
        ValueError: `count` is negative or larger than the matrix.
    """
    rows, columns = scores.shape
    if not 0 <= count <= rows * columns:
        raise ValueError(f"count must be between 0 and {rows * columns}, got {count}.")
    per_row, extra = divmod(count, rows)
    mask = torch.empty_like(scores, dtype=torch.bool)
    next_lowest = []
    for part, marked in zip(_row_groups(scores), _row_groups(mask), strict=True):
        marked.copy_(_lowest_per_row(part, per_row))
        if extra:
            next_lowest.append(_next_lowest(part, marked))
    if extra:
        lowest, column = (torch.cat(parts) for parts in zip(*next_lowest, strict=True))
        chosen = lowest.sort(stable=True).indices[:extra]
        mask[chosen, column[chosen]] = True
    return mask


def count_ties(scores: Tensor, removed: Tensor) -> int:
    """Count the kept entries of each row whose score is the highest removed one, but for rounding.

    Args:
        scores: `(rows, columns)`, finite and not negative.
        removed: `(rows, columns)` bool.
    """
    ties = 0
    for part, marked in zip(_row_groups(scores), _row_groups(removed), strict=True):
        highest = _highest(part, marked)
        # All that were removed are among them.
        within = (part <= highest[:, None] * (1 + ROUNDING)).sum(dim=1) - marked.sum(dim=1)
        ties += int(within[highest > 0].sum())
    return ties


def _ties_of_rows(scores: Tensor, removed: Tensor, per_row: int) -> int:
    """Count the rows that lost one entry less than others, although the next one ties with theirs."""
    groups = list(zip(_row_groups(scores), _row_groups(removed), strict=True))
    has_more = removed.sum(dim=1) > per_row
    highest = torch.cat([_highest(part, marked) for part, marked in groups])[has_more].amax()
    # Removed entries are lifted above all others: `masked_fill` takes ten times as long.
    above = scores.amax()
    lowest_kept = torch.cat([(part + marked * above).amin(dim=1) for part, marked in groups])[~has_more]
    return int(((lowest_kept <= highest * (1 + ROUNDING)) & (lowest_kept > 0)).sum())


def _highest(scores: Tensor, removed: Tensor) -> Tensor:
    """Return the highest removed score of each row; 0 for a row that lost nothing."""
    return (scores * removed).amax(dim=1)


def _row_groups(scores: Tensor) -> Iterable[Tensor]:
    """Split a matrix into groups of rows of at most `ENTRIES_AT_ONCE` entries."""
    yield from scores.split(max(1, ENTRIES_AT_ONCE // scores.shape[1]))


def _next_lowest(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest unmarked entry of every row, and its column."""
    lowest = scores.masked_fill(mask, torch.inf).amin(dim=1)
    # argmax returns the first of equal values; min does not guarantee that.
    return lowest, ((scores == lowest[:, None]) & ~mask).int().argmax(dim=1)


def _lowest_per_row(scores: Tensor, k: int) -> Tensor:
    """Mark the k lowest of every row; ties are broken by column."""
    if k == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(k, dim=1, keepdim=True).values
    below = scores < threshold
    tied = scores == threshold
    missing = k - below.sum(dim=1, keepdim=True)
    return below | (tied & (tied.cumsum(dim=1) <= missing))


def lowest(scores: Tensor, count: int) -> Tensor:
    """Mark exactly the `count` lowest scores of a matrix; ties are broken by position.

    Args:
        scores: `(rows, columns)`, finite.
        count: number of entries to mark.

    Returns:
        `(rows, columns)` bool.
    """
    return _lowest_per_row(scores.reshape(1, -1), count).reshape(scores.shape)


def lowest_of_groups(scores: Tensor, zeros: int, size: int) -> Tensor:
    """Mark the lowest of every `size` consecutive entries of a row (N:M pattern); ties are broken by column.

    Args:
        scores: `(rows, columns)`, finite; columns a multiple of `size`.
        zeros: entries to mark in each group, M - N.
        size: entries of a group, M.

    Returns:
        `(rows, columns)` bool.
    """
    mask = torch.empty_like(scores, dtype=torch.bool)
    for part, marked in zip(_row_groups(scores), _row_groups(mask), strict=True):
        columns = part.reshape(-1, size).mT.contiguous()
        marked.copy_(lowest_down_columns(columns, zeros).mT.reshape(part.shape))
    return mask


def lowest_down_columns(scores: Tensor, zeros: int) -> Tensor:
    """Mark the lowest entries of every column; ties are broken by row.

    Costs O(rows^2 x columns), so it is meant for few rows.

    Args:
        scores: `(rows, columns)`, finite, contiguous.
        zeros: entries to mark in each column.

    Returns:
        `(rows, columns)` bool.
    """
    # Ranks by pairwise comparisons of whole rows: sorting millions of short columns is six times slower.
    rows = len(scores)
    rank = torch.arange(rows, dtype=torch.int16 if rows > 255 else torch.uint8, device=scores.device)
    rank = rank[:, None].repeat(1, scores.shape[1])
    for distance in range(1, rows):
        lower = (scores[distance:] < scores[:-distance]).to(rank.dtype)
        rank[:-distance] += lower
        rank[distance:] -= lower
    return rank < zeros
