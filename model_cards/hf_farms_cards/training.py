"""History of layer-wise learning rates -> figure and a section for the model card."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_farms.config import FarmsLRConfig
from hf_farms_cards.style import depth_axis, draw_estimates, new_figure, or_nan, save_figure, width_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["training_figure", "write_training_history"]

FIGURE, SECTION = "figures/farms_lr.png", "farms_lr.md"
FIRST, LAST = "#9db7e4", "#3366cc"
QUANTITIES = {
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "both": "learning rate and weight decay",
    "constant_decay": "learning rate, its product with weight decay kept",
}

# A line of the history: step, epoch, seconds, blocks with name, alpha, alpha_stderr and factor.
Line = dict[str, Any]


def write_training_history(history: list[Line], config: FarmsLRConfig, folder: Path) -> None:
    """Write `figures/farms_lr.png` and `farms_lr.md` into an output folder."""
    if not history:
        return
    (folder / FIGURE).parent.mkdir(parents=True, exist_ok=True)
    save_figure(training_figure(history, QUANTITIES[config.quantity]), folder / FIGURE)
    (folder / SECTION).write_text(_section(history, config), encoding="utf-8")


def training_figure(history: list[Line], quantity: str) -> Figure:
    """Alpha of every block over steps as a heat map, above the factors of the first and the last measurement.

    Args:
        history: the measurements, at least one.
        quantity: in words, what the factors are on.
    """
    names = [block["name"] for block in history[-1]["blocks"]]
    alphas = [[or_nan(block["alpha"]) for block in line["blocks"]] for line in history]
    figure = new_figure(width_for(len(names)) + 1, 6.0)
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 2))
    image = top.imshow(alphas, cmap="YlOrRd", aspect="auto", interpolation="none", origin="lower")
    figure.colorbar(image, ax=top, pad=0.02).set_label("alpha")
    shown = sorted({round(i * (len(history) - 1) / 5) for i in range(6)})
    top.set_yticks(shown, [str(history[i]["step"]) for i in shown])
    top.set_ylabel("step")
    top.set_title("The darker, the less trained", fontsize="medium")
    depth_axis(top, grid=False, label=False)
    index = list(range(len(names)))
    for line, colour in ((history[0], FIRST), (history[-1], LAST)):
        factors = [(block["factor"], None) for block in line["blocks"]]
        style = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 1.2}
        draw_estimates(bottom, index, factors, f"step {line['step']}", **style)
    bottom.axhline(1, color="black", linewidth=0.8)
    bottom.set_ylabel(f"factor on the {quantity.partition(',')[0]}")
    bottom.legend(frameon=False, fontsize="small")
    depth_axis(bottom)
    return figure


def _section(history: list[Line], config: FarmsLRConfig) -> str:
    last = history[-1]
    rows = [
        f"| {block['name']} | {_number(block['alpha'])} | {_number(block['alpha_stderr'])} | {block['factor']:.3f} |"
        for block in last["blocks"]
    ]
    seconds = math.fsum(line["seconds"] for line in history)
    scales = "" if config.map in ("sqrt", "log2") else f", scales {config.min_scale:g} to {config.max_scale:g}"
    if any(block["factor"] != 1 for line in history for block in line["blocks"]):
        what = (
            f"{config.unit}s with a lighter tail of the weight spectrum (larger alpha, less trained) got a larger "
            f"factor on the {QUANTITIES[config.quantity]}"
        )
    else:
        what = "no block's alpha differed from the others' by more than chance, so that all factors stayed at 1"
    return "\n".join(
        [
            "## Layer-wise learning rates",
            "",
            f"Trained with `FarmsLRCallback` (map {config.map}, unit {config.unit}{scales}): {what}. "
            f"{len(history)} measurements in {seconds:.1f} s; the last, at step {last['step']}:",
            "",
            "| block | alpha | ± standard error | factor |",
            "|---|---|---|---|",
            *rows,
            "",
            f"![Alpha over steps, factor over depth]({FIGURE})",
            "",
            "[TempBalance](https://arxiv.org/abs/2312.00359), [FARMS](https://arxiv.org/abs/2506.06280), by hf-farms.",
            "",
        ]
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
