"""Draw the figures of a training card, and write the section on learning rates into an output folder."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_farms.config import FarmsLRConfig
from hf_farms.files.atomic_writes import write_text
from hf_farms.files.path_checks import check_within
from hf_farms.registries import LR_MAPS
from hf_farms.reports.lr_history import LRHistoryEntry
from hf_farms.reports.training import FarmsLRRecord, S2FTRecord
from hf_farms_cards.figures.blocks import dark_of
from hf_farms_cards.figures.style import (
    Palette,
    card_figure,
    depth_axis,
    draw_estimates,
    or_nan,
    page,
    role_styles,
    save_figure,
)
from hf_farms_cards.markdown import environment

__all__ = [
    "LR",
    "QUANTITIES",
    "SELECTION",
    "draw_selection",
    "draw_training",
    "selected_by_block",
    "write_training_history",
]

LR, SELECTION, SECTION = "figures/farms_lr.png", "figures/s2ft.png", "farms_lr.md"
QUANTITIES = {
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "both": "learning rate and weight decay",
    "constant_decay": "learning rate, its product with weight decay kept",
}


def write_training_history(entries: Sequence[LRHistoryEntry], config: FarmsLRConfig, folder: Path) -> None:
    """Write `farms_lr.md` and its figure, in a light and a dark version, into an output folder."""
    if not entries:
        return
    record = FarmsLRRecord.from_history(entries, config)
    check_within(folder, [LR, dark_of(LR), SECTION])
    (folder / LR).parent.mkdir(parents=True, exist_ok=True)
    draw_training(record, folder / LR)
    draw_training(record, folder / dark_of(LR), dark=True)
    text = environment().get_template("farms_lr.md.j2").render(**section(record), figure=(LR, dark_of(LR)))
    write_text(folder / SECTION, text)


def section(record: FarmsLRRecord) -> dict[str, Any]:
    """Return the template values of the section on learning rates; needs at least one measurement."""
    config, last = record.config, record.measurements[-1]
    moved = any(block.factor != 1 for line in record.measurements for block in line.blocks)
    return {
        "rates": record,
        "moved": moved,
        "monitored": config is not None and config.monitor,
        "quantity": QUANTITIES[config.quantity] if config else QUANTITIES["lr"],
        "map": LR_MAPS[config.map].describe(config) if config and not config.monitor else None,
        "last": last,
        "first_blocks": {block.name: block for block in record.measurements[0].blocks},
        "seconds": f"{math.fsum(line.seconds for line in record.measurements):.1f}",
    }


def draw_training(record: FarmsLRRecord, path: Path, *, dark: bool = False) -> None:
    """Draw alpha over blocks and steps as a heat map, above the factors of the first and last measurement."""
    history = record.measurements
    quantity = QUANTITIES[record.config.quantity] if record.config else QUANTITIES["lr"]
    names = [block.name for block in history[-1].blocks]
    alphas = [[or_nan(block.alpha) for block in line.blocks] for line in history]
    with page(dark=dark) as palette:
        figure = card_figure(5.4)
        top, bottom = figure.subplots(2, 1, height_ratios=(3, 2))
        # Background of cells without alpha.
        top.patch.set(hatch="////", edgecolor=palette.grid)
        image = top.imshow(alphas, cmap=palette.heat, aspect="auto", interpolation="none", origin="lower")
        bar = figure.colorbar(image, ax=top, pad=0.02)
        bar.set_label("alpha")
        bar.outline.set_edgecolor(palette.text)
        ticks = sorted({round(i * (len(history) - 1) / 5) for i in range(6)})
        top.set_yticks(ticks, [str(history[i].step) for i in ticks])
        top.set_ylabel("step")
        top.set_title(f"The {'brighter' if dark else 'darker'}, the less trained", fontsize="medium")
        depth_axis(top, grid=False, label=False)
        lines = ((history[0], palette.muted, "o"), (history[-1], palette.first, "s"))
        for line, color, marker in lines if len(history) > 1 else lines[1:]:
            factors = [(block.factor, None) for block in line.blocks]
            style = {"color": color, "marker": marker, "markersize": 5, "linewidth": 1.3}
            draw_estimates(bottom, list(range(len(names))), factors, f"step {line.step}", **style)
        bottom.axhline(1, color=palette.text, linewidth=0.8)
        bottom.set_ylabel(f"factor on the {quantity.partition(',')[0]}", fontsize="small")
        bottom.legend(frameon=False, fontsize="small")
        depth_axis(bottom, color=palette.grid)
        # Align the points with the columns of the heat map.
        bottom.set_xlim(top.get_xlim())
        save_figure(figure, path)


def selected_by_block(record: S2FTRecord) -> dict[str, dict[str, int]]:
    """Count trained channels by block and by the last part of the layer name."""
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for layer in sorted(record.layers, key=lambda layer: _depth_key(layer.name)):
        block, _, path = _split_name(layer.name)
        role = path.rsplit(".", 1)[-1]
        counts[block][role] = counts[block].get(role, 0) + layer.num_selected
    return dict(counts)


def draw_selection(record: S2FTRecord, path: Path, *, dark: bool = False) -> None:
    """Draw the number of trained channels of every block, with one bar per kind of layer."""
    from matplotlib.ticker import MaxNLocator

    blocks = selected_by_block(record)
    kinds = list(dict.fromkeys(kind for counts in blocks.values() for kind in counts))
    with page(dark=dark) as palette:
        figure = card_figure(2.9)
        axes = figure.subplots()
        _draw_bars(axes, blocks, kinds, palette)
        axes.set_ylabel("trained channels")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize="small", ncols=min(4, len(kinds)), loc="lower right", bbox_to_anchor=(1, 1))
        depth_axis(axes, color=palette.grid)
        save_figure(figure, path)


def _draw_bars(axes: Any, blocks: dict[str, dict[str, int]], kinds: list[str], palette: Palette) -> None:
    styles = role_styles(kinds)
    width = 0.8 / max(1, len(kinds))
    for i, kind in enumerate(kinds):
        positions = [index + (i - (len(kinds) - 1) / 2) * width for index in range(len(blocks))]
        counts = [by_kind.get(kind, 0) for by_kind in blocks.values()]
        color = (palette.first, palette.second)[i] if len(kinds) <= 2 else styles[kind]["color"]
        axes.bar(positions, counts, width=width, color=color, label=kind)


def _split_name(name: str) -> tuple[str, int, str]:
    """Split a layer name at its first number into block name, block index and path inside the block."""
    parts = name.split(".")
    index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if index is None:
        return name, 0, name
    return ".".join(parts[: index + 1]), int(parts[index]), ".".join(parts[index + 1 :])


def _depth_key(name: str) -> tuple[str, int, str]:
    block, index, path = _split_name(name)
    return block.rstrip("0123456789"), index, path
