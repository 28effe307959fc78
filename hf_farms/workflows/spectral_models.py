"""Models and saved reports, measured with the same options. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hf_farms.blocks import BlockReader
from hf_farms.config import FarmsConfig
from hf_farms.config.effects import given_fields
from hf_farms.errors import argument_errors
from hf_farms.loading.devices import find_device
from hf_farms.loading.names import require_model
from hf_farms.loading.opening import open_model
from hf_farms.processes import working_ranks
from hf_farms.progress import Progress, one_stage
from hf_farms.reports import SpectralReport
from hf_farms.reports.comparison import (
    SpectralComparison,
    check_alike,
    check_blocks_match,
    compare_spectra,
    measurement_of,
)
from hf_farms.spectra.analysis import analyze, model_rows
from hf_farms.spectra.pairing import PairedWindows
from hf_farms.workflows.spectral_figures import matching_layers

__all__ = ["OpenedModel", "SpectralMeasurement", "is_saved_report"]


@dataclass(frozen=True)
class OpenedModel:
    """A model that can be measured, or a saved report.

    Attributes:
        name: as the caller gave it.
        reader: of the model; None for a report.
        report: a saved report; None for a model.
    """

    name: str
    reader: BlockReader | None
    report: SpectralReport | None

    @property
    def block_names(self) -> list[str]:
        """Names of the blocks."""
        if self.report is not None:
            return [block.name for block in self.report.blocks]
        assert self.reader is not None
        return [self.reader.metadata(index).name for index in range(len(self.reader))]


class SpectralMeasurement:
    """Measures any number of models with the same options, distributed over all launched processes.

    Args:
        config: window size and fit.
        outside: also measure embeddings and head.
        device: device to run on; None: that of this process, else a GPU if available, else the CPU.
        allow_pickle: read pickled weights if the model has no safetensors.
        progress: called with every step.

    Attributes:
        ranks: the launched processes.

    Raises:
        ArgumentError: the device does not exist.
    """

    def __init__(
        self, config: FarmsConfig, *, outside: bool, device: str | None, allow_pickle: bool, progress: Progress
    ) -> None:
        self._config, self._outside, self._allow_pickle, self._progress = config, outside, allow_pickle, progress
        with argument_errors():
            find_device(device)
        self.ranks = working_ranks()
        self._device = find_device(device or self.ranks.device)

    def require(self, name: str) -> None:
        """Refuse a name that is neither a model nor a report, by fetching one small file.

        Raises:
            HfFarmsError: neither exists, or the report is damaged.
        """
        if _saved(name) is None:
            require_model(name)

    def open(self, name: str, *, revision: str | None = None, esd: Sequence[str] = ()) -> OpenedModel:
        """Open a model, or read its report.

        Args:
            name: hub id, folder, `demo`, or the file of a report.
            revision: of a hub id.
            esd: layers whose spectra will be drawn, checked before anything is measured.

        Raises:
            ValueError: the report was measured with other options, or the layer does not exist.
        """
        if (report := _saved(name)) is not None:
            if esd:
                raise ValueError("esd must be of a model, got a report, which holds no eigenvalues. Name the model.")
            if self._config not in (FarmsConfig(), report.config):
                raise ValueError(f"options must be those of the report, got others than in {name!r}. Leave them out.")
            return OpenedModel(name, None, report)
        reader = self._open(name, revision)
        layers = [layer.name for index in range(len(reader)) for layer in reader.metadata(index).layers]
        matching_layers([*layers, *(view.name for view in reader.outside if self._outside)], esd)
        return OpenedModel(name, reader, None)

    def open_second(self, first: OpenedModel, name: str) -> OpenedModel:
        """Open the second model of a comparison, and refuse one that does not match, before any measurement.

        Raises:
            ValueError: a report that was measured otherwise, or blocks that cannot be matched.
        """
        report = _saved(name)
        second = OpenedModel(name, None if report is not None else self._open(name, None), report)
        check_blocks_match(first.block_names, second.block_names)
        if report is not None:
            check_alike(self._planned(first), measurement_of(report))
        return second

    def measure(self, model: OpenedModel) -> SpectralReport:
        """Measure a model, or return a saved report."""
        if model.reader is None:
            assert model.report is not None
            return model.report
        return self._analyze(model.reader, self._config, model.name)

    def compare(self, first: OpenedModel, second: OpenedModel) -> SpectralComparison:
        """Measure two models, the second with the options of the first, and compare them."""
        first_report, second_report = self.measure(first), second.report
        config = first_report.config
        if second.reader is not None:
            if model_rows(second.reader, config) != first_report.window_rows:
                config = measurement_of(first_report)
            second_report = self._analyze(second.reader, config, second.name)
        assert second_report is not None
        # A saved report has no windows.
        measured = first.reader is not None and second.reader is not None
        return compare_spectra(first_report, second_report, paired=PairedWindows(config) if measured else None)

    def _planned(self, model: OpenedModel) -> FarmsConfig:
        """Return the config of the measurement of a model, planned or done."""
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
        with given_fields(()):
            return analyze(
                reader,
                config,
                outside=self._outside,
                device=self._device,
                ranks=self.ranks,
                progress=one_stage(self._progress, f"Measuring spectra of {Path(name).name}"),
            )


def is_saved_report(name: str) -> bool:
    """Return whether a name is that of a report on disk, not of a model."""
    return name.endswith(".json") and Path(name).is_file()


def _saved(name: str) -> SpectralReport | None:
    return SpectralReport.load(name) if is_saved_report(name) else None
