"""What the figures of spectra share: colours, axes, error bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Estimate",
    "depth_axis",
    "draw_estimates",
    "new_figure",
    "or_nan",
    "role_styles",
    "save_figure",
    "shorten",
    "width_for",
]

# Attention in cool colours, the feed-forward network in warm ones, the same in the figures of every model.
ROLE_COLOURS = {
    **{"q": "#3366cc", "k": "#35a7c4", "v": "#2e8b57", "o": "#7d5ba6"},
    **{"gate": "#cc6633", "up": "#d4a72c", "down": "#b5395f"},
}
OTHER_COLOURS = ("#8c6d46", "#5f7f8f", "#c77fb5", "#7a9a3a", "#a05a4a", "#4f6fae")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GRID = "#e4e4e4"

# A value and its standard error.
Estimate = tuple[float | None, float | None]


def role_styles(found: Sequence[str]) -> dict[str, dict[str, str]]:
    """Colour and marker of each role: the standard roles in their usual order, then the others as they come."""
    others = [role for role in found if role not in ROLE_COLOURS]
    colours = {role: colour for role, colour in ROLE_COLOURS.items() if role in found}
    colours |= {role: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, role in enumerate(others)}
    return {
        role: {"color": colour, "marker": MARKERS[i % len(MARKERS)]} for i, (role, colour) in enumerate(colours.items())
    }


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    # The object interface, because pyplot keeps a global state and may look for a screen.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=120)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file, the same bytes for the same figure."""
    figure.savefig(path, metadata={"Software": None})


def width_for(blocks: int) -> float:
    """Inches for a figure with so many blocks side by side."""
    return min(16.0, max(6.0, 0.22 * blocks + 2))


def draw_estimates(axes: Axes, x: Sequence[int], estimates: Sequence[Estimate], label: str, **style: Any) -> None:
    """Points with error bars; a gap in the line where there is no value."""
    values = [or_nan(value) for value, _ in estimates]
    errors = [error or 0.0 for _, error in estimates]
    axes.errorbar(x, values, yerr=errors, label=label, elinewidth=0.9, capsize=1.5, **style)


def depth_axis(axes: Axes, *, grid: bool = True, label: bool = True) -> None:
    """Blocks along x."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if label:
        axes.set_xlabel("block (0 is nearest to the input)")
    if grid:
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)


def or_nan(value: float | None) -> float:
    """What matplotlib leaves out, for None."""
    return math.nan if value is None else value


def shorten(name: str, length: int = 44) -> str:
    """The end of a long name, because the end tells layers and models apart."""
    return name if len(name) <= length else f"…{name[1 - length :]}"
