"""The code of a pruning method: the statistic that it measures, and the function that removes weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from hf_farms.config import PruneConfig
from hf_farms.processes import ONE_PROCESS, WorkingRanks
from hf_farms.pruning.patterns import Removal
from hf_farms.registries import METHODS, REFINEMENTS, load

__all__ = ["PrunedWeight", "PruningMethod", "Statistic", "pruning_method"]


class Statistic(Protocol):
    """Statistic of the inputs of one layer, or of several layers with the same input."""

    num_tokens: int

    def __init__(self, width: int, device: torch.device) -> None:
        """Create an empty statistic for `width` input channels."""

    @staticmethod
    def nbytes(width: int) -> int:
        """Return the memory for `width` inputs, in bytes."""

    @staticmethod
    def tokens_needed(width: int) -> int:
        """Tokens that so many inputs should have; with fewer the pruner warns."""

    def add(self, inputs: Tensor) -> None:
        """Add `(..., width)` inputs."""

    def merge(self, other: Self) -> None:
        """Add the inputs of another statistic."""

    def sum_over(self, ranks: WorkingRanks) -> None:
        """Add the inputs of the statistics of the other ranks, which all call this."""

    def is_finite(self) -> bool:
        """Return whether all inputs were finite."""

    def prepared(self, name: str, **options: Any) -> Any:
        """Return the argument of the method's `prune`; `name` is the layer, for warnings.

        Options are the fields of the config that the `statistic_options` of the method's entry name.
        """


class PrunedWeight(NamedTuple):
    """Result of a method for one layer.

    Attributes:
        weight: `(out, in)`, a new tensor.
        error_reduction: share by which a refinement reduced the squared output error; None without one.
        unfinished_rows: rows that a refinement left at its limit of rounds; None without one.
        num_ties: weights that were kept with the score of a removed one, but for rounding; None if not counted.
    """

    weight: Tensor
    error_reduction: float | None = None
    unfinished_rows: int | None = None
    num_ties: int | None = None


@dataclass(frozen=True)
class PruningMethod:
    """The functions of a pruning method.

    Attributes:
        prune: function of a weight `(out, in)`, the prepared statistic and the removal; returns the pruned weight as a
            new tensor.
        statistic: statistic of the layer inputs; None if the method needs none.
        statistic_options: arguments of the statistic's `prepared`.
        refine: function that improves the result, see `RefinementEntry`; None without a refinement.
        refit: function that refits the kept weights after a refinement; None if they are the dense ones.
        ties: function that counts ties of a mask, see `MethodEntry`; None in one process, or with a refinement.
    """

    prune: Callable[[Tensor, Any, Removal], Tensor]
    statistic: type[Statistic] | None = None
    statistic_options: Mapping[str, Any] = field(default_factory=dict)
    refine: Callable[..., PrunedWeight] | None = None
    refit: Callable[..., Tensor] | None = None
    ties: Callable[[Tensor, Any, Removal, Tensor], int] | None = None

    def apply(self, weight: Tensor, prepared: Any, removal: Removal) -> PrunedWeight:
        """Prune a weight `(out, in)`, and refine the result."""
        if self.refine is None:
            pruned = self.prune(weight, prepared, removal)
            ties = self.ties(weight, prepared, removal, pruned == 0) if self.ties is not None else None
            return PrunedWeight(pruned, num_ties=ties)
        pruned = self.prune(weight, prepared.own, removal)
        return self.refine(weight, pruned, prepared, removal, self.refit)


def pruning_method(name: str, config: PruneConfig | None = None, *, ranks: WorkingRanks = ONE_PROCESS) -> PruningMethod:
    """Import the functions of a method.

    Args:
        name: of an entry of METHODS.
        config: refinement, and values of the options that the method reads; None for the defaults.
        ranks: several processes share the rows of a weight, where the method or the refinement can.

    Raises:
        ValueError: no such method.
    """
    entry, config = METHODS[name], config or PruneConfig()
    own = {option: getattr(config, option) for option in entry.options}
    inputs = {option: own.pop(option) for option in entry.statistic_options}
    statistic = load(entry.statistic) if entry.statistic is not None else None
    shared = {"ranks": ranks} if entry.shares_rows and ranks.count > 1 else {}
    prune = partial(entry.load(), **own, **shared)
    if REFINEMENTS[config.refine].needs == "nothing":
        # One process needs no count: no other one adds sums in another order.
        ties = load(entry.ties) if entry.ties is not None and ranks.count > 1 else None
        return PruningMethod(prune, statistic, inputs, ties=ties)
    # Not at the top: it imports this file.
    from hf_farms.pruning.refining import with_products

    refit = partial(load(entry.refit), **own) if entry.refit is not None else None
    refine = REFINEMENTS[config.refine].load()
    if ranks.count > 1:
        refine = partial(refine, ranks=ranks)
    return PruningMethod(prune, with_products(statistic), inputs, refine, refit)
