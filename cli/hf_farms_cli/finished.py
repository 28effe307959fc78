"""The output folder before the work: finished already, free, or refused. Loads no torch."""

from __future__ import annotations

import warnings
from pathlib import Path

from hf_farms.errors import HfFarmsWarning, OutputError
from hf_farms.hub.folders import check_folder
from hf_farms.output import OutputFolder
from hf_farms.reports import REPORT_NAME, PruneReport
from hf_farms.texts import check_source, check_text
from hf_farms_cli.places import known_places
from hf_farms_cli.recipe import RECIPE_NAME, Recipe

__all__ = ["check_before_work"]


def check_before_work(recipe: Recipe, folder: Path, *, overwrite: bool, baseline: bool) -> PruneReport | None:
    """Refuse what cannot end well, before anything is loaded or uploaded.

    Returns:
        The report of the folder, if it is complete and came from the same recipe: it is used as it is then.

    Raises:
        OutputError: the folder must not be replaced.
        DataError: a text file cannot be read, or has no text where it should.
    """
    if not overwrite and (finished := _finished(recipe, folder, baseline=baseline)):
        OutputFolder(folder).tidy()
        return finished
    OutputFolder(folder, overwrite=overwrite).check()
    for config, needed in ((recipe.calibration, recipe.prune.needs_calibration), (recipe.evaluation, True)):
        if config.source is None or config.source == "self":
            continue
        if needed:
            check_text(config.source, column=config.column)
        else:
            check_source(config.source)
    return None


def _finished(recipe: Recipe, folder: Path, *, baseline: bool) -> PruneReport | None:
    """The report of a complete folder, if it came from the same recipe.

    Raises:
        OutputError: it came from another one.
    """
    if not (folder / REPORT_NAME).exists() or not (folder / RECIPE_NAME).exists():
        return None
    places = known_places(folder)
    given = recipe.absolute() if places else recipe
    different = given.differences(Recipe.load(folder / RECIPE_NAME).located(places))
    if different:
        raise OutputError(
            f"output must be a new folder, got {str(folder)!r} with other settings ({'; '.join(different)}).",
            hint="Choose another --output, or replace it with --overwrite.",
        )
    try:
        check_folder(folder)
    except OutputError as error:
        raise OutputError(str(error), hint="Write it again with --overwrite, or choose another --output.") from error
    report = PruneReport.load(folder / REPORT_NAME)
    measured = report.perplexity
    if baseline and measured is not None and measured.uniform is None and recipe.prune.allocation != "uniform":
        warnings.warn(
            f"{folder} is used as it is, without the perplexity of uniform sparsity. To measure it, prune again with "
            "--overwrite.",
            HfFarmsWarning,
            stacklevel=2,
        )
    return report
