"""Maps from alphas to factors on the learning rate. The functions that the entries of `LR_MAPS` name are here.

Symbols: a_l alpha, L how many there are, f_l factor. Alphas are above 1 and not all equal.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

__all__ = ["linear", "log2", "sigmoid", "sqrt", "step"]

# t of the sigmoid map (Model Balancing).
SIGMOID_TEMPERATURE = 10.0


def linear(alphas: Sequence[float], *, min_scale: float, max_scale: float) -> list[float]:
    """Return min_scale + (max_scale - min_scale) (a_l - min a) / (max a - min a)."""
    smallest, span = min(alphas), max(alphas) - min(alphas)
    return [min_scale + (max_scale - min_scale) * (a - smallest) / span for a in alphas]


def sqrt(alphas: Sequence[float]) -> list[float]:
    """Return g(a_l) L / sum g, with g the square root: their mean is 1."""
    return _proportional(alphas, math.sqrt)


def log2(alphas: Sequence[float]) -> list[float]:
    """Return g(a_l) L / sum g, with g the logarithm: their mean is 1."""
    return _proportional(alphas, math.log2)


def _proportional(alphas: Sequence[float], g: Callable[[float], float]) -> list[float]:
    values = [g(a) for a in alphas]
    return [value * len(values) / math.fsum(values) for value in values]


def step(alphas: Sequence[float], *, min_scale: float, max_scale: float, released_step: bool) -> list[float]:
    """Return min_scale + (max_scale - min_scale) rank_l / (L - 1); equal alphas share the mean of their ranks.

    Args:
        alphas: one per layer or block.
        min_scale: factor of the smallest alpha.
        max_scale: factor of the largest.
        released_step: divide by L, as the released code does, which never reaches max_scale.
    """
    ordered = sorted(alphas)
    steps = len(alphas) - (0 if released_step else 1)
    first = {a: ordered.index(a) for a in ordered}
    ranks = [first[a] + (ordered.count(a) - 1) / 2 for a in alphas]
    return [min_scale + (max_scale - min_scale) * rank / steps for rank in ranks]


def sigmoid(alphas: Sequence[float], *, min_scale: float, max_scale: float) -> list[float]:
    """Return 10^(2 s (sigmoid(10 (a_l - mean a)) - 1/2)): between both scales.

    s is log10(max_scale) above the mean and -log10(min_scale) below.
    """
    mean = statistics.fmean(alphas)
    factors = []
    for a in alphas:
        strength = math.log10(max_scale) if a > mean else -math.log10(min_scale)
        # tanh(x / 2) = 2 sigmoid(x) - 1, without overflow.
        factors.append(10 ** (strength * math.tanh(SIGMOID_TEMPERATURE * (a - mean) / 2)))
    return factors
