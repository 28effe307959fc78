"""Grid: sparsities of blocks as whole levels, so that plans can be compared, counted and cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_farms.allocation.sparsity import apportion_groups, meet_total
from hf_farms.blocks import BlockReader
from hf_farms.config import PruneConfig
from hf_farms.pruning.removal_plan import prunable_layers

__all__ = ["STEPS", "Grid", "Plan"]

# Level of each block, in order of depth; 0 is dense.
Plan = tuple[int, ...]
# Levels between 0 and 1 without a pattern: half a percent apart. At most 254, because a level is one byte.
STEPS = 200


@dataclass(frozen=True)
class Grid:
    """The levels of a search: level k of a block removes k / steps of its weights.

    Attributes:
        sizes: prunable weights of each block.
        target: total sparsity.
        steps: levels between 0 and 1; under a pattern `N:M` it is M, so that a level is a number of zeros per group.
        highest: highest sparsity of a block.
        grouped: whether levels are zeros per group of `steps` weights.
    """

    sizes: tuple[int, ...]
    target: float
    steps: int
    highest: float
    grouped: bool = False

    @classmethod
    def of(cls, source: BlockReader, config: PruneConfig) -> Grid:
        """Return the grid of a model and a config."""
        sizes = tuple(
            sum(layer.shape[0] * layer.shape[1] for layer in prunable_layers(source.metadata(index).layers))
            for index in range(len(source))
        )
        group = config.group[1] if config.group is not None else None
        return cls(sizes, config.sparsity, group or STEPS, max(config.max_sparsity, config.sparsity), group is not None)

    @property
    def top(self) -> int:
        """The highest level: below `highest`, and in a group at least one weight stays."""
        return min(int(self.highest * self.steps + 1e-9), self.steps - 1 if self.grouped else self.steps)

    @property
    def uniform(self) -> Plan:
        """The plan that is nearest to the target in every block."""
        return self.nearest([self.target] * len(self.sizes))

    def nearest(self, sparsities: Sequence[float]) -> Plan:
        """Return the plan near these sparsities whose total is as close to the target as the grid allows."""
        total = round(self.target * sum(self.sizes))
        fitted = self.exact(sparsities)
        highest = (self.top + 0.5) / self.steps
        return tuple(apportion_groups(fitted, sizes=self.sizes, total=total, group=self.steps, highest=highest))

    def sparsities(self, plan: Plan) -> list[float]:
        """Return the sparsity of each block of a plan, as its masks have it."""
        return [level / self.steps for level in plan]

    def exact(self, sparsities: Sequence[float]) -> list[float]:
        """Return sparsities near these that meet the target exactly."""
        return meet_total(sparsities, sizes=self.sizes, target=self.target, bounds=(0.0, self.highest))
