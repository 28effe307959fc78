"""Figures of one measured model, and of two."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.files.atomic_writes import writing
from hf_farms.reports import LayerRecord, SpectralReport
from hf_farms.reports.comparison import SpectralComparison

if TYPE_CHECKING:
    from hf_farms_cards.figures.spectra import EsdCurve

    from hf_farms.blocks import BlockReader, LayerView

__all__ = ["FIGURES", "draw", "draw_two", "matching_layers"]

FIGURES = DEPTH, ROLE, ESD, COMPARISON = "alpha_by_depth.png", "alpha_by_role.png", "esd.png", "comparison.png"


def draw(report: SpectralReport, reader: BlockReader | None, folder: Path, esd: Sequence[str]) -> list[Path]:
    """Draw alpha by depth, alpha by role, and the spectra of some layers.

    Args:
        report: of the model.
        reader: of its weights; without one no spectra are drawn.
        folder: for the figures.
        esd: names or patterns of layers; () takes those with the lowest, the middle and the highest alpha.

    Returns:
        The files.
    """
    from hf_farms_cards.figures.spectra import draw_alpha_by_depth, draw_esd, draw_heat_map

    curves = _curves(report, reader, esd) if reader is not None else []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        draw_alpha_by_depth(report, folder / DEPTH)
        draw_heat_map(report, folder / ROLE)
        if curves:
            draw_esd(curves, folder / ESD)
    return [folder / name for name in (DEPTH, ROLE, *([ESD] if curves else []))]


def draw_two(comparison: SpectralComparison, folder: Path) -> list[Path]:
    """Draw alpha by depth of two models, and return the file."""
    from hf_farms_cards.figures.spectra import draw_comparison

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        draw_comparison(comparison, folder / COMPARISON)
    return [folder / COMPARISON]


def matching_layers(layers: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the layers that fit any pattern, in the order of the patterns.

    Raises:
        ValueError: no layer fits one of them.
    """
    names: list[str] = []
    for pattern in patterns:
        matches = [name for name in layers if fnmatchcase(name, pattern)]
        if not matches:
            close = difflib.get_close_matches(pattern, layers, n=1, cutoff=0.0)
            raise ValueError(f"esd must be the name of a measured layer, got {pattern!r}. Did you mean {close[0]!r}?")
        names += matches
    return list(dict.fromkeys(names))


def _curves(report: SpectralReport, reader: BlockReader, esd: Sequence[str]) -> list[EsdCurve]:
    records = [*(layer for block in report.blocks for layer in block.layers), *report.outside]
    by_name = {record.name: record for record in records}
    chosen = [by_name[name] for name in matching_layers(list(by_name), esd)] if esd else _typical(records)
    views = {view.name: view for index in range(len(reader)) for view in reader.open(index).layers}
    views |= {view.name: view for view in reader.outside}
    return [_curve(views[record.name], record, report) for record in chosen]


def _typical(records: list[LayerRecord]) -> list[LayerRecord]:
    """Return the layers with the lowest, the middle and the highest alpha."""
    ordered = sorted((r for r in records if r.alpha is not None), key=lambda r: r.alpha or 0.0)
    places = sorted({0, len(ordered) // 2, len(ordered) - 1})
    return [ordered[place] for place in places] if ordered else []


def _curve(view: LayerView, record: LayerRecord, report: SpectralReport) -> EsdCurve:
    from hf_farms_cards.figures.spectra import EsdCurve

    from hf_farms.spectra.spectrum import layer_spectrum

    matrix = len(record.shape) == 2
    config = replace(report.config, window_rows=report.window_rows) if matrix else report.config
    eigenvalues = layer_spectrum(view.read(), config).eigenvalues
    return EsdCurve(record.name, eigenvalues.tolist(), record.alpha, record.tail_min)
