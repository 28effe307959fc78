"""Sensitivity: the KL to the dense model when one block alone is pruned, and the allocation that follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hf_farms.blocks import ModelBlockSource
from hf_farms.metrics.divergence import Batches
from hf_farms.progress import Progress, no_progress
from hf_farms.search.evaluation import plan_losses
from hf_farms.search.grid import Grid, Plan
from hf_farms.search.knapsack import best_plan
from hf_farms.search.levels import LevelCodes

__all__ = ["SensitivityTable", "measure_sensitivity", "table_levels"]

# Sparsities of the table: the target S, steps below it in units of S, and above it in units of min(S, 1 - S), so that
# they are as far on both sides at 50%.
BELOW, ABOVE = (0.5, 0.2), (0.2, 0.4)


@dataclass(frozen=True)
class SensitivityTable:
    """KL in nats per token when one block alone is pruned.

    Attributes:
        levels: the levels that were measured, ascending; level 0 has no loss.
        losses: of each block at each of them.
    """

    levels: tuple[int, ...]
    losses: tuple[tuple[float, ...], ...]

    def interpolated(self, block: int) -> list[float]:
        """Return the loss of a block at all levels up to the highest measured one, linear between two of them."""
        points = [(0, 0.0), *zip(self.levels, self.losses[block], strict=True)]
        curve = [0.0]
        for (low, before), (high, after) in pairwise(points):
            share = (after - before) / (high - low)
            curve += [before + share * (level - low) for level in range(low + 1, high + 1)]
        return curve

    def estimate(self, plan: Plan) -> float:
        """Return the sum of the losses of single blocks; infinite beyond the table."""
        curves = [self.interpolated(block) for block in range(len(plan))]
        return math.fsum(
            curve[level] if level < len(curve) else math.inf for curve, level in zip(curves, plan, strict=True)
        )

    def best_plan(self, grid: Grid) -> Plan:
        """Return the plan with the lowest sum of losses and the total of the grid."""
        return best_plan([self.interpolated(block) for block in range(len(self.losses))], grid)


def table_levels(grid: Grid) -> tuple[int, ...]:
    """Return five levels around the target; fewer where the grid is too coarse for five.

    At a target of 50% they are 25, 40, 50, 60 and 70%; at 70% they are 35, 56, 70, 76 and 82%.
    """
    room = min(grid.target, 1 - grid.target)
    sparsities = [grid.target * (1 - step) for step in BELOW] + [grid.target]
    sparsities += [grid.target + step * room for step in ABOVE]
    if grid.steps * room < 2 / min(ABOVE):
        # Groups such as those of N:8: the neighbors of the target.
        middle = round(grid.target * grid.steps)
        levels: Sequence[int] = range(middle - 2, middle + 3)
    else:
        levels = [round(sparsity * grid.steps) for sparsity in sparsities]
    # The table must reach beyond the target, or no plan could meet it.
    highest = max(math.ceil(grid.target * grid.steps), 1)
    return tuple(sorted({level for level in (*levels, highest) if 1 <= level <= max(grid.top, highest)}))


def measure_sensitivity(
    source: ModelBlockSource,
    codes: LevelCodes,
    grid: Grid,
    batches: Batches,
    *,
    progress: Progress = no_progress,
) -> SensitivityTable:
    """Measure every block at the levels of `table_levels`, in one pass over the blocks.

    The cost is about 5 L / 2 forward passes of the batches for L blocks, and 5 L passes of the head.

    Args:
        source: the dense model.
        codes: of `build_codes`.
        grid: the levels.
        batches: selection data.
        progress: called with ("sensitivity", blocks done, blocks in all).
    """
    levels, blocks = table_levels(grid), range(len(source))
    plans = [tuple(level if i == block else 0 for i in blocks) for block in blocks for level in levels]
    losses = plan_losses(
        source, codes, plans, batches, progress=lambda _, done, total: progress("sensitivity", done, total)
    )
    width = len(levels)
    return SensitivityTable(levels, tuple(tuple(losses[block * width : (block + 1) * width]) for block in blocks))
