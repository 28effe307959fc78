"""Measure the spectra of a checkpoint or compare two; write the report and the figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.config import FarmsConfig, LoadOptions
from hf_farms.config.effect_inputs import AnalyzeArguments, Inputs, ModelKind
from hf_farms.config.effects import warn_unused
from hf_farms.errors import ArgumentError, OutputError, argument_errors
from hf_farms.files.path_checks import check_figures, check_name, check_parent, check_within, choose_another
from hf_farms.files.paths import is_inside, kind_of, with_home, with_name
from hf_farms.output.allowed_paths import Reads, check_apart, check_output_file
from hf_farms.processes import check_same, is_main_process
from hf_farms.progress import Progress, no_progress
from hf_farms.reports import SpectralReport
from hf_farms.reports.base import save_report
from hf_farms.reports.comparison import SpectralComparison
from hf_farms.workflows.arguments import check_names, check_types
from hf_farms.workflows.spectral_figures import FIGURES, draw, draw_two

if TYPE_CHECKING:
    from hf_farms.workflows.spectral_models import SpectralMeasurement

__all__ = ["analyze_checkpoint", "compare_checkpoints"]


def analyze_checkpoint(
    model: str | Path,
    config: FarmsConfig | None = None,
    *,
    outside: bool = False,
    output: str | Path | None = None,
    figures: str | Path | None = None,
    esd: Sequence[str] = (),
    device: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
    on_stored: Callable[[str], None] | None = None,
) -> SpectralReport:
    """Measure every layer of a checkpoint, with a report and figures on disk, as `hf-farms analyze` does.

    Weights are read one by one: memory does not grow with the model. Processes that `accelerate launch` started share
    the layers, and the first one writes.

    Args:
        model: hub id, folder, `demo`, or a saved report, which is not measured again.
        config: window size and fit; None: `FarmsConfig()`.
        outside: also measure embeddings and head.
        output: a JSON file for the report, new or of an earlier analysis.
        figures: a folder for the figures: alpha by depth, alpha by role and some spectra.
        esd: layers whose spectra are drawn, `*` fits any; () takes those with the lowest, middle and highest alpha.
        device: device to run on; None: a GPU if available, else the CPU.
        revision: branch, tag or commit of a hub id.
        allow_pickle: read pickled weights if the model has no safetensors; code in them is not run.
        progress: called with the name of a stage, finished steps and total steps.
        on_stored: called with the path of each file that was written.

    Returns:
        The report, on every process.

    Raises:
        ArgumentError: an argument is out of range.
        ValueError: there is no such layer, or a saved report was measured in another way.
        HfFarmsError: the model cannot be measured, or a file must not be written.

    Example:
        >>> analyze_checkpoint("demo").model
        'demo'
    """
    check_types(
        analyze_checkpoint,
        progress=progress,
        models={"model": model},
        config=config,
        outside=outside,
        output=output,
        figures=figures,
        device=device,
        revision=revision,
        allow_pickle=allow_pickle,
    )
    check_names(esd=esd)
    if esd and figures is None:
        raise ArgumentError("esd must come with a folder for the figure, got none. Add `figures`.")
    output, figures, name = _path(output), _path(figures), with_name(str(model))
    _check_places(output, figures, {"the model": name})
    measurement = _measurement(config, outside, device, allow_pickle, progress)
    load = _load_options(device, revision, allow_pickle)
    _warn_unused(config, load, outside, [name])
    with measurement.ranks.failing_together():
        check_same(measurement.ranks, {"model": name, "config": config or FarmsConfig(), "outside": outside})
        opened = measurement.open(name, revision=revision, esd=esd)
        report = measurement.measure(opened)
    if is_main_process():
        written = _save(report, output)
        written += draw(report, opened.reader, figures, esd) if figures is not None else []
        _report_files(written, on_stored)
    return report


def compare_checkpoints(
    first: str | Path,
    second: str | Path,
    config: FarmsConfig | None = None,
    *,
    outside: bool = False,
    output: str | Path | None = None,
    figures: str | Path | None = None,
    device: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
    on_stored: Callable[[str], None] | None = None,
) -> SpectralComparison:
    """Measure two checkpoints, the second with the windows of the first.

    Args:
        first: hub id, folder, `demo`, or a saved report.
        second: as `first`; differences are second minus first.
        config: window size and fit; None: `FarmsConfig()`.
        outside: also measure embeddings and head.
        output: a JSON file for the comparison.
        figures: a folder for the figure.
        device: device to run on; None: a GPU if available, else the CPU.
        revision: branch, tag or commit of the first model.
        allow_pickle: read pickled weights if the model has no safetensors; code in them is not run.
        progress: called with the name of a stage, finished steps and total steps.
        on_stored: called with the path of each file that was written.

    Returns:
        The comparison, on every process.

    Raises:
        ArgumentError: an argument is out of range.
        ValueError: a saved report was measured in another way, or the blocks cannot be matched.
        HfFarmsError: a model cannot be measured, or a file must not be written.
    """
    check_types(
        compare_checkpoints,
        progress=progress,
        models={"first": first, "second": second},
        config=config,
        outside=outside,
        output=output,
        figures=figures,
        device=device,
        revision=revision,
        allow_pickle=allow_pickle,
    )
    output, figures = _path(output), _path(figures)
    names = with_name(str(first)), with_name(str(second))
    _check_places(output, figures, {"the model": names[0], "the model to compare with": names[1]})
    measurement = _measurement(config, outside, device, allow_pickle, progress)
    load = _load_options(device, revision, allow_pickle)
    _warn_unused(config, load, outside, names)
    with measurement.ranks.failing_together():
        given = {"first": names[0], "second": names[1], "config": config or FarmsConfig(), "outside": outside}
        check_same(measurement.ranks, given)
        # The first model may take hours to download.
        measurement.require(names[1])
        opened = measurement.open(names[0], revision=revision)
        comparison = measurement.compare(opened, measurement.open_second(opened, names[1]))
    if is_main_process():
        written = _save(comparison, output)
        written += draw_two(comparison, figures) if figures is not None else []
        _report_files(written, on_stored)
    return comparison


def _save(report: SpectralReport | SpectralComparison, output: Path | None) -> list[Path]:
    """Write a report where one was asked for, and return the file."""
    if output is None:
        return []
    save_report(report, output)
    return [output]


def _report_files(written: Sequence[Path], on_stored: Callable[[str], None] | None) -> None:
    if on_stored is not None:
        for path in written:
            on_stored(str(path))


def _path(path: str | Path | None) -> Path | None:
    return with_home(Path(path)) if path is not None else None


def _load_options(device: str | None, revision: str | None, allow_pickle: bool) -> LoadOptions:
    with argument_errors():
        return LoadOptions(device=device, revision=revision, allow_pickle=allow_pickle)


def _warn_unused(config: FarmsConfig | None, load: LoadOptions, outside: bool, names: Sequence[str]) -> None:
    """Warn of options that have no effect on these models and reports; the revision is that of the first."""
    from hf_farms.loading.names import ModelRef
    from hf_farms.workflows.spectral_models import is_saved_report

    kinds: list[ModelKind] = ["report" if is_saved_report(name) else ModelRef.parse(name).kind for name in names]
    models = set(kinds) - {"report"}
    inputs = Inputs(model=kinds[0], measured=bool(models), checkpoint=bool(models - {"demo"}))
    warn_unused(config or FarmsConfig())
    warn_unused(load, inputs)
    warn_unused(AnalyzeArguments(outside=outside), inputs)


def _measurement(
    config: FarmsConfig | None, outside: bool, device: str | None, allow_pickle: bool, progress: Progress | None
) -> SpectralMeasurement:
    from hf_farms.workflows.spectral_models import SpectralMeasurement

    return SpectralMeasurement(
        config or FarmsConfig(),
        outside=outside,
        device=device,
        allow_pickle=allow_pickle,
        progress=progress or no_progress,
    )


def _check_places(output: Path | None, figures: Path | None, reads: Reads) -> None:
    """Refuse output paths that cannot or must not be written to, before anything is measured.

    Raises:
        OutputError: a folder where a file must be, or the other way round; no right to write; a link or a special file;
            something that is read, a figure of others, or a place in a model's folder.
    """
    if output is not None:
        check_output_file(output, reads, writes=[SpectralReport, SpectralComparison])
    if figures is None:
        return
    check_name(figures / max(FIGURES, key=len), argument="figures")
    if figures.exists() and not figures.is_dir():
        raise OutputError(
            f"figures must be a folder, got the {kind_of(figures)} {str(figures)!r}.", hint=choose_another("figures")
        )
    check_parent(figures, argument="figures")
    check_within(figures, FIGURES, argument="figures")
    check_figures(figures, FIGURES, argument="figures")
    files = [figures / name for name in FIGURES]
    for place in (figures, *files):
        check_apart(place, reads, argument="figures")
    if output is not None and (is_inside(figures, output) or any(is_inside(output, file) for file in files)):
        raise OutputError(
            f"output must be another place than the figures, got {str(output)!r} and {str(figures)!r}.",
            hint=choose_another("output"),
        )
