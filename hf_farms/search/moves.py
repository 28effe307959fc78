"""Changes of a plan that a search tries: groups of blocks, pairs that the sensitivity table favors, chance."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from hf_farms.search.grid import Grid, Plan
from hf_farms.search.sensitivity import SensitivityTable

__all__ = ["Moves"]

# Sparsity that a pair exchanges, and the largest change of a block in a move of groups.
EXCHANGE, SHIFT = (0.05, 0.025), 0.04
# Factors on the distance to uniform.
STRETCH = (1.4, 0.7)


class Moves:
    """Proposals for one search; the same seed gives the same ones.

    Args:
        grid: the levels.
        table: losses of single blocks.
        seed: of random moves.
    """

    def __init__(self, grid: Grid, table: SensitivityTable, *, seed: int = 0) -> None:
        self._grid, self._curves = grid, [table.interpolated(block) for block in range(len(grid.sizes))]
        self._random = random.Random(seed)
        self._groups = list(self._group_directions())

    def around(self, plan: Plan, count: int, *, helped: Sequence[Plan] = ()) -> list[tuple[str, Plan]]:
        """Return changes of a plan, at most `count` of them and each another plan.

        Args:
            plan: the best plan so far.
            count: number of moves.
            helped: plans that improved on the plan before: their changes are added up first.
        """
        moves: dict[Plan, str] = {}
        for name, moved in self._proposals(plan, helped):
            if moved != plan and moved not in moves:
                moves[moved] = name
            if len(moves) == count:
                break
        return [(name, moved) for moved, name in moves.items()]

    def _proposals(self, plan: Plan, helped: Sequence[Plan]) -> Iterator[tuple[str, Plan]]:
        before = self._grid.sparsities(plan)
        if len(helped) > 1:
            changes = [self._grid.sparsities(other) for other in helped]
            summed = [s + sum(change[i] - s for change in changes) for i, s in enumerate(before)]
            yield "all changes that helped", self._plan(summed)
        groups, self._groups = self._groups[:3], self._groups[3:]
        for name, direction in groups:
            yield name, self._plan([s + step for s, step in zip(before, direction, strict=True)])
        uniform = self._grid.target
        if not groups:
            for factor in STRETCH:
                stretched = [uniform + factor * (s - uniform) for s in before]
                yield f"distance to uniform times {factor:g}", self._plan(stretched)
        pairs = self._pairs(plan)
        for more, less in [*pairs[: 1 if groups else 2]]:
            yield self._exchange(before, more, less, EXCHANGE[0])
        # Without end: a small grid has few plans, so proposals repeat.
        for _ in range(1000):
            blocks = range(len(plan))
            if len(plan) > 3 and self._random.random() < 0.5:
                chosen = self._random.sample(blocks, len(plan) // 2)
                signs = {block: self._random.choice((-1, 1)) for block in chosen}
                steps = [self._step() * signs.get(block, 0) for block in blocks]
                yield "random group of blocks", self._plan([s + d for s, d in zip(before, steps, strict=True)])
            elif len(plan) > 1:
                more, less = self._random.sample(blocks, 2)
                yield self._exchange(before, more, less, self._random.choice(EXCHANGE))

    def _group_directions(self) -> Iterator[tuple[str, list[float]]]:
        """Yield smooth profiles over depth, with either sign, and the two ends."""
        count = len(self._grid.sizes)
        depth = [2 * block / max(1, count - 1) - 1 for block in range(count)]
        ramp = [self._step() * x for x in depth]
        bend = [self._step() * (2 * x * x - 1) for x in depth]
        yield "later blocks more", ramp
        yield "ends less, middle more", [-x for x in bend]
        yield "first blocks less", [-2 * self._step() if block < max(1, count // 10) else 0.0 for block in range(count)]
        yield "later blocks less", [-x for x in ramp]
        yield "ends more, middle less", bend
        last = count - max(1, count // 10)
        yield "last blocks less", [-2 * self._step() if block >= last else 0.0 for block in range(count)]

    def _step(self) -> float:
        return max(SHIFT, 1 / self._grid.steps)

    def _pairs(self, plan: Plan) -> list[tuple[int, int]]:
        """Return (more, less): pairs whose exchange the table favors most, each block once."""
        step = max(1, round(EXCHANGE[0] * self._grid.steps))
        sizes = self._grid.sizes

        def change(block: int, level: int) -> float:
            curve = self._curves[block]
            return (curve[level] - curve[plan[block]]) / sizes[block] if 0 <= level < len(curve) else math.inf

        usable = [block for block in range(len(plan)) if sizes[block] and plan[block] < len(self._curves[block])]
        cost = sorted(usable, key=lambda block: (change(block, plan[block] + step), block))
        gain = sorted(usable, key=lambda block: (change(block, plan[block] - step), block))
        pairs: list[tuple[int, int]] = []
        used: set[int] = set()
        for more in cost:
            less = next((block for block in gain if block not in used and block != more), None)
            if less is None or more in used:
                continue
            pairs.append((more, less))
            used |= {more, less}
        return pairs

    def _exchange(self, before: Sequence[float], more: int, less: int, step: float) -> tuple[str, Plan]:
        sizes = self._grid.sizes
        step = max(step, 1 / self._grid.steps)
        moved = list(before)
        moved[more] += step
        moved[less] -= step * sizes[more] / max(1, sizes[less])
        return f"block {more} more, block {less} less", self._plan(moved)

    def _plan(self, sparsities: Sequence[float]) -> Plan:
        return self._grid.nearest([min(max(s, 0.0), self._grid.highest) for s in sparsities])
