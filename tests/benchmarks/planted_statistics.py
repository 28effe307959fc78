"""Statistics of planted models: adjustment for depth, AUC, d', bootstrap over families. Used by planted.py.

Shapes: b planted blocks, f families, d draws of the bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Row = Mapping[str, Any]
# Depth -> measure -> mean for each position.
Means = dict[int, dict[str, Floats]]
# The measures of a row: for each block one value, or several.
Table = Callable[[Row], dict[str, Floats]]

DRAWS = 10_000
# Groups whose healthy models tell the means per position.
REFERENCE = ("development", "healthy")


@dataclass(frozen=True)
class Planted:
    """A planted block and the healthy blocks of its model, adjusted for depth.

    Attributes:
        model: its name.
        family: seed of the family.
        group: "development", "test", ...
        condition: what was done to the block.
        position: index of the block.
        own: its values of each measure, one or several.
        healthy: all values of the healthy blocks, `(blocks, values)`.
    """

    model: str
    family: int
    group: str
    condition: str
    position: int
    own: dict[str, Floats]
    healthy: dict[str, Floats]


def of_blocks(row: Row) -> dict[str, Floats]:
    """Measures as `(blocks, 1)`; NaN where a block has none."""
    return {name: np.array(values, dtype=float)[:, None] for name, values in row["measures"].items()}


def of_layers(row: Row) -> dict[str, Floats]:
    """Alphas of single layers as `(blocks, roles)`."""
    layers = row["layers"].values()
    return {name: np.array([role[name] for role in layers], dtype=float).T for name in ("farms", "whole mid")}


def position_means(rows: Iterable[Row], table: Table = of_blocks) -> Means:
    """Average each measure over healthy development and false-alarm models, by number of blocks and position."""
    tables: dict[int, list[dict[str, Floats]]] = {}
    for row in rows:
        if row["group"] in REFERENCE and not row["planted"] and "derived" not in row:
            values = table(row)
            tables.setdefault(len(values["farms"]), []).append(values)
    return {
        depth: {name: np.nanmean(np.hstack([values[name] for values in found]), axis=1) for name in found[0]}
        for depth, found in tables.items()
    }


def planted_blocks(rows: Iterable[Row], means: Means, table: Table = of_blocks) -> list[Planted]:
    """Collect the planted blocks of models that have means of their depth."""
    collected = []
    for row in rows:
        values = table(row)
        depth = len(values["farms"])
        if depth not in means:
            continue
        adjusted = {name: each - means[depth][name][:, None] for name, each in values.items()}
        planted = {int(position): condition for position, condition in row["planted"].items()}
        others = [position for position in range(depth) if position not in planted]
        collected += [
            Planted(
                row["name"],
                row["family"],
                row["group"],
                condition,
                position,
                {name: each[position] for name, each in adjusted.items()},
                {name: each[others] for name, each in adjusted.items()},
            )
            for position, condition in planted.items()
        ]
    return collected


def shares(blocks: Sequence[Planted], measure: str) -> Floats:
    """For each planted block the share of healthy values of its model that are lower; ties count half.

    NaN for a block without this measure.
    """
    missing = np.array([np.nan])
    return np.array(
        [_share(b.own.get(measure, missing), b.healthy.get(measure, missing).ravel()) for b in blocks], dtype=float
    )


def _share(own: Floats, healthy: Floats) -> float:
    own, healthy = own[~np.isnan(own)], healthy[~np.isnan(healthy)]
    if not len(own) or not len(healthy):
        return float("nan")
    # Subtracting the means leaves rounding errors of equal values.
    difference = own[:, None] - healthy
    difference[np.abs(difference) < 1e-9] = 0
    return float((np.sign(difference) / 2 + 0.5).mean())


def auc(blocks: Sequence[Planted], measure: str) -> float:
    values = shares(blocks, measure)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def d_prime(blocks: Sequence[Planted], measure: str) -> float:
    """Mean distance to the healthy blocks of the same model, in standard deviations pooled within models."""
    distances = [(b.own[measure].mean() - b.healthy[measure].mean()) for b in blocks if measure in b.own]
    healthy = {b.model: b.healthy[measure].ravel() for b in blocks if measure in b.own}
    freedom = sum(len(values) - 1 for values in healthy.values())
    if freedom < 1:
        return float("nan")
    variance = sum(float(((values - values.mean()) ** 2).sum()) for values in healthy.values()) / freedom
    # A measure that does not vary tells nothing.
    return float(np.mean(distances)) / variance**0.5 if variance > 0 else 0.0


@cache
def family_counts(families: int, draws: int = DRAWS, seed: int = 0) -> NDArray[np.int64]:
    """How often each family is drawn, `(d, f)`."""
    return np.random.default_rng(seed).multinomial(families, [1 / families] * families, size=draws)


def bootstrap(values: Floats, families: Sequence[int], draws: int = DRAWS) -> Floats:
    """Means of values, families drawn with replacement together with all their values; NaN is left out. `(d,)`."""
    known = ~np.isnan(values)
    _, index = np.unique(np.asarray(families)[known], return_inverse=True)
    if not len(index):
        return np.full(draws, np.nan)
    counts = family_counts(index.max() + 1, draws)
    return (counts @ np.bincount(index, weights=values[known])) / (counts @ np.bincount(index))


def interval(samples: Floats) -> tuple[float, float]:
    """Percentile interval of 95%."""
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)


def two_sided(samples: Floats) -> float:
    """Probability of 0 under the bootstrap, doubled."""
    beyond = min(int((samples <= 0).sum()), int((samples >= 0).sum()))
    return min(1.0, 2 * (beyond + 1) / (len(samples) + 1))


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p-values by Holm's method."""
    adjusted, highest = {}, 0.0
    for number, (name, p) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(values) - number) * p))
        adjusted[name] = highest
    return adjusted


def best_rival(blocks: Sequence[Planted], rivals: Iterable[str]) -> str:
    """Return the measure with the highest AUC; of equal ones, that with the larger d'."""
    return max(rivals, key=lambda name: (np.nan_to_num(auc(blocks, name), nan=-1.0), d_prime(blocks, name)))


def differences(blocks: Sequence[Planted], first: str, second: str) -> Floats:
    """AUC of one measure minus that of another, for each planted block."""
    return shares(blocks, first) - shares(blocks, second)


def ranks(values: Floats) -> Floats:
    """Ranks from 1; ties share their mean rank."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index]


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation; 0 if one of both does not vary."""
    a, b = ranks(x), ranks(y)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


def bootstrap_spearman(x: Floats, y: Floats, families: Sequence[int], draws: int = DRAWS) -> Floats:
    """Rank correlations, families drawn with replacement; memory grows with draws times values."""
    _, index = np.unique(np.asarray(families), return_inverse=True)
    weights = family_counts(index.max() + 1, draws)[:, index].astype(float)
    total = weights.sum(axis=1)

    def centered(values: Floats) -> Floats:
        """Ranks in each draw, minus their mean."""
        below = (values[:, None] < values) + (values[:, None] == values) / 2
        drawn = weights @ below
        return drawn - ((weights * drawn).sum(axis=1) / total)[:, None]

    a, b = centered(x), centered(y)
    covariance, *variances = ((weights * product).sum(axis=1) for product in (a * b, a * a, b * b))
    scale = np.sqrt(variances[0] * variances[1])
    return np.divide(covariance, scale, out=np.zeros(draws), where=scale > 1e-9)
