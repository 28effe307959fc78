"""Combine the alphas of layers into one score per block.

Layers are first averaged within their role, so that 128 experts weigh as much as one attention projection; the score is
then computed over roles.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from hf_farms.config import BlockScore

__all__ = ["LayerAlpha", "block_scores"]


class LayerAlpha(NamedTuple):
    """Role and alpha of a layer; `stderr` is None for a single window."""

    role: str
    alpha: float
    stderr: float | None


# Score and standard error of one role, or of one block.
Estimate = tuple[float, float | None]


def block_scores(blocks: Sequence[Sequence[LayerAlpha]], rule: BlockScore) -> list[Estimate | None]:
    """Compute the score of each block and its standard error.

    Args:
        blocks: for each block, its layers with an alpha.
        rule: "mean" over roles (FARMS and AlphaPruning); "median" over roles; "trimmed", the mean without the lowest
            and the highest role; "standardised", the mean after scaling every role to the same mean and standard
            deviation over blocks, so that no single role dominates.

    Returns:
        For each block the score and its standard error, propagated from the layers; None for a block without layers.
        A layer without an error counts as exact; a block of such layers has no error.
    """
    roles = [_average_by_role(layers) for layers in blocks]
    if rule == "standardised":
        roles = _standardize(roles)
    if rule not in COMBINE:
        raise ValueError(f"block_score must be one of {', '.join(COMBINE)}, got {rule!r}.")
    combine = COMBINE[rule]
    return [combine(list(estimates.values())) if estimates else None for estimates in roles]


def _average_by_role(layers: Sequence[LayerAlpha]) -> dict[str, Estimate]:
    grouped: dict[str, list[Estimate]] = defaultdict(list)
    for layer in layers:
        grouped[layer.role].append((layer.alpha, layer.stderr))
    return {role: _mean(estimates) for role, estimates in grouped.items()}


def _mean(estimates: list[Estimate]) -> Estimate:
    errors = [error for _, error in estimates if error is not None]
    mean = math.fsum(alpha for alpha, _ in estimates) / len(estimates)
    return mean, math.sqrt(math.fsum(error**2 for error in errors)) / len(estimates) if errors else None


def _trimmed(estimates: list[Estimate]) -> Estimate:
    """Average without the extremes; with fewer than five values, average all of them."""
    return _mean(sorted(estimates, key=lambda e: e[0])[1:-1] if len(estimates) >= 5 else estimates)


def _median(estimates: list[Estimate]) -> Estimate:
    ordered = sorted(estimates, key=lambda e: e[0])
    return _mean(ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1])


def _standardize(blocks: list[dict[str, Estimate]]) -> list[dict[str, Estimate]]:
    """Shift and scale each role to the average mean and standard deviation of all roles over blocks.

    A role that does not vary over blocks carries no information and is only shifted.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for estimates in blocks:
        for role, (alpha, _) in estimates.items():
            values[role].append(alpha)
    means = {role: statistics.fmean(alphas) for role, alphas in values.items()}
    deviations = {role: statistics.pstdev(alphas) for role, alphas in values.items()}
    if not any(deviations.values()):
        return blocks
    center = statistics.fmean(means.values())
    width = statistics.fmean(d for d in deviations.values() if d > 0)
    scale = {role: width / d if d > 0 else 0.0 for role, d in deviations.items()}
    return [
        {
            role: (center + scale[role] * (alpha - means[role]), None if error is None else scale[role] * error)
            for role, (alpha, error) in estimates.items()
        }
        for estimates in blocks
    ]


# Once the roles are brought to one scale, "standardised" is a mean.
COMBINE = {"mean": _mean, "median": _median, "trimmed": _trimmed, "standardised": _mean}
