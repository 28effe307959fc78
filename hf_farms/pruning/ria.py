"""RIA (Zhang et al., ICLR 2024): score weights by their share of row and column, times a power of the input norm."""

from __future__ import annotations

from torch import Tensor

from hf_farms.pruning.patterns import Removal, count_ties, lowest

__all__ = ["ria", "ria_scores", "ria_ties"]

# Exponent of the input norm, `a` in the paper.
NORM_POWER = 0.5


def ria_scores(weight: Tensor, input_norm: Tensor, *, power: float = NORM_POWER) -> Tensor:
    """Compute the scores (|W_ij| / sum_k |W_kj| + |W_ij| / sum_k |W_ik|) ||X_j||^a.

    A row or column of zeros has score 0.

    Args:
        weight: `(out, in)`, any float dtype; not modified.
        input_norm: `(in,)` float32.
        power: exponent a of the norm.

    Returns:
        `(out, in)` float32.
    """
    # Sums in float32: those of float16 overflow.
    magnitude = weight.abs().float()
    scores = magnitude / _divisor(magnitude.sum(dim=0, keepdim=True))
    scores += magnitude / _divisor(magnitude.sum(dim=1, keepdim=True))
    return scores.mul_(input_norm**power)


def _divisor(sums: Tensor) -> Tensor:
    return sums.masked_fill(sums == 0, 1)


def ria(weight: Tensor, input_norm: Tensor, removal: Removal) -> Tensor:
    """Set the weights with the lowest scores to zero.

    Scores are relative to their row and column, so they are compared within the whole layer, as in the released code;
    with a pattern N:M, within each group.

    Args:
        weight: `(out, in)`, any float dtype; not modified.
        input_norm: `(in,)` float32.
        removal: number and pattern of the weights to remove.
    """
    scores = ria_scores(weight, input_norm)
    removed = lowest(scores, removal.count) if removal.group is None else removal.mask(scores)
    return weight.masked_fill(removed, 0)


def ria_ties(weight: Tensor, input_norm: Tensor, removal: Removal, removed: Tensor) -> int:
    """Count the weights that were kept with the score of a removed one, but for rounding.

    Args:
        weight: `(out, in)` before pruning.
        input_norm: `(in,)` float32.
        removal: as of `ria`.
        removed: `(out, in)` bool.
    """
    scores = ria_scores(weight, input_norm)
    if removal.group is not None:
        return removal.ties(scores, removed)
    return count_ties(scores.reshape(1, -1), removed.reshape(1, -1))
