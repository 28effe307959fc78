"""Report -> figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_farms.reports import PruneReport, SpectralReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_blocks"]

BEFORE, AFTER, ZEROS = "#3366cc", "#cc6633", "#bbbbbb"


def draw_blocks(report: PruneReport, path: Path) -> None:
    """Alpha of every block before and after with its standard error, above the sparsity of the block; a PNG file."""
    # The object interface, because pyplot keeps a global state and may look for a screen.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 0.22 * len(report.blocks) + 2), 4.5), layout="constrained", dpi=120)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for spectra, label, colour in ((report.before, "before", BEFORE), (report.after, "after", AFTER)):
        if spectra is not None:
            _draw_alpha(top, spectra, label, colour)
    top.set_ylabel("alpha")
    top.set_title(f"{report.model}: a larger alpha means a less trained block", fontsize="medium")
    if top.get_legend_handles_labels()[0]:
        top.legend(frameon=False)
    index = [block.index for block in report.blocks]
    bottom.bar(index, [100 * block.sparsity for block in report.blocks], color=ZEROS)
    bottom.axhline(100 * report.sparsity, color="black", linewidth=0.8, linestyle="--")
    bottom.set_ylabel("zeros (%)")
    bottom.set_xlabel("block")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, metadata={"Software": None})


def _draw_alpha(axes: Axes, spectra: SpectralReport, label: str, colour: str) -> None:
    blocks: list[Any] = [block for block in spectra.blocks if block.alpha is not None]
    errors = [block.alpha_stderr or 0.0 for block in blocks]
    axes.errorbar(
        [b.index for b in blocks],
        [b.alpha for b in blocks],
        yerr=errors,
        label=label,
        color=colour,
        marker="o",
        markersize=4,
        linewidth=1.2,
        capsize=2,
    )
