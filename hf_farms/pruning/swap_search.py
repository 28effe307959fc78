"""Find the best pairs of a kept and a removed weight to swap; symbols as in `swaps.py`.

r rows are searched together; k candidates of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Candidates", "Pairs", "Rows", "best_pairs", "candidate_pairs", "group_pairs", "largest_correlations"]

# Kept and removed weights of a row among which swaps go on without another search.
CANDIDATES = 32
# Entries of temporary tensors: few enough for the caches of a CPU; enough to keep another device busy.
ENTRIES_AT_ONCE, ENTRIES_ON_DEVICE = 2**20, 2**26


class Rows(NamedTuple):
    """Rows that are searched together.

    Attributes:
        weight: `(r, n)` w.
        removed: `(r, n)` bool.
        remove: `(r, n)` a, the change of the error if a kept weight is removed; infinite for removed weights.
        restore: `(r, n)` b, the change if a removed weight is kept; infinite for kept weights, and for those that are 0
            anyway, so that the number of zeros stays.
        norm: `(r, n)` s = |w_i| G_ii^1/2.
        least: `(r,)` the change of the error, below 0, that a swap must reach.
    """

    weight: Tensor
    removed: Tensor
    remove: Tensor
    restore: Tensor
    norm: Tensor
    least: Tensor

    @classmethod
    def make(cls, weight: Tensor, removed: Tensor, gradient: Tensor, products: Tensor, *, least: Tensor) -> Rows:
        """Compute a and b from c, the `gradient`."""
        norm = weight.abs() * products.diagonal().clamp_min(0).sqrt()
        slope, square = 2 * weight * gradient, norm.square()
        remove = (square + slope).masked_fill_(removed, torch.inf)
        restore = (square - slope).masked_fill_(~removed | (weight == 0), torch.inf)
        return cls(weight, removed, remove, restore, norm, least)

    def select(self, chosen: Tensor) -> Rows:
        """Return some of the rows."""
        return Rows(*(part[chosen] for part in self))


class Pairs(NamedTuple):
    """Best pair of every row, and the smallest change with each kept weight.

    Attributes:
        change: `(r,)` change of the error by the best pair; a row without any that reaches `least` may have a larger
            one here than its best.
        kept: `(r,)` column of its kept weight.
        lost: `(r,)` column of its removed weight.
        smallest: `(r, n)` change by the best pair with each kept weight; infinite where excluded.
    """

    change: Tensor
    kept: Tensor
    lost: Tensor
    smallest: Tensor

    def select(self, chosen: Tensor) -> Pairs:
        """Return the pairs of some rows."""
        return Pairs(*(part[chosen] for part in self))


def group_pairs(rows: Rows, products: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best pair of each row within one group of `group` weights: change, kept and removed column."""
    r, n = rows.weight.shape
    groups = torch.arange(n, device=products.device).view(-1, group)
    inside = products[groups[:, :, None], groups[:, None, :]]
    w, a, b = (part.view(r, -1, group) for part in (rows.weight, rows.remove, rows.restore))
    change = a[..., :, None] + b[..., None, :] - 2 * w[..., :, None] * w[..., None, :] * inside
    best, at = change.flatten(1).min(dim=1)
    first = at.div(group**2, rounding_mode="floor") * group
    return best, first + at.div(group, rounding_mode="floor") % group, first + at % group


def best_pairs(rows: Rows, products: Tensor, correlation: Tensor) -> Pairs:
    """Return the best of all pairs of each row.

    A kept weight i is excluded if no pair with it can reach `least`: with |G_ij| <= r_i (G_ii G_jj)^1/2 its change is
    at least a_i + min b - 2 r_i s_i max s, over the removed weights.

    Args:
        rows: the rows.
        products: `(n, n)` G.
        correlation: `(n,)` r, from `largest_correlations`.
    """
    lowest = rows.restore.amin(dim=1, keepdim=True)
    largest = rows.norm.masked_fill(~rows.removed, 0).amax(dim=1, keepdim=True)
    bound = rows.remove + lowest - 2 * correlation * rows.norm * largest
    counts = (bound < rows.least[:, None]).sum(dim=1)
    smallest = torch.full_like(rows.remove, torch.inf)
    limit = ENTRIES_AT_ONCE if products.device.type == "cpu" else ENTRIES_ON_DEVICE
    order = counts.argsort(descending=True)
    order = order[: int((counts > 0).sum())]
    while len(order):
        # The rows with most candidates first, so that those of one chunk have about as many.
        k = int(counts[order[0]])
        chunk, order = order.split_with_sizes(_sizes(len(order), k * rows.weight.shape[1], limit))
        candidates = bound[chunk].topk(k, dim=1, largest=False).indices
        changes = _smallest_changes(rows, chunk, candidates, products)
        smallest[chunk] = smallest[chunk].scatter_(1, candidates, changes)
    change, kept = smallest.min(dim=1)
    row = torch.arange(len(kept), device=kept.device)
    partners = rows.restore - 2 * rows.weight[row, kept][:, None] * rows.weight * products[kept]
    return Pairs(change, kept, partners.argmin(dim=1), smallest)


