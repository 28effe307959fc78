"""Sizes and rounding of the weights that a pruning method kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["root_mean_square", "round_kept"]


def root_mean_square(weight: Tensor) -> float:
    """Return the root mean square of the weights that are not zero."""
    count = max(1, int((weight != 0).sum()))
    return math.sqrt(float(weight.detach().square().sum(dtype=torch.float64)) / count)


def round_kept(weight: Tensor, pruned: Tensor) -> Tensor:
    """Round a weight to the dtype of the model; weights that were kept must not round to zero.

    Args:
        weight: after a recovery, in float32.
        pruned: before the recovery.
    """
    rounded = weight.to(pruned.dtype)
    smallest = torch.full_like(rounded, torch.finfo(rounded.dtype).tiny).copysign(rounded)
    return torch.where((rounded == 0) & (pruned != 0), smallest, rounded)
