"""Scores of blocks from Wanda's scores |W| ||X||: the share of outliers (OWL) and the median (DLP).

The norms of the inputs are root mean squares over tokens, so that experts with few tokens compare with other layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hf_farms.pruning.patterns import ENTRIES_AT_ONCE
from hf_farms.pruning.scoring import MeasuredLayer
from hf_farms.pruning.wanda import wanda_scores

__all__ = ["inlier_share", "median_score"]

# M of the paper: an outlier is above so many times the mean.
OUTLIER = 5.0
# Bits of a positive float32 that the first and the second histogram count.
HIGH_BITS, LOW_BITS = 15, 16


def inlier_share(layers: Sequence[MeasuredLayer]) -> float | None:
    """Return the share of Wanda scores of a block that are no outliers: at most five times their mean (OWL).

    Two passes over the weights of the block; memory for a part of one layer at a time.

    Args:
        layers: of the block; those without inputs do not count.

    Returns:
        The share; None if no layer got inputs.
    """
    count = _count(layers)
    if count == 0:
        return None
    mean = math.fsum(float(scores.sum(dtype=torch.float64)) for scores in _score_parts(layers)) / count
    outliers = sum(int((scores > OUTLIER * mean).sum()) for scores in _score_parts(layers))
    return 1 - outliers / count


def median_score(layers: Sequence[MeasuredLayer]) -> float | None:
    """Return the median Wanda score of a block, the lower of the two in the middle (DLP).

    It is exact, by two histograms: positive floats are in the order of their bits, so the first pass finds the upper 16
    bits of the median, and the second the lower 16 among the scores with those. Memory for a part of one layer at a
    time.

    Args:
        layers: of the block; those without inputs do not count.

    Returns:
        The median; None if no layer got inputs.
    """
    count = _count(layers)
    if count == 0:
        return None
    rank = (count - 1) // 2
    upper = sum(_histogram(_bits(scores) >> LOW_BITS, HIGH_BITS) for scores in _score_parts(layers))
    high, rank = _bin_of(upper, rank)
    lower = sum(_histogram(_with_high_bits(scores, high), LOW_BITS) for scores in _score_parts(layers))
    low, _ = _bin_of(lower, rank)
    return float(torch.tensor(high << LOW_BITS | low, dtype=torch.int32).view(torch.float32))


def _count(layers: Sequence[MeasuredLayer]) -> int:
    return sum(math.prod(layer.view.metadata.shape) for layer in layers if layer.inputs is not None)


def _score_parts(layers: Sequence[MeasuredLayer]) -> Iterator[Tensor]:
    """Yield the Wanda scores of some rows of a layer at a time."""
    for layer in layers:
        if layer.inputs is not None:
            weight = layer.view.read()
            for rows in weight.split(max(1, ENTRIES_AT_ONCE // weight.shape[1])):
                yield wanda_scores(rows, layer.inputs)


def _bits(scores: Tensor) -> Tensor:
    return scores.flatten().view(torch.int32)


def _with_high_bits(scores: Tensor, high: int) -> Tensor:
    bits = _bits(scores)
    return bits[bits >> LOW_BITS == high] & (1 << LOW_BITS) - 1


def _histogram(values: Tensor, bits: int) -> Tensor:
    return torch.bincount(values, minlength=1 << bits).cpu()


def _bin_of(histogram: Tensor | int, rank: int) -> tuple[int, int]:
    """Return the bin of the entry with this rank from below, and its rank inside of the bin."""
    totals = torch.as_tensor(histogram).cumsum(0)
    found = int(torch.searchsorted(totals, rank, right=True))
    return found, rank - (int(totals[found - 1]) if found else 0)
