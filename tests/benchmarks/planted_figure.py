"""Forest plot of the planted models: AUC of FARMS and its rivals for each condition. Used by planted.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from planted_conditions import DISGUISES, SUSPECTS
from planted_derived import DERIVED
from planted_results import KINDS, Results, compact_measures, label, of_kind, select
from planted_statistics import Planted, auc, bootstrap, interval, shares

COLORS = ("#0b5fa5", "#d95f02", "#1b9e77", "#7570b3", "#8c8c8c", "#a6761d", "#e7298a")
STYLES: list[dict[str, Any]] = [
    {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.2}
    for color, marker in zip(COLORS, "osD^vPX", strict=True)
]


def rows_of_figure() -> list[tuple[str, list[str]]]:
    """Headings and the conditions below them."""
    rows = [(f"defect: {kind}", of_kind(kind)) for kind in KINDS]
    return [
        *rows,
        ("trap: healthy, may look bad", [*SUSPECTS]),
        ("trap: bad, may look healthy", [*DISGUISES, *DERIVED]),
    ]


def draw(results: Results, path: Path) -> None:
    """Write the forest plot as the ending of `path` says."""
    measures = compact_measures(results)
    figure = Figure(figsize=(8.5, 10), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    height, ticks, names = 0.0, [], []
    for heading, conditions in rows_of_figure():
        axes.text(-0.01, height, heading, ha="right", va="center", weight="bold", transform=axes.get_yaxis_transform())
        for condition in conditions:
            height += 1
            blocks = select(results.blocks, "test", [condition])
            ticks.append(height)
            names.append(f"{condition} (n = {len(blocks)})")
            for number, measure in enumerate(measures):
                y = height + 0.13 * (number - (len(measures) - 1) / 2)
                draw_estimate(axes, blocks, measure, y, STYLES[number])
        height += 1.2
    for measure, style in zip(measures, STYLES, strict=False):
        axes.plot([], [], linestyle="-", label=label(measure).replace("`", ""), **style)
    axes.axvline(0.5, color="#666666", linewidth=0.8, linestyle="--")
    axes.set_yticks(ticks, names)
    axes.set(xlim=(-0.02, 1.02), ylim=(height - 0.5, -0.6), xlabel="AUC within a model, 95% interval over families")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def draw_estimate(axes: Axes, blocks: Sequence[Planted], measure: str, y: float, style: dict[str, Any]) -> None:
    values = shares(blocks, measure)
    if np.isnan(values).all():
        return
    ends = interval(bootstrap(values, [block.family for block in blocks]))
    axes.plot(ends, [y, y], color=style["color"], linewidth=style["linewidth"])
    axes.plot(auc(blocks, measure), y, **style)
