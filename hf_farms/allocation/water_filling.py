"""Bring clipped sparsities to an exact total: what one block cannot lose is taken from the others.

Symbols: p_l weights in block l, s_l sparsity, S target, c factor, a shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

__all__ = ["scale_to_total", "shift_to_total"]

Bounds = tuple[float, float]


def scale_to_total(ratios: Sequence[float], sizes: Sequence[int], target: float, bounds: Bounds) -> list[float]:
    """Return s_l = clip(c r_l, bounds) with the c that meets the total: sum(s p) = S sum(p).

    Args:
        ratios: r_l, positive.
        sizes: number of weights of each block.
        target: total sparsity, within the bounds.
        bounds: lowest and highest sparsity of a block.
    """
    low, high = bounds

    def sparsities(c: float) -> list[float]:
        return [min(max(c * r, low), high) for r in ratios]

    return _meet_total(sparsities, (0.0, *(bound / r for r in ratios for bound in bounds)), sizes, target)


def shift_to_total(offsets: Sequence[float], sizes: Sequence[int], target: float, bounds: Bounds) -> list[float]:
    """Return s_l = clip(a + d_l, bounds) with the a that meets the total; arguments as for `scale_to_total`."""
    low, high = bounds

    def sparsities(a: float) -> list[float]:
        return [min(max(a + d, low), high) for d in offsets]

    return _meet_total(sparsities, (bound - d for d in offsets for bound in bounds), sizes, target)


def _meet_total(
    sparsities: Callable[[float], list[float]], breakpoints: Iterable[float], sizes: Sequence[int], target: float
) -> list[float]:
    """Water-fill over the breakpoints: between adjacent ones the removed weight is linear, so interpolation is exact.

    Args:
        sparsities: rises with its argument.
        breakpoints: arguments at which a block reaches a bound.
        sizes: number of weights of each block.
        target: total sparsity.
    """
    total = target * math.fsum(sizes)

    def removed(level: float) -> float:
        return math.fsum(p * s for p, s in zip(sizes, sparsities(level), strict=True))

    levels = sorted(set(breakpoints))
    above = next((i for i, level in enumerate(levels) if removed(level) >= total), len(levels) - 1)
    left, right = levels[max(0, above - 1)], levels[above]
    rise = removed(right) - removed(left)
    return sparsities(left + (right - left) * (total - removed(left)) / rise if rise > 0 else right)
