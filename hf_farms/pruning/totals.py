"""Sums over calibration batches, on one process or several."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_farms.processes import WorkingRanks

__all__ = ["sum_over_ranks", "total_dtype"]


def total_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of a sum over batches: float64, where the device has it.

    The sum then hardly depends on the order of the batches, and not on how many processes share them.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def sum_over_ranks(total: Tensor, num_tokens: int, ranks: WorkingRanks) -> int:
    """Sum the total of a statistic over all ranks, in place, and return the sum of the numbers of tokens."""
    ranks.sum_(total)
    tokens = torch.tensor([num_tokens])
    ranks.sum_(tokens)
    return int(tokens)
