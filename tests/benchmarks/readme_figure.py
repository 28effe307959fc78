"""Draw the figure of README and the home page: alpha of every block of both demo models, for light and dark pages.

python tests/benchmarks/readme_figure.py docs/images
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_farms_cards.figures.style import card_figure, depth_axis, draw_estimates, page, save_figure

from hf_farms import SpectralReport, analyze_checkpoint


def draw(demo: SpectralReport, healthy: SpectralReport, path: Path, *, dark: bool) -> None:
    """Draw both reports into one PNG file; blocks that stand out are named."""
    with page(dark=dark) as palette:
        figure = card_figure(3.1)
        axes = figure.subplots()
        line = {"markersize": 6, "linewidth": 1.5}
        for report, label, color, marker in (
            (healthy, "healthy twin", palette.first, "s"),
            (demo, "blocks 3 and 5 inserted late", palette.second, "o"),
        ):
            estimates = [(block.alpha, block.alpha_stderr) for block in report.blocks]
            index = [block.index for block in report.blocks]
            draw_estimates(axes, index, estimates, label, color=color, marker=marker, **line)
        assert demo.standing_out is not None
        for block in demo.standing_out.blocks:
            alpha = demo.blocks[block.index].alpha
            assert alpha is not None
            offset, style = (0, 9), {"ha": "center", "color": palette.second, "weight": "bold"}
            axes.annotate(f"block {block.index}", (block.index, alpha), offset, textcoords="offset points", **style)
        axes.set_ylim(top=axes.get_ylim()[1] + 0.06)
        axes.set_ylabel("alpha ± standard error")
        axes.set_title("A larger alpha means a less trained block", fontsize="medium", loc="left")
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
        depth_axis(axes, color=palette.grid)
        save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    demo, healthy = analyze_checkpoint("demo"), analyze_checkpoint("demo-healthy")
    for name, dark in (("alpha-light.png", False), ("alpha-dark.png", True)):
        draw(demo, healthy, folder / name, dark=dark)
        print(folder / name)


if __name__ == "__main__":
    main()
