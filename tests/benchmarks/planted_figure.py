"""Forest plot of the planted models: AUC of FARMS and its rivals for each condition. Used by planted.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from planted_derived import DERIVED
from planted_models import DISGUISES, SUSPECTS
from planted_results import KINDS, Results, compact_measures, of_kind, select
from planted_statistics import auc, bootstrap, interval, shares

COLOURS = ("#0b5fa5", "#d95f02", "#1b9e77", "#7570b3", "#8c8c8c", "#a6761d", "#e7298a")
MARKERS = "osD^vPX"
LABELS = {"farms": "FARMS alpha", "whole mid": "alpha of whole matrices", "frobenius": "- Frobenius norm"}


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
            ticks.append(height)
            blocks = select(results.blocks, "test", [condition])
            names.append(f"{condition} (n = {len(blocks)})")
            for number, measure in enumerate(measures):
                values = shares(blocks, measure)
                if np.isnan(values).all():
                    continue
                y = height + 0.13 * (number - (len(measures) - 1) / 2)
                low, high = interval(bootstrap(values, [block.family for block in blocks]))
                axes.plot([low, high], [y, y], color=COLOURS[number], linewidth=1.2)
                axes.plot(auc(blocks, measure), y, MARKERS[number], color=COLOURS[number], markersize=4)
        height += 1.2
    for number, measure in enumerate(measures):
        label = LABELS.get(measure, measure)
        axes.plot([], [], MARKERS[number], color=COLOURS[number], linestyle="-", linewidth=1.2, label=label)
    axes.axvline(0.5, color="#666666", linewidth=0.8, linestyle="--")
    axes.set_yticks(ticks, names)
    axes.set(xlim=(-0.02, 1.02), ylim=(height - 0.5, -0.6), xlabel="AUC within a model, 95% interval over families")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
