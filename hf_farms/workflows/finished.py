"""The output folder before the work: finished already, free, or refused. Loads no torch."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from hf_farms.config import default_output_name
from hf_farms.data.texts import check_source, check_text
from hf_farms.errors import HfFarmsWarning, OutputError
from hf_farms.files.paths import is_inside
from hf_farms.hub.folders import check_folder
from hf_farms.output.allowed_paths import check_apart
from hf_farms.output.folder import OutputFolder
from hf_farms.output.local_paths import load_local_paths
from hf_farms.output.recipe import RECIPE_NAME, Recipe
from hf_farms.reports import REPORT_NAME, PruneReport

__all__ = ["check_before_work", "default_folder"]


def default_folder(recipe: Recipe) -> Path:
    """Where a result goes that nobody gave a place: here, or beside a model whose folder this runs in."""
    name = default_output_name(recipe.model, recipe.prune)
    model = Path(recipe.model)
    if not os.path.isdir(model) or not is_inside(Path.cwd(), model):
        return Path(name)
    return Path(os.path.relpath(os.path.realpath(model.parent))) / name


def check_before_work(recipe: Recipe, output: OutputFolder, *, overwrite: bool, baseline: bool) -> PruneReport | None:
    """Refuse what cannot end well, before anything is loaded or uploaded.

    Args:
        recipe: model and settings.
        output: for the result.
        overwrite: whether it may be replaced.
        baseline: whether the perplexity of uniform sparsity is wanted.

    Returns:
        The report of the folder, if it is complete and came from the same recipe: it is used as it is then.

    Raises:
        OutputError: the folder must not be replaced, or is where no result may be.
        DataError: a text file cannot be read, or has no text where it should.
    """
    output.check_name()
    # Said first: a model that is pruned into itself must not be called a result of other settings.
    check_apart(output.path, {"the model": recipe.model}, replaces=True)
    if not overwrite and (finished := _finished(recipe, output.path, baseline=baseline)):
        output.remove_leftovers()
        return finished
    output.check()
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
    if not (folder / REPORT_NAME).is_file() or not (folder / RECIPE_NAME).is_file():
        return None
    places = load_local_paths(folder)
    given = recipe.absolute() if places else recipe
    different = given.differences(Recipe.load(folder / RECIPE_NAME).located(places))
    if different:
        raise OutputError(
            f"output must be a new folder, got {str(folder)!r} with other settings ({'; '.join(different)}).",
            hint="Choose another `output`, or replace it with `overwrite=True`.",
        )
    try:
        check_folder(folder)
    except OutputError as error:
        raise OutputError(
            str(error), hint="Write it again with `overwrite=True`, or choose another `output`."
        ) from error
    report = PruneReport.load(folder / REPORT_NAME)
    measured = report.perplexity
    if baseline and measured is not None and measured.uniform is None and recipe.prune.allocation != "uniform":
        warnings.warn(
            f"{folder} is used as it is, without the perplexity of uniform sparsity. To measure it, prune again with "
            "`overwrite=True`.",
            HfFarmsWarning,
            stacklevel=2,
        )
    return report
