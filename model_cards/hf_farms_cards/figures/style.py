"""What the figures of spectra share: colours, axes, error bars."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_farms.files.atomic_writes import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CARD_WIDTH",
    "Estimate",
    "Palette",
    "card_figure",
    "depth_axis",
    "draw_estimates",
    "new_figure",
    "or_nan",
    "page",
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

# Inches of a figure in a card. With the resolution of `card_figure` twice the pixels of the Hub's column, and letters
# of the size of its text.
CARD_WIDTH = 8.0


@dataclass(frozen=True)
class Palette:
    """Colours of a figure on a light or on a dark page.

    Attributes:
        page: background.
        text: letters and axes.
        grid: lines behind the values.
        muted: what is of second rank.
        first: what was there before, or first.
        second: what came out.
        heat: name of a colour map, whose strong end means little trained.
    """

    page: str
    text: str
    grid: str
    muted: str
    first: str
    second: str
    heat: str


LIGHT = Palette(
    page="#ffffff", text="#1f2328", grid="#e4e4e4", muted="#6e7781", first="#2a62c9", second="#c8560f", heat="YlOrRd"
)
# The background of the Hub's dark pages.
DARK = Palette(
    page="#0b0f19", text="#d8dee6", grid="#2a303c", muted="#9aa4b2", first="#79a8ff", second="#ffa05c", heat="plasma"
)

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


@contextmanager
def page(*, dark: bool) -> Iterator[Palette]:
    """The colours of a light or a dark page, for everything that is drawn and saved inside."""
    import matplotlib as mpl

    palette = DARK if dark else LIGHT
    options: dict[Any, Any] = {"grid.color": palette.grid, "font.size": 10.0, "axes.axisbelow": True}
    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    options |= dict.fromkeys(inks, palette.text)
    options |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), palette.page)
    with mpl.rc_context(options):
        yield palette


def card_figure(height: float) -> Figure:
    """An empty figure as wide as a card, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(CARD_WIDTH, height), layout="constrained", dpi=200)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file, the same bytes for the same figure; it is complete or not there."""
    with replacing(Path(path)) as unfinished:
        figure.savefig(unfinished, format="png", metadata={"Software": None})


def width_for(blocks: int) -> float:
    """Inches for a figure with so many blocks side by side."""
    return min(16.0, max(6.0, 0.22 * blocks + 2))


def draw_estimates(axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], label: str, **style: Any) -> None:
    """Points with error bars; a gap in the line where there is no value."""
    values = [or_nan(value) for value, _ in estimates]
    errors = [error or 0.0 for _, error in estimates]
    axes.errorbar(x, values, yerr=errors, label=label, elinewidth=0.9, capsize=1.5, **style)


def depth_axis(axes: Axes, *, grid: bool = True, label: bool = True, colour: str = GRID) -> None:
    """Blocks along x."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if label:
        axes.set_xlabel("block (0 is nearest to the input)")
    if grid:
        axes.grid(axis="y", color=colour, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)


def or_nan(value: float | None) -> float:
    """What matplotlib leaves out, for None."""
    return math.nan if value is None else value


def shorten(name: str, length: int = 44) -> str:
    """The end of a long name, because the end tells layers and models apart."""
    return name if len(name) <= length else f"…{name[1 - length :]}"
