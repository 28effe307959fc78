"""Alphas of layers -> one score for each block.

A block's layers are first averaged within their role, so that 128 experts weigh as much as one projection of the
attention; the score is then taken over roles.
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
    """What a score needs to know of a layer; `stderr` is None where there was a single window."""

    role: str
    alpha: float
    stderr: float | None


# Score and standard error of one role, or of one block.
Estimate = tuple[float, float | None]


def block_scores(blocks: Sequence[Sequence[LayerAlpha]], how: BlockScore) -> list[Estimate | None]:
    """Score of each block and its standard error.

    Args:
        blocks: for each block the layers that have an alpha.
        how: "mean" over roles (FARMS and AlphaPruning); "median" over roles; "trimmed": mean without the lowest and
            the highest role; "standardised": every role is first brought to the same mean and deviation over blocks,
            so that no role decides alone.

    Returns:
        For each block its score with the error that follows from the errors of the layers in it; None for a block
        without layers. A layer without an error counts as exact; a block of such layers has no error.
    """
    roles = [_by_role(layers) for layers in blocks]
    if how == "standardised":
        roles = _standardise(roles)
    combine = {"median": _median, "trimmed": _trimmed}.get(how, _mean)
    return [combine(list(estimates.values())) if estimates else None for estimates in roles]


def _by_role(layers: Sequence[LayerAlpha]) -> dict[str, Estimate]:
    grouped: dict[str, list[Estimate]] = defaultdict(list)
    for layer in layers:
        grouped[layer.role].append((layer.alpha, layer.stderr))
    return {role: _mean(estimates) for role, estimates in grouped.items()}


def _mean(estimates: list[Estimate]) -> Estimate:
    errors = [error for _, error in estimates if error is not None]
    mean = math.fsum(alpha for alpha, _ in estimates) / len(estimates)
    return mean, math.sqrt(math.fsum(error**2 for error in errors)) / len(estimates) if errors else None


def _trimmed(estimates: list[Estimate]) -> Estimate:
    """Mean without the extremes; of fewer than five values nothing is left out."""
    return _mean(sorted(estimates, key=lambda e: e[0])[1:-1] if len(estimates) >= 5 else estimates)


def _median(estimates: list[Estimate]) -> Estimate:
    ordered = sorted(estimates, key=lambda e: e[0])
    return _mean(ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1])


def _standardise(blocks: list[dict[str, Estimate]]) -> list[dict[str, Estimate]]:
    """Each role shifted and scaled to the average of the roles' means and deviations over blocks.

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
    centre = statistics.fmean(means.values())
    width = statistics.fmean(d for d in deviations.values() if d > 0)
    scale = {role: width / d if d > 0 else 0.0 for role, d in deviations.items()}
    return [
        {
            role: (centre + scale[role] * (alpha - means[role]), None if error is None else scale[role] * error)
            for role, (alpha, error) in estimates.items()
        }
        for estimates in blocks
    ]
