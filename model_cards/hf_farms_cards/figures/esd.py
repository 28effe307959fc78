"""Draw the empirical spectral density (ESD) of single layers, with the power law fitted to its tail."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_farms_cards.figures.style import LIGHT, card_figure, page, save_figure, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["EsdCurve", "draw_esd", "esd_figure"]

# Share of smallest eigenvalues that is not drawn: they spread over several decades and would shrink the tail.
HIDDEN_SHARE = 0.02


@dataclass(frozen=True)
class EsdCurve:
    """Spectrum of one layer, and the power law fitted to its tail.

    Attributes:
        name: name of the layer.
        eigenvalues: ascending, including zeros.
        alpha: exponent of the power law; None without a fit.
        tail_min: smallest eigenvalue of the tail; None without a single tail.
    """

    name: str
    eigenvalues: Sequence[float]
    alpha: float | None
    tail_min: float | None


def draw_esd(curves: Sequence[EsdCurve], path: Path) -> None:
    """Draw the spectral density of each layer in its own panel, with the fitted power law, on logarithmic axes."""
    with page(dark=False):
        save_figure(esd_figure(curves), path)


def esd_figure(curves: Sequence[EsdCurve]) -> Figure:
    """Return the figure of `draw_esd`. The panels share their axes, so that slopes are comparable."""
    if not curves:
        raise ValueError("curves must contain at least one curve, got none.")
    columns = min(len(curves), 3)
    rows = -(-len(curves) // columns)
    figure = card_figure(1.0 + 3.5 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    densities = [d for axes, curve in zip(panels, curves, strict=False) for d in _draw_spectrum(axes, curve) if d > 0]
    if densities:
        panels[0].set(xscale="log", yscale="log", ylim=(min(densities) / 3, max(densities) * 3))
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    figure.suptitle("The steeper the tail (larger alpha), the less trained the layer", fontsize="medium")
    figure.supxlabel(f"eigenvalue of WᵀW (without the smallest {HIDDEN_SHARE:.0%})", fontsize="medium")
    figure.supylabel("density", fontsize="medium")
    return figure


def _draw_spectrum(axes: Axes, curve: EsdCurve) -> list[float]:
    """Draw one panel; return the heights of its bars."""
    axes.set_title(shorten(curve.name, 34), fontsize="small")
    axes.tick_params(labelsize="small", labelbottom=True, labelleft=True)
    zeros = bisect_right(curve.eigenvalues, 0.0)
    left_out = f"{zeros} zero eigenvalues left out" if zeros else None
    values = curve.eigenvalues[zeros:]
    if not values or values[0] == values[-1]:
        text = "no two different eigenvalues" + (f"\n{left_out}" if left_out else "")
        axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes, fontsize="small")
        return []
    edges, density = _log_histogram(values)
    axes.stairs(density, edges, fill=True, color=LIGHT.first, alpha=0.55, label="eigenvalues")
    if curve.alpha is not None and curve.tail_min is not None:
        share = (len(values) - bisect_left(values, curve.tail_min)) / len(values)
        x = [curve.tail_min, values[-1]]
        # Density of the power law, scaled by the share of eigenvalues in the tail.
        y = [share * (curve.alpha - 1) / curve.tail_min * (value / curve.tail_min) ** -curve.alpha for value in x]
        axes.plot(x, y, color=LIGHT.second, linewidth=2.0, label=f"power law, alpha {curve.alpha:.2f}")
        axes.axvline(curve.tail_min, color=LIGHT.text, linewidth=0.8, linestyle="--", label=f"tail: {share:.0%} above")
    elif curve.alpha is not None:
        axes.plot([], [], " ", label=f"alpha {curve.alpha:.2f}, a mean of several fits")
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.1)}
    axes.legend(frameon=False, fontsize="small", title=left_out, title_fontsize="small", **place)
    return density


def _log_histogram(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return bin edges with equal logarithmic widths, and the density in each bin."""
    bins = min(100, max(10, round(2 * len(values) ** (1 / 3))))
    first = int(HIDDEN_SHARE * len(values))
    # If only equal values remain, keep all values.
    first = first if values[first] < values[-1] else 0
    low, high = math.log(values[first]), math.log(values[-1])
    edges = [math.exp(low + (high - low) * i / bins) for i in range(bins + 1)]
    below = [first, *(bisect_left(values, edge) for edge in edges[1:-1]), len(values)]
    counts = [after - before for before, after in pairwise(below)]
    widths = [after - before for before, after in pairwise(edges)]
    return edges, [count / width / len(values) for count, width in zip(counts, widths, strict=True)]
