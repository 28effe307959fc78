"""Statistics of allocations.py: differences over calibration seeds and windows, with errors of both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Floats = NDArray[np.float64]
Row = Mapping[str, Any]


class Difference(NamedTuple):
    """A mean difference with its standard error, and the quantile of t that a significant one exceeds."""

    mean: float
    error: float
    quantile: float

    def __str__(self) -> str:
        digits = 4 if 0 < self.error < 0.001 else 3
        text = f"{self.mean:+.{digits}f} ± {self.error:.{digits}f}".replace("-", "−")
        return f"**{text}**" if abs(self.mean) > self.quantile * self.error else text


def crossed(values: Floats) -> Difference:
    """Mean of `(seeds, windows)` where both are drawn at random, by analysis of variance.

    The variance of the mean is (MS of seeds + MS of windows - MS of the rest) / (seeds x windows), with the degrees of
    freedom of Satterthwaite. One seed: windows only.
    """
    seeds, windows = values.shape
    mean = float(values.mean())
    rows, columns = values.mean(1, keepdims=True) - mean, values.mean(0, keepdims=True) - mean
    by_window = seeds * float(np.square(columns).sum()) / (windows - 1)
    if seeds == 1:
        return Difference(mean, math.sqrt(by_window / windows), float(student.ppf(0.975, windows - 1)))
    by_seed = windows * float(np.square(rows).sum()) / (seeds - 1)
    rest = float(np.square(values - mean - rows - columns).sum()) / ((seeds - 1) * (windows - 1))
    # The estimate may fall below that of windows or of seeds alone, which bound it.
    variance = max(by_seed + by_window - rest, by_seed, by_window)
    if variance == 0:
        return Difference(mean, 0.0, 0.0)
    spread = by_seed**2 / (seeds - 1) + by_window**2 / (windows - 1) + rest**2 / ((seeds - 1) * (windows - 1))
    freedom = max(1.0, variance**2 / spread)
    return Difference(mean, math.sqrt(variance / (seeds * windows)), float(student.ppf(0.975, freedom)))


def compared(rows: Iterable[Row], base: Iterable[Row], key: str = "nll") -> Difference | None:
    """Difference of rows to those of the same seed; None without a common seed."""
    one, other = ({row["seed"]: row[key] for row in part} for part in (rows, base))
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return None
    return crossed(np.array([one[seed] for seed in seeds]) - np.array([other[seed] for seed in seeds]))


def closed_gap(rows: Iterable[Row], base: Iterable[Row], dense: Row) -> tuple[float, float] | None:
    """Share of the NLL gap between base and dense that rows close, and its error over seeds and windows.

    Args:
        rows: of one arm.
        base: of another arm; rows of the same seed are compared.
        dense: of the dense model.
    """
    one, other = ({row["seed"]: np.array(row["nll"]) for row in part} for part in (rows, base))
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return None
    gap = np.array([other[seed] for seed in seeds]) - np.array(dense["nll"])
    closed = np.array([other[seed] - one[seed] for seed in seeds])
    share = float(closed.mean() / gap.mean())
    # The ratio of two means, to first order.
    return share, crossed((closed - share * gap) / gap.mean()).error
