"""Single spectra -> figure: the empirical spectral density (ESD) and the power law of its tail."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms_cards.figures.blocks import AFTER, BEFORE
from hf_farms_cards.figures.style import new_figure, save_figure, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["EsdCurve", "draw_esd", "esd_figure"]

# The smallest eigenvalues of a square window spread over several decades, beside which the tail would look tiny.
NOT_SHOWN = 0.02


@dataclass(frozen=True)
class EsdCurve:
    """The spectrum of one layer, and the power law that was fitted to its tail.

    Attributes:
        name: of the layer.
        eigenvalues: ascending, zeros included.
        alpha: exponent of the power law; None where nothing was fitted.
        tail_min: the eigenvalue at which the tail starts; None where there is no single tail.
    """

    name: str
    eigenvalues: Sequence[float]
    alpha: float | None
    tail_min: float | None


def draw_esd(curves: Sequence[EsdCurve], path: Path) -> None:
    """The spectral density of each layer in a panel of its own, with the fitted power law; both axes logarithmic."""
    save_figure(esd_figure(curves), path)


def esd_figure(curves: Sequence[EsdCurve]) -> Figure:
    """The figure of `draw_esd`. The panels share their axes, so that slopes can be compared."""
    if not curves:
        raise ValueError("curves must be at least one, got none.")
    columns = min(len(curves), 3)
    rows = -(-len(curves) // columns)
    figure = new_figure(max(6.0, 4.4 * columns), 1.0 + 3.3 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    shown = [d for axes, curve in zip(panels, curves, strict=False) for d in _draw_spectrum(axes, curve) if d > 0]
    if shown:
        panels[0].set(xscale="log", yscale="log", ylim=(min(shown) / 3, max(shown) * 3))
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    figure.suptitle("The steeper the tail (larger alpha), the less trained the layer", fontsize="medium")
    figure.supxlabel(f"eigenvalue of WᵀW (without the smallest {NOT_SHOWN:.0%})", fontsize="medium")
    figure.supylabel("density", fontsize="medium")
    return figure


def _draw_spectrum(axes: Axes, curve: EsdCurve) -> list[float]:
    """One panel; returns the heights of its bars."""
    axes.set_title(shorten(curve.name), fontsize="small")
    axes.tick_params(labelsize="small", labelbottom=True, labelleft=True)
    zeros = bisect_right(curve.eigenvalues, 0.0)
    left_out = f"{zeros} zero eigenvalues left out" if zeros else None
    values = curve.eigenvalues[zeros:]
    if not values or values[0] == values[-1]:
        text = "no two different eigenvalues" + (f"\n{left_out}" if left_out else "")
        axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes, fontsize="small")
        return []
    edges, density = _log_histogram(values)
    axes.stairs(density, edges, fill=True, color=BEFORE, alpha=0.55, label="eigenvalues")
    if curve.alpha is not None and curve.tail_min is not None:
        share = (len(values) - bisect_left(values, curve.tail_min)) / len(values)
        x = [curve.tail_min, values[-1]]
        # The density of the law, of which the tail has its share.
        y = [share * (curve.alpha - 1) / curve.tail_min * (at / curve.tail_min) ** -curve.alpha for at in x]
        axes.plot(x, y, color=AFTER, linewidth=2.0, label=f"power law, alpha {curve.alpha:.2f}")
        axes.axvline(curve.tail_min, color="black", linewidth=0.8, linestyle="--", label=f"tail: {share:.0%} above")
    elif curve.alpha is not None:
        axes.plot([], [], " ", label=f"alpha {curve.alpha:.2f}, a mean of several fits")
    # On white, because the start of the tail may run through it.
    box = {"framealpha": 1.0, "edgecolor": "none"}
    axes.legend(fontsize="small", title=left_out, title_fontsize="small", loc="upper right", **box)
    return density


def _log_histogram(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Edges of bins of equal width in the logarithm, and the share of all values in each divided by its width."""
    bins = min(100, max(10, round(2 * len(values) ** (1 / 3))))
    first = int(NOT_SHOWN * len(values))
    # A spectrum that starts where it ends has no logarithmic width.
    first = first if values[first] < values[-1] else 0
    low, high = math.log(values[first]), math.log(values[-1])
    edges = [math.exp(low + (high - low) * i / bins) for i in range(bins + 1)]
    below = [first, *(bisect_left(values, edge) for edge in edges[1:-1]), len(values)]
    counts = [after - before for before, after in pairwise(below)]
    widths = [after - before for before, after in pairwise(edges)]
    return edges, [count / width / len(values) for count, width in zip(counts, widths, strict=True)]