def _sizes(rows: int, entries: int, limit: int) -> list[int]:
    first = min(rows, max(1, limit // entries))
    return [first, rows - first]


def largest_correlations(products: Tensor) -> Tensor:
    """Return the largest |G_ij| / (G_ii G_jj)^1/2 over j of every input i; 0 for inputs that are always 0."""
    scale = products.diagonal().clamp_min(0).sqrt()
    inverse = torch.where(scale > 0, 1 / scale, 0)
    correlations = (products * inverse[:, None]).mul_(inverse).abs_()
    correlations.fill_diagonal_(0)
    # Rounding errors of float32 must not exclude a pair.
    return correlations.amax(dim=1) * (1 + 1e-4)


def _smallest_changes(rows: Rows, chunk: Tensor, candidates: Tensor, products: Tensor) -> Tensor:
    """Return the change by the best pair with each of `(r, k)` kept weights."""
    w = rows.weight[chunk]
    changes = products.index_select(0, candidates.reshape(-1)).view(*candidates.shape, -1)
    changes *= w[:, None, :]
    changes *= -2 * w.gather(1, candidates)[:, :, None]
    changes += rows.restore[chunk][:, None, :]
    return changes.amin(dim=2) + rows.remove[chunk].gather(1, candidates)


@dataclass
class Candidates:
    """Some kept and some removed weights of each row, and their products.

    Attributes:
        columns: `(r, 2k)` columns: first those that were kept, then those that were removed.
        change: `(r, 2k)` a of kept and b of removed weights; infinite for those that were swapped.
        products: `(r, 2k, 2k)` 2 w_i w_j G_ij.
    """

    columns: Tensor
    change: Tensor
    products: Tensor

    def best(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the change by the best pair of each row, and its positions in `columns`."""
        k = self.columns.shape[1] // 2
        changes = self.change[:, :k, None] + self.change[:, None, k:] - self.products[:, :k, k:]
        best, at = changes.flatten(1).min(dim=1)
        return best, at.div(k, rounding_mode="floor"), k + at % k

    def swap(self, kept: Tensor, lost: Tensor) -> tuple[Tensor, Tensor]:
        """Swap a pair in each row; return its columns."""
        row, k = torch.arange(len(kept), device=kept.device), self.columns.shape[1] // 2
        # 2 w_l times the change of c_l, for every candidate l: a rises by it, b falls by it.
        rise = self.products[row, kept] - self.products[row, lost]
        self.change[:, :k] += rise[:, :k]
        self.change[:, k:] -= rise[:, k:]
        self.change[row, kept] = self.change[row, lost] = torch.inf
        return self.columns[row, kept], self.columns[row, lost]

    def select(self, chosen: Tensor) -> Candidates:
        """Return the candidates of some rows."""
        return Candidates(self.columns[chosen], self.change[chosen], self.products[chosen])


def candidate_pairs(rows: Rows, products: Tensor, pairs: Pairs | None = None) -> Candidates:
    """Return the kept weights that cost least to remove, and the removed weights that reduce the error most.

    Args:
        rows: the rows.
        products: `(n, n)` G.
        pairs: takes the kept weights with the best pairs, and includes the best pair.
    """
    k = min(CANDIDATES, rows.weight.shape[1])
    costs, restore = rows.remove, rows.restore
    if pairs is not None:
        costs, restore = pairs.smallest, restore.scatter(1, pairs.lost[:, None], -torch.inf)
    kept, lost = (values.topk(k, dim=1, largest=False).indices for values in (costs, restore))
    columns = torch.cat([kept, lost], dim=1)
    w = rows.weight.gather(1, columns)
    change = torch.cat([rows.remove.gather(1, kept), rows.restore.gather(1, lost)], dim=1)
    inside = products.reshape(-1)[columns[:, :, None] * products.shape[1] + columns[:, None, :]]
    return Candidates(columns, change, inside.mul_(2 * w[:, :, None]).mul_(w[:, None, :]))
