"""Draw spectral reports: alpha over depth, alpha by block and role, comparison of two models.

Spectra of single layers are in esd.py. Each figure has a function `..._figure`, which returns it, and `draw_...`, which
writes it as a PNG file.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_farms.reports import BlockSpectrum, SpectralReport
from hf_farms.reports.comparison import SpectralComparison
from hf_farms_cards.figures.esd import EsdCurve, draw_esd, esd_figure
from hf_farms_cards.figures.style import (
    LIGHT,
    Estimate,
    card_figure,
    depth_axis,
    draw_estimates,
    or_nan,
    page,
    role_styles,
    save_figure,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "EsdCurve",
    "alpha_figure",
    "comparison_figure",
    "draw_alpha_by_depth",
    "draw_comparison",
    "draw_esd",
    "draw_heat_map",
    "esd_figure",
    "heat_map_figure",
]

# Maximum number of blocks with numbers in the cells of the heat map.
ANNOTATED_BLOCKS = 16


def draw_alpha_by_depth(report: SpectralReport, path: Path) -> None:
    """Draw alpha over depth: a line with error bars for each role, and a bold one for the block score."""
    with page(dark=False):
        save_figure(alpha_figure(report), path)


def draw_heat_map(report: SpectralReport, path: Path) -> None:
    """Draw alpha of every block and role as a heat map; hatched cells have no such layer."""
    with page(dark=False):
        save_figure(heat_map_figure(report), path)


def draw_comparison(comparison: SpectralComparison, path: Path) -> None:
    """Draw alpha of the blocks of two models over depth, above their difference, with standard errors."""
    with page(dark=False):
        save_figure(comparison_figure(comparison), path)


def alpha_figure(report: SpectralReport) -> Figure:
    """Return the figure of `draw_alpha_by_depth`."""
    index = [block.index for block in report.blocks]
    means = [_role_means(block) for block in report.blocks]
    figure = card_figure(4.6)
    axes = figure.subplots()
    for role, style in _styles(means).items():
        estimates = [block.get(role, (None, None)) for block in means]
        draw_estimates(axes, index, estimates, shorten(role, 24), markersize=3.5, linewidth=1.0, **style)
    score = [(block.alpha, block.alpha_stderr) for block in report.blocks]
    draw_estimates(
        axes, index, score, "block score", color=LIGHT.text, marker="o", markersize=4, linewidth=2.6, zorder=4
    )
    axes.set_ylabel("alpha")
    axes.set_title(f"{shorten(report.model)}: a larger alpha means a less trained layer", fontsize="medium", loc="left")
    depth_axis(axes, color=LIGHT.grid)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    return figure


def heat_map_figure(report: SpectralReport) -> Figure:
    """Return the figure of `draw_heat_map`."""
    means = [_role_means(block) for block in report.blocks]
    roles = list(_styles(means))
    rows = [[or_nan(block.get(role, (None, None))[0]) for block in means] for role in roles]
    known = sorted(alpha for row in rows for alpha in row if math.isfinite(alpha))
    # Clip 2% at each end, so that a few extreme layers do not dominate the colors; the color bar shows the clipping.
    clipped = max(1, len(known) // 50) if len(known) >= 20 else 0
    low, high = (known[clipped], known[-1 - clipped]) if known else (0.0, 1.0)
    figure = card_figure(1.5 + 0.36 * max(3, len(roles)))
    axes = figure.subplots()
    axes.patch.set(facecolor="#f2f2f2", hatch="////", edgecolor=LIGHT.muted)
    image = axes.imshow(rows or [[math.nan]], cmap=LIGHT.heat, vmin=low, vmax=high, aspect="auto", interpolation="none")
    bar = figure.colorbar(image, ax=axes, extend="both" if clipped else "neither", pad=0.02)
    bar.set_label("alpha")
    bar.outline.set_visible(False)
    axes.set_yticks(range(len(roles)), [shorten(role, 24) for role in roles])
    if len(means) <= ANNOTATED_BLOCKS:
        _write_numbers(axes, rows, dark=low + 0.6 * (high - low))
    missing = "; hatched: no such layer" if len(known) < len(roles) * len(means) else ""
    axes.set_title(f"{shorten(report.model)}: the darker, the less trained{missing}", fontsize="medium", loc="left")
    depth_axis(axes, grid=False)
    return figure


def comparison_figure(comparison: SpectralComparison) -> Figure:
    """Return the figure of `draw_comparison`."""
    blocks = comparison.blocks
    index = [block.index for block in blocks]
    figure = card_figure(5.4)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    line = {"markersize": 4, "linewidth": 1.2}
    first = [(block.alpha.first, block.alpha.first_stderr) for block in blocks]
    second = [(block.alpha.second, block.alpha.second_stderr) for block in blocks]
    draw_estimates(top, index, first, f"first: {shorten(comparison.first)}", color=LIGHT.first, marker="o", **line)
    draw_estimates(top, index, second, f"second: {shorten(comparison.second)}", color=LIGHT.second, marker="s", **line)
    top.set_ylabel("alpha")
    top.set_title("A larger alpha means a less trained block", fontsize="medium", loc="left")
    bottom.axhline(0, color=LIGHT.text, linewidth=0.8)
    for clear, color, label in (
        (False, LIGHT.muted, "within two errors of 0"),
        (True, LIGHT.text, "beyond two errors"),
    ):
        chosen = [block for block in blocks if (block.alpha.beyond_two_errors is True) == clear]
        differences = [(block.alpha.difference, block.alpha.stderr) for block in chosen]
        style = {"color": color, "marker": "o", "markersize": 4, "linestyle": "none"}
        draw_estimates(bottom, [block.index for block in chosen], differences, label, **style)
    bottom.set_ylabel("second − first")
    bottom.set_title(
        "Where the difference is above 0, the second model is the less trained", fontsize="medium", loc="left"
    )
    for axes in (top, bottom):
        # Below the points: beside the title there is no room for the names of two models.
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.32 if axes is bottom else -0.1)}
        axes.legend(frameon=False, fontsize="small", ncols=2, **place)
        depth_axis(axes, label=axes is bottom, color=LIGHT.grid)
    return figure


def _write_numbers(axes: Axes, rows: Sequence[Sequence[float]], *, dark: float) -> None:
    for y, row in enumerate(rows):
        for x, alpha in enumerate(row):
            if math.isfinite(alpha):
                color = "white" if alpha > dark else "black"
                axes.text(x, y, f"{alpha:.2f}", ha="center", va="center", fontsize="x-small", color=color)


def _role_means(block: BlockSpectrum) -> dict[str, Estimate]:
    """Average the alphas of each role, with standard errors; a layer without an error counts as exact."""
    grouped: dict[str, list[tuple[float, float | None]]] = defaultdict(list)
    for layer in block.layers:
        if layer.alpha is not None:
            grouped[layer.role].append((layer.alpha, layer.alpha_stderr))
    means: dict[str, Estimate] = {}
    for role, estimates in grouped.items():
        errors = [error for _, error in estimates if error is not None]
        mean = math.fsum(alpha for alpha, _ in estimates) / len(estimates)
        means[role] = mean, math.hypot(*errors) / len(estimates) if errors else None
    return means


def _styles(blocks: Sequence[dict[str, Estimate]]) -> dict[str, dict[str, str]]:
    return role_styles(list(dict.fromkeys(role for block in blocks for role in block)))
