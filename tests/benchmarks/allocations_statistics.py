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
    """A mean difference with its standard error, and the quantile of t that a significant one exceeds.

    `is_mixed`: some of the rows that were compared are of two devices.
    """

    mean: float
    error: float
    quantile: float
    is_mixed: bool = False

    def __str__(self) -> str:
        digits = max(3, math.ceil(-math.log10(self.error))) if self.error else 3
        text = f"{self.mean:+.{digits}f} ± {self.error:.{digits}f}".replace("-", "−")
        text = f"**{text}**" if abs(self.mean) > self.quantile * self.error else text
        return f"{text} †" if self.is_mixed else text


class Share(NamedTuple):
    """A share with its standard error; `is_mixed` as above."""

    value: float
    error: float
    is_mixed: bool = False

    def __str__(self) -> str:
        text = f"{self.value:.0%} ± {self.error:.0%}"
        return f"{text} †" if self.is_mixed else text


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
    """Difference of rows to those of the same seed, and of the same device where there are such; None without any."""
    pairs = _paired(rows, base)
    if not pairs:
        return None
    found = crossed(np.array([row[key] for row, _ in pairs]) - np.array([other[key] for _, other in pairs]))
    return found._replace(is_mixed=_is_mixed(pairs))


def _is_mixed(pairs: Iterable[tuple[Row, Row]]) -> bool:
    return any(row["device"] != other["device"] for row, other in pairs)


def _paired(rows: Iterable[Row], base: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Return the pairs of a common seed in its order."""
    one, other = _by_seed(rows), _by_seed(base)
    pairs = []
    for seed in sorted(set(one) & set(other)):
        common = [device for device in one[seed] if device in other[seed]]
        first = (common or [*one[seed]])[0], (common or [*other[seed]])[0]
        pairs.append((one[seed][first[0]], other[seed][first[1]]))
    return pairs


def _by_seed(rows: Iterable[Row]) -> dict[int, dict[str, Row]]:
    found: dict[int, dict[str, Row]] = {}
    for row in rows:
        if row["device"] in found.setdefault(row["seed"], {}):
            raise ValueError(f"two rows of seed {row['seed']} on {row['device']}: rows of several settings")
        found[row["seed"]][row["device"]] = row
    return found


def closed_gap(rows: Iterable[Row], base: Iterable[Row], dense: Row) -> Share | None:
    """Share of the NLL gap between base and dense that rows close, and its error over seeds and windows.

    Args:
        rows: of one arm.
        base: of another arm; rows of the same seed are compared.
        dense: of the dense model.
    """
    pairs = _paired(rows, base)
    if not pairs:
        return None
    gap = np.array([other["nll"] for _, other in pairs]) - np.array(dense["nll"])
    closed = np.array([other["nll"] for _, other in pairs]) - np.array([row["nll"] for row, _ in pairs])
    share = float(closed.mean() / gap.mean())
    # The ratio of two means, to first order.
    return Share(share, crossed((closed - share * gap) / gap.mean()).error, _is_mixed(pairs))
