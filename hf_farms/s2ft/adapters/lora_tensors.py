"""The change of one weight as a LoRA, exactly: one factor selects channels, the other holds their differences.

Symbols: m outputs, n inputs, s channels, r rank; A `(r, n)`, B `(m, r)`, and y = x Wᵀ + x Aᵀ Bᵀ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_farms.s2ft.adapters.patches import WeightPatch

__all__ = ["Factors", "factors_of", "features_of", "is_transposed", "zero_factors"]

# A and B.
Factors = tuple[Tensor, Tensor]


def factors_of(patch: WeightPatch, base: Tensor, *, rank: int, dtype: torch.dtype) -> Factors:
    """Return A and B, whose product is the change of the weight; rows and columns above s are zero.

    For inputs (o, down) A is one-hot and B has the differences; for outputs (q, k, v, up, gate) it is the other way
    round. The difference is computed in float32, or in float64 where the slices are: that of two half-precision
    numbers rarely fits into half precision.

    Args:
        patch: with the new slices.
        base: the slices before the training.
        rank: at least s.
        dtype: of A and B.
    """
    wide = torch.promote_types(patch.values.dtype, torch.float32)
    change = (patch.values.to(wide) - base.to(wide)).to(dtype)
    # The channels of the slice come last for inputs, first for outputs.
    if is_transposed(patch):
        change = change.mT
    lora_a, lora_b = zero_factors(features_of(patch), rank=rank, dtype=dtype)
    channels = torch.arange(len(patch.indices))
    if patch.side == "inputs":
        lora_a[channels, patch.indices] = 1
        lora_b[:, : len(channels)] = change
    else:
        lora_a[: len(channels)] = change
        lora_b[patch.indices, channels] = 1
    return lora_a, lora_b


def zero_factors(features: tuple[int, int], *, rank: int, dtype: torch.dtype) -> Factors:
    """Return A and B of a layer that does not change, given its outputs and inputs `(m, n)`."""
    m, n = features
    return torch.zeros(rank, n, dtype=dtype), torch.zeros(m, rank, dtype=dtype)


def features_of(patch: WeightPatch) -> tuple[int, int]:
    """Return the outputs and inputs `(m, n)` of the layer."""
    m, n = reversed(patch.shape) if is_transposed(patch) else patch.shape
    return m, n


def is_transposed(patch: WeightPatch) -> bool:
    """Return whether the weight is stored as `(n, m)`, that of a Conv1D."""
    return (patch.dim == 1) != (patch.side == "inputs")
