"""Draw the figure of a prune card: alpha and sparsity of every block."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.reports import PruneReport
from hf_farms_cards.figures.style import Palette, card_figure, depth_axis, draw_estimates, page, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BLOCKS", "dark_of", "draw_blocks"]

# Path of the figure, relative to the card.
BLOCKS = "figures/blocks.png"


def dark_of(name: str) -> str:
    """Return the file name of the dark version of a figure."""
    return f"{name.removesuffix('.png')}-dark.png"


def draw_blocks(report: PruneReport, path: Path, *, dark: bool = False) -> None:
    """Draw alpha of every block before and after pruning, with standard errors, above the sparsity of the block.

    Without spectra, draw only the sparsity. Writes a PNG file.
    """
    spectra = [
        (spectrum, label)
        for spectrum, label in ((report.before, "dense"), (report.after, "pruned"))
        if spectrum is not None and any(block.alpha is not None for block in spectrum.blocks)
    ]
    with page(dark=dark) as palette:
        figure = card_figure(4.6 if spectra else 2.2)
        shares = (3, 2) if spectra else (1,)
        panels = list(figure.subplots(len(shares), 1, sharex=True, height_ratios=shares, squeeze=False).flat)
        size = 5 if len(report.blocks) <= 40 else 3
        for (spectrum, label), color, marker in zip(spectra, (palette.first, palette.second), "os", strict=False):
            style = {"color": color, "marker": marker, "markersize": size, "linewidth": 1.3}
            estimates = [(block.alpha, block.alpha_stderr) for block in spectrum.blocks]
            # Shifted sideways, so that neither error bar hides the other.
            shift = 0.06 if label == "pruned" else -0.06
            draw_estimates(panels[0], [block.index + shift for block in spectrum.blocks], estimates, label, **style)
        if spectra:
            panels[0].set_ylabel("alpha ± standard error")
            panels[0].set_title("A larger alpha means a less trained block", fontsize="medium", loc="left")
            panels[0].legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
            depth_axis(panels[0], label=False, color=palette.grid)
        _draw_sparsity(panels[-1], report, palette)
        save_figure(figure, path)


def _draw_sparsity(axes: Axes, report: PruneReport, palette: Palette) -> None:
    """Draw bars from the sparsity of the model: upwards for blocks that are sparser, downwards for others."""
    total = 100 * report.sparsity
    heights = [100 * block.sparsity - total for block in report.blocks]
    index = [block.index for block in report.blocks]
    axes.bar(index, heights, bottom=total, color=palette.muted, width=0.7)
    axes.axhline(total, color=palette.text, linewidth=0.9)
    most = max((abs(height) for height in heights), default=0.0)
    # Equal blocks differ by single weights because of rounding; the axis must not magnify that.
    margin = 1.25 * most if most > 0.05 else 5.0
    axes.set_ylim(total - margin, total + margin)
    if most <= 0.05:
        axes.text(0.5, 0.62, "the same in every block", ha="center", transform=axes.transAxes, color=palette.muted)
    axes.set_ylabel("zeros (%)")
    depth_axis(axes, color=palette.grid)
