"""Refine a mask by 1-swaps: exchange a kept and a removed weight of a row while its output error falls.

Symbols: m outputs, n inputs; weight W (m, n), G (n, n) the mean of X^T X, P the removed weights of a row w. The output
error of a row is e = w_P^T G w_P. With c = G w_P, removing a kept weight i and keeping a removed weight j instead
changes it by a_i + b_j - 2 w_i w_j G_ij, with a_i = 2 w_i c_i + w_i^2 G_ii and b_j = -2 w_j c_j + w_j^2 G_jj.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from hf_farms.pruning.swap_search import (
    Candidates,
    Rows,
    best_pairs,
    candidate_pairs,
    group_pairs,
    largest_correlations,
)

__all__ = ["MAX_ROUNDS", "SwapResult", "output_errors", "swap_masks"]

# Searches for each row at most.
MAX_ROUNDS = 100
# A swap must reduce the error of its row by this share: smaller changes may be rounding errors of float32.
SMALLEST_GAIN = 1e-5
# Rows that are refined together have about this many weights.
ENTRIES_AT_ONCE = 2**22


# Swaps weights of rows, in the mask: weights, mask, c, products, smallest change; returns the rows with a swap.
_Swap = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class SwapResult(NamedTuple):
    """Result of `swap_masks`.

    Attributes:
        removed: `(m, n)` bool, the refined mask.
        before: `(m,)` float64, output error of each row with the given mask.
        after: `(m,)` float64, with the refined mask; never larger.
        unfinished: rows that reached the limit of rounds, and may have swaps left.
    """

    removed: Tensor
    before: Tensor
    after: Tensor
    unfinished: int


def swap_masks(
    weight: Tensor, removed: Tensor, products: Tensor, *, group: int | None = None, max_rounds: int = MAX_ROUNDS
) -> SwapResult:
    """Swap kept for removed weights of every row until no swap of two weights reduces its output error.

    Rows, and groups of a pattern N:M, keep their number of removed weights. A round finds the best of all pairs of each
    row, swaps it, and goes on with the best pairs of a few candidates while they reduce the error. With groups, all
    pairs are compared for each swap.

    Cost of a round: some matrix products of O(m n^2), and O(m k n) for the search, with k the kept weights of a row
    that an upper bound on the gain does not exclude; with groups O(m n M) for each swap of a row. Rows that have no
    swap left are not searched again.

    Args:
        weight: `(m, n)` dense weight, any float dtype; not modified.
        removed: `(m, n)` bool, the mask to start from; not modified.
        products: `(n, n)` float32, G.
        group: size M of the groups of a pattern N:M; None to swap within whole rows.
        max_rounds: searches for each row at most.
    """
    refined, unfinished = removed.clone(), 0
    size = max(1, ENTRIES_AT_ONCE // (weight.shape[1] * (group or 1)))
    swap: _Swap = (
        partial(_swap_candidates, correlation=largest_correlations(products))
        if group is None
        else partial(_swap_groups, group=group)
    )
    for start in range(0, len(weight), size):
        rows = slice(start, start + size)
        refined[rows], left = _swap_rows(weight[rows].float(), refined[rows], products, swap, max_rounds)
        unfinished += left
    w = weight.float()
    before, after = (output_errors(w.masked_fill(~mask, 0), products) for mask in (removed, refined))
    # Rounding errors of float32 must not make a row worse.
    worse = after > before
    refined[worse] = removed[worse]
    return SwapResult(refined, before, torch.where(worse, before, after), unfinished)


def output_errors(difference: Tensor, products: Tensor) -> Tensor:
    """Return the output error d^T G d of every row.

    Args:
        difference: `(m, n)` float32, change d of the weights; of removed weights -w.
        products: `(n, n)` float32, G.

    Returns:
        `(m,)` float64.
    """
    # The products have rounding errors of float32, but their sum must not.
    return (difference @ products).double().mul_(difference).sum(dim=1)


def _swap_rows(weight: Tensor, removed: Tensor, products: Tensor, swap: _Swap, max_rounds: int) -> tuple[Tensor, int]:
    """Return the refined mask of some rows, and the number of rows that may have swaps left."""
    removed, active = removed.clone(), torch.arange(len(weight), device=weight.device)
    for _ in range(max_rounds):
        w, mask = weight[active], removed[active]
        lost = w.masked_fill(~mask, 0)
        gradient = lost @ products
        least = -SMALLEST_GAIN * (lost * gradient).sum(dim=1)
        swapped = swap(w, mask, gradient, products, least)
        removed[active] = mask
        active = active[swapped]
        if not len(active):
            break
    return removed, len(active)


def _swap_groups(
    weight: Tensor, removed: Tensor, gradient: Tensor, products: Tensor, least: Tensor, *, group: int
) -> Tensor:
    """Swap the best pair of each row, again and again, in the mask; return the rows with a swap."""
    swapped = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    moving = torch.arange(len(weight), device=weight.device)
    for _ in range(weight.shape[1]):
        rows = Rows.make(weight[moving], removed[moving], gradient[moving], products, least=least[moving])
        change, kept, lost = group_pairs(rows, products, group)
        goes = change < rows.least
        moving, kept, lost = moving[goes], kept[goes], lost[goes]
        if not len(moving):
            break
        removed[moving, kept], removed[moving, lost], swapped[moving] = True, False, True
        gradient[moving] += weight[moving, kept, None] * products[kept] - weight[moving, lost, None] * products[lost]
    return swapped


def _swap_candidates(
    weight: Tensor, removed: Tensor, gradient: Tensor, products: Tensor, least: Tensor, *, correlation: Tensor
) -> Tensor:
    """Swap the best pair of each row, then the best among its candidates, in the mask; return the rows with a swap."""
    rows = Rows.make(weight, removed, gradient, products, least=least)
    pairs = best_pairs(rows, products, correlation)
    swapped = pairs.change < least
    # Rows without a swap are certified by the search: no pair reduces their error.
    chosen = swapped.nonzero()[:, 0]
    if not len(chosen):
        return swapped
    mask = removed[chosen]
    _swap_among(candidate_pairs(rows.select(chosen), products, pairs.select(chosen)), mask, least[chosen])
    _swap_likely(weight[chosen], mask, products, least[chosen])
    removed[chosen] = mask
    return swapped


def _swap_likely(weight: Tensor, removed: Tensor, products: Tensor, least: Tensor) -> None:
    """Swap the best among the pairs that are likely to be good, in the mask, until there are none.

    This saves most searches of all pairs.
    """
    moving = torch.arange(len(weight), device=weight.device)
    while len(moving):
        w, mask = weight[moving], removed[moving]
        rows = Rows.make(w, mask, w.masked_fill(~mask, 0) @ products, products, least=least[moving])
        swapped = _swap_among(candidate_pairs(rows, products), mask, least[moving])
        removed[moving] = mask
        moving = moving[swapped]


def _swap_among(candidates: Candidates, removed: Tensor, least: Tensor) -> Tensor:
    """Swap the best pair of the candidates of each row, again and again, in the mask; return the rows with a swap."""
    swapped = torch.zeros(len(removed), dtype=torch.bool, device=removed.device)
    moving = torch.arange(len(removed), device=removed.device)
    while True:
        change, kept, lost = candidates.best()
        goes = change < least[moving]
        if not goes.all():
            moving, candidates, kept, lost = moving[goes], candidates.select(goes), kept[goes], lost[goes]
        if not len(moving):
            return swapped
        i, j = candidates.swap(kept, lost)
        removed[moving, i], removed[moving, j], swapped[moving] = True, False, True
