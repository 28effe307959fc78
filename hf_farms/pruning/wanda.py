"""Wanda (arXiv 2306.11695): score weights by magnitude times the norm of their input channel."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_farms.processes import WorkingRanks
from hf_farms.pruning.patterns import Removal
from hf_farms.pruning.totals import sum_over_ranks, total_dtype

__all__ = ["InputNorm", "wanda", "wanda_scores", "wanda_ties"]

# Inputs that are converted to float32 and squared at once.
INPUTS_AT_ONCE = 2**22


class InputNorm:
    """Running ||X_j||_2 of every input channel j of one layer; memory is independent of the number of tokens.

    Args:
        width: number of input channels.
        device: device of the layer.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._sum = torch.zeros(width, dtype=total_dtype(device), device=device)
        self.num_tokens = 0

    @staticmethod
    def nbytes(width: int) -> int:
        """Return the memory for `width` inputs, in bytes."""
        return 8 * width

    @staticmethod
    def tokens_needed(width: int) -> int:
        """Return 1: a single token is enough for a norm."""
        return 1

    def add(self, inputs: Tensor) -> None:
        """Add `(..., width)` inputs of any float dtype, squared in float32 and accumulated in float64."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        for part in rows.split(max(1, INPUTS_AT_ONCE // rows.shape[1])):
            self._sum += part.float().square().sum(dim=0).to(self._sum.device)
        self.num_tokens += len(rows)

    def merge(self, other: InputNorm) -> None:
        """Add the inputs of another statistic."""
        self._sum += other._sum
        self.num_tokens += other.num_tokens

    def sum_over(self, ranks: WorkingRanks) -> None:
        """Add the inputs of the statistics of the other ranks."""
        self.num_tokens = sum_over_ranks(self._sum, self.num_tokens, ranks)

    def is_finite(self) -> bool:
        """Return whether all inputs were finite."""
        return bool(torch.isfinite(self._sum).all())

    def prepared(self, name: str) -> Tensor:
        """Return the norm."""
        return self.norm()

    def norm(self) -> Tensor:
        """Return the root mean square of every channel, `(width,)` float32.

        It is proportional to the norm, so the order of scores is the same, and it cannot overflow.
        """
        return (self._sum / max(1, self.num_tokens)).sqrt().float()


def wanda_scores(weight: Tensor, input_norm: Tensor) -> Tensor:
    """Compute the scores S_ij = |W_ij| ||X_j||_2 (equation 1 of the paper).

    Args:
        weight: `(out, in)`, any float dtype; not modified.
        input_norm: `(in,)` float32.

    Returns:
        `(out, in)` float32.
    """
    return weight.abs().float().mul_(input_norm)


def wanda(weight: Tensor, input_norm: Tensor, removal: Removal) -> Tensor:
    """Set the weights with the lowest scores to zero.

    Args:
        weight: `(out, in)`, any float dtype; not modified.
        input_norm: `(in,)` float32.
        removal: how many weights, and from where.
    """
    return weight.masked_fill(removal.mask(wanda_scores(weight, input_norm)), 0)


def wanda_ties(weight: Tensor, input_norm: Tensor, removal: Removal, removed: Tensor) -> int:
    """Count the weights that were kept with the score of a removed one, but for rounding.

    Args:
        weight: `(out, in)` before pruning.
        input_norm: `(in,)` float32.
        removal: as of `wanda`.
        removed: `(out, in)` bool.
    """
    return removal.ties(wanda_scores(weight, input_norm), removed)
