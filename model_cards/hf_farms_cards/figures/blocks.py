"""Report of a pruned model -> figure of its card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.reports import PruneReport
from hf_farms_cards.figures.style import Palette, card_figure, depth_axis, draw_estimates, page, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["AFTER", "BEFORE", "BLOCKS", "ZEROS", "dark_of", "draw_blocks"]

BEFORE, AFTER, ZEROS = "#3366cc", "#cc6633", "#bbbbbb"
# Where the figure lies, relative to the card.
BLOCKS = "figures/blocks.png"


def dark_of(name: str) -> str:
    """Name of the same figure for dark pages."""
    return f"{name.removesuffix('.png')}-dark.png"


def draw_blocks(report: PruneReport, path: Path, *, dark: bool = False) -> None:
    """Alpha of every block before and after with its standard error, above the sparsity of the block; a PNG file.

    Without spectra there is the sparsity alone.
    """
    spectra = [
        (found, label)
        for found, label in ((report.before, "dense"), (report.after, "pruned"))
        if found is not None and any(block.alpha is not None for block in found.blocks)
    ]
    with page(dark=dark) as palette:
        figure = card_figure(4.6 if spectra else 2.2)
        shares = (3, 2) if spectra else (1,)
        panels = list(figure.subplots(len(shares), 1, sharex=True, height_ratios=shares, squeeze=False).flat)
        size = 5 if len(report.blocks) <= 40 else 3
        for (found, label), colour, marker in zip(spectra, (palette.first, palette.second), "os", strict=False):
            style = {"color": colour, "marker": marker, "markersize": size, "linewidth": 1.3}
            estimates = [(block.alpha, block.alpha_stderr) for block in found.blocks]
            # Side by side, so that neither error bar hides the other.
            aside = 0.06 if label == "pruned" else -0.06
            draw_estimates(panels[0], [block.index + aside for block in found.blocks], estimates, label, **style)
        if spectra:
            panels[0].set_ylabel("alpha ± standard error")
            panels[0].set_title("A larger alpha means a less trained block", fontsize="medium", loc="left")
            panels[0].legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
            depth_axis(panels[0], label=False, colour=palette.grid)
        _draw_sparsity(panels[-1], report, palette)
        save_figure(figure, path)


def _draw_sparsity(axes: Axes, report: PruneReport, palette: Palette) -> None:
    """Bars from the sparsity of the whole: upwards where a block lost more, downwards where it lost less."""
    whole = 100 * report.sparsity
    heights = [100 * block.sparsity - whole for block in report.blocks]
    index = [block.index for block in report.blocks]
    axes.bar(index, heights, bottom=whole, color=palette.muted, width=0.7)
    axes.axhline(whole, color=palette.text, linewidth=0.9)
    most = max((abs(height) for height in heights), default=0.0)
    # Where all blocks are alike, counting leaves differences of a single weight, which no axis should blow up.
    room = 1.25 * most if most > 0.05 else 5.0
    axes.set_ylim(whole - room, whole + room)
    if most <= 0.05:
        axes.text(0.5, 0.62, "the same in every block", ha="center", transform=axes.transAxes, color=palette.muted)
    axes.set_ylabel("zeros (%)")
    depth_axis(axes, colour=palette.grid)
