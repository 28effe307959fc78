"""Wanda (arXiv 2306.11695): weights count as much as what they are multiplied with."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_farms.pruning.patterns import Removal

__all__ = ["InputNorm", "wanda", "wanda_scores"]

# Inputs that are made float32 and squared at once.
AT_ONCE = 2**22


class InputNorm:
    """Running ||X_j||_2 of every input channel j of one layer; memory does not grow with the number of tokens.

    Args:
        width: input channels.
        device: of the layer.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._sum = torch.zeros(width, dtype=torch.float32, device=device)
        self.num_tokens = 0

    @staticmethod
    def nbytes(width: int) -> int:
        """Memory for so many inputs."""
        return 4 * width

    @staticmethod
    def tokens_needed(width: int) -> int:
        """A single token gives a norm."""
        return 1

    def add(self, inputs: Tensor) -> None:
        """Count the tokens of `(..., width)` inputs, in float32 whatever their dtype."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        for part in rows.split(max(1, AT_ONCE // rows.shape[1])):
            self._sum += part.float().square().sum(dim=0).to(self._sum.device)
        self.num_tokens += len(rows)

    def merge(self, other: InputNorm) -> None:
        """Count the tokens of another one too."""
        self._sum += other._sum
        self.num_tokens += other.num_tokens

    def is_finite(self) -> bool:
        """Whether no input was NaN or infinite."""
        return bool(torch.isfinite(self._sum).all())

    def prepared(self, name: str) -> Tensor:
        """The norm."""
        return self.norm()

    def norm(self) -> Tensor:
        """`(width,)` float32; scaled by the number of tokens, which changes no comparison and cannot overflow."""
        return (self._sum / max(1, self.num_tokens)).sqrt()


def wanda_scores(weight: Tensor, input_norm: Tensor) -> Tensor:
    """S_ij = |W_ij| ||X_j||_2 (equation 1).

    Args:
        weight: `(out, in)`, any float dtype.
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
