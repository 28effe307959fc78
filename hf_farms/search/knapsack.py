"""The plan with the lowest sum of losses that reaches a total, by dynamic programming.

Symbols: L blocks, K + 1 levels, c[b][k] loss of block b at level k, w[b] its size in units, T units to remove.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from hf_farms.search.grid import Grid, Plan

__all__ = ["best_plan"]

# Units of size per block, on average, where blocks differ in size.
UNITS = 16


def best_plan(losses: Sequence[Sequence[float]], grid: Grid) -> Plan:
    """Return the plan of the lowest sum of losses, with the total of the grid.

    Costs O(L K T). Blocks of equal size are solved exactly; sizes that differ are rounded to units of a sixteenth of
    the mean, and the total is then met as closely as the grid allows.

    Args:
        losses: c[b][k], for levels 0 to K of each block; infinite where a level is not allowed.
        grid: sizes and total.
    """
    units = _units(grid.sizes)
    total = round(grid.target * grid.steps * sum(units))
    most = total + max(units)
    best = torch.full((most + 1,), math.inf, dtype=torch.float64)
    best[0] = 0.0
    choices = []
    for unit, costs in zip(units, losses, strict=True):
        after, choice = torch.full_like(best, math.inf), torch.zeros(most + 1, dtype=torch.uint8)
        for level, cost in enumerate(costs):
            shift = level * unit
            if shift > most or not math.isfinite(cost):
                continue
            candidate = best[: most + 1 - shift] + cost
            better = candidate < after[shift:]
            after[shift:] = torch.where(better, candidate, after[shift:])
            choice[shift:].masked_fill_(better, level)
        best = after
        choices.append(choice)
    reached = _nearest(best, total)
    plan = []
    for unit, choice in zip(reversed(units), reversed(choices), strict=True):
        plan.append(int(choice[reached]))
        reached -= plan[-1] * unit
    return grid.nearest([level / grid.steps for level in reversed(plan)])


def _units(sizes: Sequence[int]) -> list[int]:
    """Return sizes as small whole numbers: exact if their common divisor is large, else rounded."""
    divisor = math.gcd(*sizes)
    if divisor and sum(sizes) // divisor <= UNITS * len(sizes):
        return [size // divisor for size in sizes]
    mean = sum(sizes) / len(sizes)
    return [max(1, round(UNITS * size / mean)) if size else 0 for size in sizes]


def _nearest(best: torch.Tensor, total: int) -> int:
    """Return the number of units nearest to the total that any plan removes."""
    reachable = torch.isfinite(best).nonzero().flatten()
    return int(reachable[(reachable - total).abs().argmin()])
