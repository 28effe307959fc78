"""Magnitude pruning: remove the weights with the smallest absolute value."""

from __future__ import annotations

from torch import Tensor

from hf_farms.pruning.patterns import Removal

__all__ = ["magnitude", "magnitude_scores"]


def magnitude_scores(weight: Tensor) -> Tensor:
    """Return |W|, the scores of magnitude pruning.

    Args:
        weight: `(out, in)`, any float dtype; not modified.

    Returns:
        `(out, in)` float32.
    """
    return weight.float().abs()


def magnitude(weight: Tensor, measured: None, removal: Removal) -> Tensor:
    """Set the smallest weights to zero; nothing is measured."""
    return weight.masked_fill(removal.mask(magnitude_scores(weight)), 0)
