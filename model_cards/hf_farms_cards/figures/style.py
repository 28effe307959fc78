"""Colors, figure sizes, axes and error bars shared by all figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_farms.files.atomic_writes import replacing
from hf_farms.files.path_checks import FIGURE_SOFTWARE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CARD_WIDTH",
    "LIGHT",
    "Estimate",
    "Palette",
    "card_figure",
    "depth_axis",
    "draw_estimates",
    "or_nan",
    "page",
    "role_styles",
    "save_figure",
    "shorten",
]

# Cool colors for attention, warm colors for the feed-forward network; the same for every model.
ROLE_COLORS = {
    **{"q": "#3366cc", "k": "#35a7c4", "v": "#2e8b57", "o": "#7d5ba6"},
    **{"gate": "#cc6633", "up": "#d4a72c", "down": "#b5395f"},
}
OTHER_COLORS = ("#8c6d46", "#5f7f8f", "#c77fb5", "#7a9a3a", "#a05a4a", "#4f6fae")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GRID = "#e4e4e4"

# Width of a card figure in inches. At the resolution of `card_figure` it has twice the pixels of a column on the Hub,
# and text of the same size.
CARD_WIDTH = 8.0


@dataclass(frozen=True)
class Palette:
    """Colors of a figure on a light or dark page.

    Attributes:
        page: background.
        text: text and axes.
        grid: grid lines.
        muted: secondary elements.
        first: first series, or values before pruning.
        second: second series, or values after pruning.
        heat: name of a color map; its strong end means less trained.
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


def role_styles(roles: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return color and marker of each role: standard roles first, in their usual order."""
    others = [role for role in roles if role not in ROLE_COLORS]
    colors = {role: color for role, color in ROLE_COLORS.items() if role in roles}
    colors |= {role: OTHER_COLORS[i % len(OTHER_COLORS)] for i, role in enumerate(others)}
    return {
        role: {"color": color, "marker": MARKERS[i % len(MARKERS)]} for i, (role, color) in enumerate(colors.items())
    }


@contextmanager
def page(*, dark: bool) -> Iterator[Palette]:
    """Use the colors of a light or dark page within the context."""
    import matplotlib as mpl

    palette = DARK if dark else LIGHT
    options: dict[Any, Any] = {"grid.color": palette.grid, "font.size": 10.0, "axes.axisbelow": True}
    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    options |= dict.fromkeys(inks, palette.text)
    options |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), palette.page)
    with mpl.rc_context(options):
        yield palette


def card_figure(height: float) -> Figure:
    """Create an empty figure with the width of a card; height in inches."""
    # Not pyplot, which has global state and may look for a display.
    from matplotlib.figure import Figure

    return Figure(figsize=(CARD_WIDTH, height), layout="constrained", dpi=200)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file atomically; equal figures give equal bytes."""
    with replacing(Path(path)) as unfinished:
        figure.savefig(unfinished, format="png", metadata={"Software": FIGURE_SOFTWARE})


def draw_estimates(axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], label: str, **style: Any) -> None:
    """Draw points with error bars; missing values leave gaps in the line."""
    values = [or_nan(value) for value, _ in estimates]
    errors = [error or 0.0 for _, error in estimates]
    axes.errorbar(x, values, yerr=errors, label=label, elinewidth=0.9, capsize=1.5, **style)


def depth_axis(axes: Axes, *, grid: bool = True, label: bool = True, color: str = GRID) -> None:
    """Label the x axis as block index, with a grid."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if label:
        axes.set_xlabel("block (0 is nearest to the input)")
    if grid:
        axes.grid(axis="y", color=color, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)


def or_nan(value: float | None) -> float:
    """Replace None by NaN, which matplotlib does not draw."""
    return math.nan if value is None else value


def shorten(name: str, length: int = 44) -> str:
    """Shorten a long name to its end, where names of layers and models differ."""
    return name if len(name) <= length else f"…{name[1 - length :]}"
