"""Refine the mask of any pruning method on the products of its layer's inputs, and refit the kept weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from hf_farms.processes import ONE_PROCESS, WorkingRanks, rows_of_rank
from hf_farms.pruning.methods import PrunedWeight, Statistic
from hf_farms.pruning.patterns import Removal
from hf_farms.pruning.sparsegpt import InputProducts
from hf_farms.pruning.swaps import output_errors, swap_masks

__all__ = ["RefinedInputs", "refine_by_swaps", "unrefined", "with_products"]

# Share of each diagonal entry that is added for as many tokens as inputs; more for fewer tokens, less for more.
DAMPING = 0.01
# Refits the kept weights of a mask: dense weight, prepared statistic of the method, mask of removed weights.
Refit = Callable[[Tensor, Any, Tensor], Tensor]


class RefinedInputs(NamedTuple):
    """Prepared statistic of a method, and the products that refine its mask.

    Attributes:
        own: prepared statistic of the method; None where it needs none.
        products: `(n, n)` float32, mean of X^T X, damped.
        damping: of the method's Hessian, in units of its mean diagonal; where it has none, the share of each diagonal
            entry that was added to the products.
    """

    own: Any
    products: Tensor
    damping: float


class _WithProducts:
    """Statistic of a method, and the products of the inputs; one object where the method's statistic is these."""

    kind: ClassVar[type[Any] | None] = None

    def __init__(self, width: int, device: torch.device) -> None:
        self._products = InputProducts(width, device)
        separate = self.kind is not None and self.kind is not InputProducts
        self._own: Any = self.kind(width, device) if self.kind is not None and separate else None

    @property
    def num_tokens(self) -> int:
        return self._products.num_tokens

    @classmethod
    def nbytes(cls, width: int) -> int:
        """Return the memory for `width` inputs, in bytes."""
        # The products are kept beside the factor that SparseGPT makes of them.
        return InputProducts.nbytes(width) + (cls.kind.nbytes(width) if cls.kind is not None else 0)

    @staticmethod
    def tokens_needed(width: int) -> int:
        """Return the number of inputs: products of n inputs need n tokens to have full rank."""
        return InputProducts.tokens_needed(width)

    def add(self, inputs: Tensor) -> None:
        """Add `(..., n)` inputs."""
        self._products.add(inputs)
        if self._own is not None:
            self._own.add(inputs)

    def merge(self, other: Self) -> None:
        """Add the inputs of another statistic."""
        self._products.merge(other._products)
        if self._own is not None:
            self._own.merge(other._own)

    def sum_over(self, ranks: WorkingRanks) -> None:
        """Add the inputs of the statistics of the other ranks."""
        self._products.sum_over(ranks)
        if self._own is not None:
            self._own.sum_over(ranks)

    def is_finite(self) -> bool:
        """Return whether all inputs were finite."""
        return self._products.is_finite()

    def prepared(self, name: str, **options: Any) -> RefinedInputs:
        """Return the method's own numbers and the damped products.

        Products of fewer tokens than inputs are singular: swaps would be fitted to the few directions in the data. Each
        diagonal entry grows by 1% x n / t of itself, which draws the error towards that of independent inputs, the one
        that Wanda minimizes.
        """
        own = self._own if self.kind is not InputProducts else self._products
        prepared = own.prepared(name, **options) if own is not None else None
        products = self._products.mean()
        damping = DAMPING * len(products) / max(1, self.num_tokens)
        products.diagonal().mul_(1 + damping)
        return RefinedInputs(prepared, products, getattr(prepared, "damping", damping))


def with_products(kind: type[Statistic] | None) -> type[Statistic]:
    """Return the statistic of a method together with the products of the inputs."""
    return type("WithProducts", (_WithProducts,), {"kind": kind})


def unrefined(
    weight: Tensor,
    pruned: Tensor,
    inputs: RefinedInputs,
    removal: Removal,
    refit: Refit | None,
    *,
    ranks: WorkingRanks = ONE_PROCESS,
) -> PrunedWeight:
    """Return the pruned weight as it is."""
    return PrunedWeight(pruned)


def refine_by_swaps(
    weight: Tensor,
    pruned: Tensor,
    inputs: RefinedInputs,
    removal: Removal,
    refit: Refit | None,
    *,
    ranks: WorkingRanks = ONE_PROCESS,
) -> PrunedWeight:
    """Swap kept for removed weights; then refit the kept ones, where the method does so.

    Rows keep their number of zeros, groups of a pattern too. Swaps are judged with the dense weights. Where the kept
    weights are refitted, a row whose error is larger with the new mask keeps the weights that the method gave it, so
    that the error of no row increases.

    Args:
        weight: `(m, n)` dense weight; not modified.
        pruned: `(m, n)` result of the method; not modified.
        inputs: prepared statistics.
        removal: gives the pattern.
        refit: function that refits the kept weights; None if they stay as they are.
        ranks: with several processes, each refines some rows; all return the same weight.
    """
    own = rows_of_rank(len(weight), ranks)
    weight, pruned = weight[own], pruned[own]
    group = removal.group[1] if removal.group is not None else None
    swapped = swap_masks(weight, pruned == 0, inputs.products, group=group)
    before, after = swapped.before, swapped.after
    if refit is None:
        refined = weight.masked_fill(swapped.removed, 0)
    else:
        refitted = refit(weight, inputs.own, swapped.removed)
        before, after = (output_errors(w.float() - weight.float(), inputs.products) for w in (pruned, refitted))
        better = after < before
        refined, after = torch.where(better[:, None], refitted, pruned), torch.where(better, after, before)
    refined, before, after = (ranks.concatenate(part) for part in (refined, before, after))
    total, unfinished = float(before.sum()), sum(ranks.gather(swapped.unfinished))
    return PrunedWeight(refined, 1 - float(after.sum()) / total if total > 0 else 0.0, unfinished)
