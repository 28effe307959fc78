"""Magnitude: the smallest weights go."""

from __future__ import annotations

from torch import Tensor

from hf_farms.pruning.patterns import Removal

__all__ = ["magnitude", "magnitude_scores"]


def magnitude_scores(weight: Tensor) -> Tensor:
    """|W| in float32.

    Args:
        weight: `(out, in)`, any float dtype.

    Returns:
        `(out, in)` float32.
    """
    return weight.float().abs()


def magnitude(weight: Tensor, measured: None, removal: Removal) -> Tensor:
    """Set the smallest weights to zero; nothing is measured."""
    return weight.masked_fill(removal.mask(magnitude_scores(weight)), 0)
