"""Map block scores to block sparsities that meet the total exactly, and round them to whole weights.

Symbols: b_l block score, p_l weights in block l, r_l ratio, S target, epsilon spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hf_farms.allocation.water_filling import scale_to_total, shift_to_total
from hf_farms.config import PruneConfig
from hf_farms.config.checks import check, is_real

__all__ = [
    "allocate_by_difference",
    "allocate_sparsity",
    "apportion",
    "apportion_groups",
    "meet_total",
    "reliability",
]


def allocate_sparsity(
    scores: Sequence[float],
    *,
    sizes: Sequence[int],
    target: float,
    spread: float,
    stderr: Sequence[float | None] | None = None,
    bounds: tuple[float, float] = (0.0, PruneConfig.max_sparsity),
) -> list[float]:
    """Distribute a total sparsity over blocks: blocks with higher scores lose more weights.

    r_l = 1 - epsilon + 2 epsilon (b_l - min b) / (max b - min b) and s_l = r_l S sum p / sum p r (AlphaPruning,
    arXiv 2410.10912; FARMS, arXiv 2506.06280). Two differences to the released code: with `stderr`, epsilon is scaled
    by the reliability of the scores, so that pure noise gives the uniform allocation; and sparsity beyond a bound is
    redistributed to other blocks, so that the total is met.

    Args:
        scores: one per block, for instance its mean alpha.
        sizes: number of prunable weights of each block.
        target: total sparsity S, in [0, 1).
        spread: epsilon, in [0, 1).
        stderr: standard error of each score; a None entry counts as exact. None disables the shrinkage.
        bounds: lowest and highest sparsity of a block; extended to include the target if necessary.

    Returns:
        Sparsity of each block; `sum(s * p) == target * sum(p)` up to rounding.

    Raises:
        ValueError: lengths differ, there are no blocks, or a number is out of range.
    """
    _check_arguments(scores, sizes, target, spread, bounds)
    if stderr is not None:
        spread *= reliability(scores, stderr)
    low, high = min(scores), max(scores)
    span = high - low
    ratios = [1 - spread + 2 * spread * (b - low) / span if span > 0 else 1.0 for b in scores]
    return scale_to_total(ratios, sizes, target, _with_target(bounds, target))


def allocate_by_difference(
    scores: Sequence[float],
    *,
    sizes: Sequence[int],
    target: float,
    spread: float,
    bounds: tuple[float, float] = (0.0, PruneConfig.max_sparsity),
) -> list[float]:
    """Distribute a total sparsity over blocks with a fixed difference between the highest and the lowest sparsity.

    s_l = a + spread (b_l - min b) / (max b - min b), with the a that meets the total. For blocks of equal size this is
    the formula of OWL (arXiv 2310.05175) and DLP (arXiv 2505.23807), 1 - s_l = d_l - mean(d) + (1 - S) with
    d = 2 lambda minmax(-b) and spread = 2 lambda. Sparsity beyond a bound is redistributed to other blocks.

    Args:
        scores: one per block; the highest loses most.
        sizes: as for `allocate_sparsity`.
        target: as for `allocate_sparsity`.
        spread: highest minus lowest sparsity, in [0, 1).
        bounds: as for `allocate_sparsity`.

    Returns:
        Sparsity of each block; `sum(s * p) == target * sum(p)` up to rounding.

    Raises:
        ValueError: as for `allocate_sparsity`.
    """
    _check_arguments(scores, sizes, target, spread, bounds)
    low, high = min(scores), max(scores)
    span = high - low
    offsets = [spread * (b - low) / span if span > 0 else 0.0 for b in scores]
    return shift_to_total(offsets, sizes, target, _with_target(bounds, target))


def _with_target(bounds: tuple[float, float], target: float) -> tuple[float, float]:
    return min(bounds[0], target), max(bounds[1], target)


def _check_arguments(
    scores: Sequence[float], sizes: Sequence[int], target: float, spread: float, bounds: tuple[float, float]
) -> None:
    for name, numbers in {"scores": scores, "sizes": sizes}.items():
        check(isinstance(numbers, Sequence) and not isinstance(numbers, str), name, "a list of numbers", numbers)
    if not scores or len(scores) != len(sizes):
        raise ValueError(f"scores must have the length of sizes, at least 1, got {len(scores)} and {len(sizes)}.")
    check(all(is_real(b) and math.isfinite(b) for b in scores), "scores", "finite", list(scores))
    check(all(is_real(p) and p > 0 for p in sizes), "sizes", "positive", list(sizes))
    check(is_real(target) and 0 <= target < 1, "target", "at least 0 and below 1", target)
    check(is_real(spread) and 0 <= spread < 1, "spread", "at least 0 and below 1", spread)
    pair = isinstance(bounds, tuple | list) and len(bounds) == 2 and all(is_real(bound) for bound in bounds)
    check(pair and 0 <= bounds[0] <= bounds[1] <= 1, "bounds", "ordered and between 0 and 1", bounds)


def reliability(scores: Sequence[float], stderr: Sequence[float | None]) -> float:
    """Estimate the share of the variance between scores that is not noise: 1 - mean(stderr^2) / var(scores).

    It is 0 unless a chi-squared test at the 2.5% level rejects that all variance is noise.

    Args:
        scores: one per block.
        stderr: standard error of each; None counts as 0.

    Returns:
        Between 0 (only noise, or a single block) and 1.

    Raises:
        ValueError: lengths differ.
    """
    if len(scores) != len(stderr):
        raise ValueError(f"stderr must have the length of scores, got {len(stderr)} and {len(scores)}.")
    if len(scores) < 2:
        return 0.0
    mean = math.fsum(scores) / len(scores)
    variance = math.fsum((b - mean) ** 2 for b in scores) / (len(scores) - 1)
    noise = math.fsum((e or 0.0) ** 2 for e in stderr) / len(stderr)
    return 1 - noise / variance if variance > noise * _chi_squared_quantile(len(scores) - 1) else 0.0


def _chi_squared_quantile(degrees: int) -> float:
    """Return the 97.5% quantile of chi-squared divided by its degrees of freedom (Wilson and Hilferty 1931)."""
    width = 2 / (9 * degrees)
    return max(0.0, 1 - width + 1.96 * math.sqrt(width)) ** 3


def meet_total(
    sparsities: Sequence[float], *, sizes: Sequence[int], target: float, bounds: tuple[float, float]
) -> list[float]:
    """Scale sparsities by one factor, within bounds, so that they meet the total exactly.

    Args:
        sparsities: one per block, at least 0; at least one above 0 unless the target is 0.
        sizes: number of weights of each block; blocks without weights keep their sparsity.
        target: total sparsity.
        bounds: lowest and highest sparsity of a block; extended to include the target if necessary.

    Returns:
        Sparsity of each block; `sum(s * p) == target * sum(p)` up to rounding.
    """
    used = [index for index, (s, p) in enumerate(zip(sparsities, sizes, strict=True)) if p > 0 and s > 0]
    fitted = [0.0] * len(sizes)
    if not used:
        return fitted
    # Blocks that are dense stay dense, unless the others cannot reach the total alone.
    if max(bounds[1], target) * sum(sizes[index] for index in used) < target * sum(sizes):
        used = [index for index, size in enumerate(sizes) if size > 0]
    total = target * sum(sizes) / sum(sizes[index] for index in used)
    filled = scale_to_total(
        [max(sparsities[index], 1e-6) for index in used],
        [sizes[index] for index in used],
        total,
        (min(bounds[0], target), max(bounds[1], total)),
    )
    for index, sparsity in zip(used, filled, strict=True):
        fitted[index] = sparsity
    return fitted


def apportion(total: int, shares: Sequence[float], capacities: Sequence[int]) -> list[int]:
    """Round shares to integers that add up to `total`: largest remainders first, ties by index.

    Args:
        total: sum of the result.
        shares: requested amounts, which add up to about `total`.
        capacities: upper limit of each amount.

    Returns:
        One integer per share.

    Raises:
        ValueError: the total exceeds the sum of the capacities.
    """
    if total > sum(capacities):
        raise ValueError(f"total must be at most {sum(capacities)}, got {total}.")
    counts = [min(max(0, math.floor(share)), cap) for share, cap in zip(shares, capacities, strict=True)]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    while (missing := total - sum(counts)) != 0:
        step = 1 if missing > 0 else -1
        movable = [i for i in order[::step] if (counts[i] < capacities[i] if step > 0 else counts[i] > 0)]
        for i in movable[: abs(missing)]:
            counts[i] += step
    return counts


def apportion_groups(
    targets: Sequence[float], *, sizes: Sequence[int], total: int, group: int, highest: float
) -> list[int]:
    """Choose the zeros per group of each block, so that the number of zeros is as close as possible to the total.

    Every block is rounded down; then the blocks with the largest remainders (ties by index) get one more zero per group
    as long as that reduces the distance to the total. For blocks of equal size the result is that of `apportion`. No
    change of one block by one can improve the result.

    Args:
        targets: sparsity of each block.
        sizes: number of weights of each block.
        total: requested number of zeros.
        group: weights in a group (M of N:M), at least one of which is kept.
        highest: highest sparsity of a block; rounded down to whole groups, but never below what the total requires.

    Returns:
        Zeros per group of each block.
    """
    most = max(math.floor(highest * group), math.ceil(total * group / sum(sizes)))
    most = min(most, group - 1)
    shares = [target * group for target in targets]
    counts = [min(math.floor(share + 1e-9), most) for share in shares]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    # In units of 1 / group of a weight, so that all numbers are integers.
    missing = total * group - sum(count * size for count, size in zip(counts, sizes, strict=True))
    while True:
        before = missing
        for i in order if missing > 0 else reversed(order):
            step = 1 if missing > 0 else -1
            if 0 <= counts[i] + step <= most and abs(missing - step * sizes[i]) < abs(missing):
                counts[i] += step
                missing -= step * sizes[i]
        if missing == before:
            return counts
