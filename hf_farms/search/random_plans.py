"""Random search: the baseline that a search must beat at the same number of forward passes."""

from __future__ import annotations

import random

from hf_farms.blocks import ModelBlockSource
from hf_farms.metrics.divergence import Batches
from hf_farms.search.evaluation import plan_losses
from hf_farms.search.grid import Grid, Plan
from hf_farms.search.levels import LevelCodes

__all__ = ["random_plans", "random_search"]

# Standard deviation of the sparsities of blocks, drawn for each plan.
DEVIATIONS = (0.01, 0.1)
# Plans measured in one pass.
AT_ONCE = 6


def random_plans(grid: Grid, count: int, *, seed: int = 0) -> list[Plan]:
    """Return different plans: independent normal deviations of all blocks from the target, scaled to the total.

    Args:
        grid: the levels.
        count: number of plans; fewer where the grid has fewer.
        seed: of the deviations.
    """
    numbers = random.Random(seed)
    plans: dict[Plan, None] = {}
    for _ in range(100 * count):
        if len(plans) == count:
            break
        width = numbers.uniform(*DEVIATIONS)
        drawn = [grid.target + numbers.gauss(0, width) for _ in grid.sizes]
        plans[grid.nearest([min(max(sparsity, 0.0), grid.highest) for sparsity in drawn])] = None
    return list(plans)


def random_search(
    source: ModelBlockSource, codes: LevelCodes, grid: Grid, batches: Batches, *, count: int, seed: int = 0
) -> tuple[Plan, float]:
    """Return the best of `count` random plans, and its KL in nats per token.

    Args:
        source: the dense model.
        codes: of `build_codes`.
        grid: the levels.
        batches: selection data.
        count: number of plans: as many as the search that is compared measured, its table included.
        seed: of the plans.
    """
    plans = random_plans(grid, count, seed=seed)
    losses = [
        loss
        for start in range(0, len(plans), AT_ONCE)
        for loss in plan_losses(source, codes, plans[start : start + AT_ONCE], batches)
    ]
    best = min(range(len(plans)), key=losses.__getitem__)
    return plans[best], losses[best]
