"""What `analyze` measures, draws and writes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.blocks import BlockReader, LayerView
from hf_farms.config import FarmsConfig
from hf_farms.distributed import LaunchedRanks, Ranks, launched_ranks
from hf_farms.errors import OutputError
from hf_farms.files.atomic_writes import writing
from hf_farms.files.path_checks import another, check_file, check_name, check_parent, check_within
from hf_farms.files.paths import is_inside
from hf_farms.loading.devices import find_device
from hf_farms.loading.names import require_model
from hf_farms.loading.opening import open_model
from hf_farms.output.allowed_paths import Reads, check_apart
from hf_farms.reports import LayerRecord, SpectralReport
from hf_farms.reports.comparison import (
    SpectralComparison,
    check_alike,
    check_blocks_match,
    compare_spectra,
    measurement_of,
)
from hf_farms.spectra.analysis import analyze, model_rows
from hf_farms.spectra.spectrum import layer_spectrum
from hf_farms_cli.console import IS_MAIN, Stages

if TYPE_CHECKING:
    from hf_farms_cards.figures.spectra import EsdCurve

__all__ = ["Measurement", "ModelMeasurement", "Opened", "check_places", "check_there", "draw", "draw_two", "write"]


@dataclass(frozen=True)
class Opened:
    """A model that can be measured, or the report that a file holds; with the name that it was asked for by."""

    name: str
    reader: BlockReader | None
    report: SpectralReport | None


FIGURES = DEPTH, ROLE, ESD, COMPARISON = "alpha_by_depth.png", "alpha_by_role.png", "esd.png", "comparison.png"


@dataclass(frozen=True)
class ModelMeasurement:
    """A report, and the model that it is of; None where it was read from a file."""

    report: SpectralReport
    reader: BlockReader | None


class Measurement:
    """How every model of one command is measured; over all processes, where several were launched."""

    def __init__(
        self, config: FarmsConfig, *, outside: bool, device: str | None, allow_pickle: bool, progress: Stages
    ) -> None:
        self._config, self._outside, self._allow_pickle, self._progress = config, outside, allow_pickle, progress
        self._ranks: Ranks = launched_ranks()
        own = self._ranks.device if isinstance(self._ranks, LaunchedRanks) else None
        self._device = find_device(device or own)

    def open(self, name: str, *, revision: str | None = None, esd: Sequence[str] = ()) -> Opened:
        """Open a model, or read its report.

        Args:
            name: hub id, folder, `demo`, or the file of a report.
            revision: of a hub id.
            esd: layers whose spectra will be drawn, checked before anything is measured.

        Raises:
            ValueError: the report was measured with other options, or there is no such layer.
        """
        if (report := _saved(name)) is not None:
            if esd:
                raise ValueError("esd must be of a model, got a report, which holds no eigenvalues. Name the model.")
            if self._config not in (FarmsConfig(), report.config):
                raise ValueError(f"options must be those of the report, got others than in {name!r}. Leave them out.")
            return Opened(name, None, report)
        reader = self._open(name, revision)
        layers = [layer.name for index in range(len(reader)) for layer in reader.metadata(index).layers]
        _matching([*layers, *(view.name for view in reader.outside if self._outside)], esd)
        return Opened(name, reader, None)

    def open_other(self, first: Opened, name: str) -> Opened:
        """Open what the first model is compared with, and refuse what cannot be, before either is measured.

        Raises:
            ValueError: a report that was measured otherwise, or blocks that cannot be matched.
        """
        report = _saved(name)
        other = Opened(name, None if report is not None else self._open(name, None), report)
        check_blocks_match(_block_names(first), _block_names(other))
        if report is not None:
            check_alike(self._planned(first), measurement_of(report))
        return other

    def of(self, model: Opened) -> ModelMeasurement:
        """Measure a model; a report is measured already."""
        if model.reader is None:
            assert model.report is not None
            return ModelMeasurement(model.report, None)
        return ModelMeasurement(self._analyze(model.reader, self._config, model.name), model.reader)

    def comparison(self, first: Opened, other: Opened) -> SpectralComparison:
        """Measure two models, the other as the first was, and compare."""
        measured, report = self.of(first).report, other.report
        if other.reader is not None:
            config = measured.config
            if model_rows(other.reader, config) != measured.window_rows:
                config = measurement_of(measured)
            report = self._analyze(other.reader, config, other.name)
        assert report is not None
        return compare_spectra(measured, report)

    def _planned(self, model: Opened) -> FarmsConfig:
        """How a model will be measured, or was."""
        if model.reader is None:
            assert model.report is not None
            return measurement_of(model.report)
        rows = model_rows(model.reader, self._config)
        return self._config if rows is None else replace(self._config, window_rows=rows)

    def _open(self, name: str, revision: str | None) -> BlockReader:
        return open_model(
            name, device=self._device, revision=revision, allow_pickle=self._allow_pickle, head=self._outside
        )

    def _analyze(self, reader: BlockReader, config: FarmsConfig, name: str) -> SpectralReport:
        stage = f"Measuring spectra of {Path(name).name}"
        return analyze(
            reader,
            config,
            outside=self._outside,
            device=self._device,
            ranks=self._ranks,
            progress=self._progress.of(stage),
        )


def _saved(name: str) -> SpectralReport | None:
    return SpectralReport.load(name) if name.endswith(".json") and Path(name).is_file() else None


def check_there(name: str) -> None:
    """Refuse a name under which there is neither a model nor a report, at the price of one small file.

    Raises:
        HfFarmsError: there is nothing, or not what it should be.
    """
    if _saved(name) is None:
        require_model(name)


def _block_names(model: Opened) -> list[str]:
    if model.report is not None:
        return [block.name for block in model.report.blocks]
    assert model.reader is not None
    return [model.reader.metadata(index).name for index in range(len(model.reader))]


def check_places(output: Path | None, figures: Path | None, reads: Reads) -> None:
    """Refuse places that cannot or must not be written to, before anything is measured.

    Args:
        output: file of the report.
        figures: folder of the figures.
        reads: what is measured.

    Raises:
        OutputError: a folder where a file must be, or the other way round; no right to write; a link or a special file;
            something that is read, or a place in a model's folder.
    """
    if output is not None:
        check_file(output)
        check_apart(output, reads)
    if figures is None:
        return
    check_name(figures / max(FIGURES, key=len), argument="figures")
    check_parent(figures, argument="figures")
    check_within(figures, FIGURES, argument="figures")
    files = [figures / name for name in FIGURES]
    for place in (figures, *files):
        check_apart(place, reads, argument="figures")
    if output is not None and (is_inside(figures, output) or any(is_inside(output, file) for file in files)):
        raise OutputError(
            f"output must be another place than the figures, got {str(output)!r} and {str(figures)!r}.",
            hint=another("output"),
        )


def write(report: SpectralReport | SpectralComparison, path: Path | None) -> None:
    """Write a report, if there is a file to write it to."""
    if path is not None and IS_MAIN:
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            report.save(path)


def draw(measured: ModelMeasurement, folder: Path | None, esd: list[str]) -> None:
    """Figures of one model: alpha by depth, heat map, and the spectra of some layers."""
    if folder is None or not IS_MAIN:
        return
    from hf_farms_cards.figures.spectra import draw_alpha_by_depth, draw_esd, draw_heat_map

    curves = _curves(measured, esd)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        draw_alpha_by_depth(measured.report, folder / DEPTH)
        draw_heat_map(measured.report, folder / ROLE)
        if curves:
            draw_esd(curves, folder / ESD)


def draw_two(comparison: SpectralComparison, folder: Path | None) -> None:
    """The figure of two models."""
    if folder is not None and IS_MAIN:
        from hf_farms_cards.figures.spectra import draw_comparison

        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            draw_comparison(comparison, folder / COMPARISON)


def _curves(measured: ModelMeasurement, wanted: list[str]) -> list[EsdCurve]:
    """Spectra of the layers asked for; without a wish of those with the lowest, the middle and the highest alpha."""
    if measured.reader is None:
        return []
    report, reader = measured.report, measured.reader
    records = [*(layer for block in report.blocks for layer in block.layers), *report.outside]
    named = {record.name: record for record in records}
    chosen = [named[name] for name in _matching(list(named), wanted)] if wanted else _typical(records)
    views = {view.name: view for index in range(len(reader)) for view in reader.open(index).layers}
    views |= {view.name: view for view in reader.outside}
    return [_curve(views[record.name], record, report) for record in chosen]


def _matching(layers: Sequence[str], wanted: Sequence[str]) -> list[str]:
    found: list[str] = []
    for pattern in wanted:
        matches = [name for name in layers if fnmatchcase(name, pattern)]
        if not matches:
            close = difflib.get_close_matches(pattern, layers, n=1, cutoff=0.0)
            raise ValueError(f"esd must be the name of a measured layer, got {pattern!r}. Did you mean {close[0]!r}?")
        found += matches
    return list(dict.fromkeys(found))


def _typical(records: list[LayerRecord]) -> list[LayerRecord]:
    ordered = sorted((r for r in records if r.alpha is not None), key=lambda r: r.alpha or 0.0)
    places = sorted({0, len(ordered) // 2, len(ordered) - 1})
    return [ordered[place] for place in places] if ordered else []


def _curve(view: LayerView, record: LayerRecord, report: SpectralReport) -> EsdCurve:
    from hf_farms_cards.figures.spectra import EsdCurve

    matrix = len(record.shape) == 2
    config = replace(report.config, window_rows=report.window_rows) if matrix else report.config
    eigenvalues = layer_spectrum(view.read(), config).eigenvalues
    return EsdCurve(record.name, eigenvalues.tolist(), record.alpha, record.tail_min)
