"""Magnitude: the smallest weights go."""

from __future__ import annotations

from torch import Tensor

__all__ = ["magnitude_scores"]


def magnitude_scores(weight: Tensor) -> Tensor:
    """|W| in float32.

    Args:
        weight: `(out, in)`, any float dtype.

    Returns:
        `(out, in)` float32.
    """
    return weight.float().abs()
