"""Checks before a prune: output folder, texts and Hub. Loads no torch."""

from __future__ import annotations

import os
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from hf_farms.config import LoadOptions, default_output_name
from hf_farms.config.effect_inputs import Inputs, PruneArguments
from hf_farms.config.effects import given_fields, warn_unused
from hf_farms.config.rounding import warn_rounded_away
from hf_farms.data.datasets import check_dataset
from hf_farms.data.selection_source import check_selection_source
from hf_farms.data.texts import check_source, check_text, named_text, text_kind
from hf_farms.errors import HfFarmsWarning, OutputError
from hf_farms.files.paths import is_inside
from hf_farms.hub.folders import check_folder
from hf_farms.loading.names import ModelRef
from hf_farms.loading.resolution import find_replacement
from hf_farms.output.allowed_paths import check_apart
from hf_farms.output.existing_results import remove_leftovers
from hf_farms.output.folder import OutputFolder
from hf_farms.output.local_paths import load_local_paths
from hf_farms.output.recipe import RECIPE_NAME, Recipe
from hf_farms.processes import is_main_process
from hf_farms.reports import REPORT_NAME, PruneReport

__all__ = ["PrunePlan", "default_folder", "plan_prune"]


@dataclass(frozen=True, kw_only=True)
class PrunePlan:
    """A prune whose input and output were checked.

    Attributes:
        recipe: model and settings.
        model: to prune.
        output: folder of the result.
        load: how the model is loaded.
        baseline: measure the perplexity of uniform sparsity too.
        finished: the report of the output folder, if the same recipe completed it; nothing is pruned then.
    """

    recipe: Recipe
    model: ModelRef
    output: OutputFolder
    load: LoadOptions
    baseline: bool = True
    finished: PruneReport | None = None

    def arguments(self) -> dict[str, object]:
        """Return what must be the same on several processes; devices differ, and folders may be mounted elsewhere."""
        output, baseline = self.output.path.name, self.baseline
        return {**self.recipe.flat(), "output": output, "baseline": baseline, "stream": self.load.stream}


def plan_prune(
    recipe: Recipe,
    folder: Path | None = None,
    *,
    load: LoadOptions | None = None,
    baseline: bool = True,
    overwrite: bool = False,
    recipe_file: Path | None = None,
) -> PrunePlan:
    """Check a prune before anything is loaded or uploaded.

    Args:
        recipe: model and settings.
        folder: for the result; None: `default_folder`.
        load: how the model is loaded; dtype and revision are those of the recipe.
        baseline: measure the perplexity of uniform sparsity too.
        overwrite: whether an earlier result may be replaced.
        recipe_file: the file that the recipe was read from, which must not be overwritten.

    Raises:
        OutputError: the folder must not be replaced, is where no result may be, or does not fit on the disk.
        DataError: a text does not exist, cannot be read, or has an empty row.
        ModelError: the model does not exist, this token has no access, or it has a layout that cannot be loaded.
        HubError: the Hub cannot be reached.
    """
    calibration, evaluation, selection = recipe.texts()
    output = OutputFolder(
        folder if folder is not None else default_folder(recipe, recipe_file),
        overwrite=overwrite,
        reads={
            "the model": recipe.model,
            "the recipe": recipe_file,
            "the calibration text": calibration,
            "the evaluation text": evaluation,
            "the selection text": selection,
        },
    )
    plan = PrunePlan(
        recipe=recipe,
        model=ModelRef.parse(recipe.model, recipe.revision),
        output=output,
        load=replace(load or LoadOptions(), dtype=recipe.dtype, revision=recipe.revision),
        baseline=baseline,
    )
    with given_fields(None) if recipe_file is not None else nullcontext():
        _warn_unused(plan)
    output.check_name()
    # Check this first: the model itself must not be reported as a result of other settings.
    check_apart(output.path, {"the model": recipe.model}, replaces=True)
    if not overwrite and (finished := _finished(recipe, output.path, baseline=baseline)):
        if is_main_process():
            remove_leftovers(output.path)
        return replace(plan, finished=finished)
    output.check()
    _check_texts(recipe)
    _check_model(plan)
    return plan


def _warn_unused(plan: PrunePlan) -> None:
    """Warn of settings that have no effect."""
    recipe, prune = plan.recipe, plan.recipe.prune
    calibration, evaluation = recipe.calibration, recipe.evaluation
    warn_unused(prune)
    warn_rounded_away(prune)
    warn_unused(
        calibration,
        Inputs(text=text_kind(calibration.source), calibrates=prune.needs_calibration),
        prefix="calibration.",
    )
    warn_unused(evaluation, Inputs(text=text_kind(evaluation.source)), prefix="evaluation.")
    if (selection := recipe.selection) is not None:
        inputs = Inputs(text=text_kind(selection.source), selects=prune.needs_selection)
        warn_unused(selection, inputs, prefix="selection.")
    warn_unused(plan.load, Inputs(model=plan.model.kind, checkpoint=plan.model.kind != "demo"))
    evaluates = evaluation.source is not None
    warn_unused(PruneArguments(allocation=prune.allocation, evaluates=evaluates, baseline=plan.baseline))


def default_folder(recipe: Recipe, recipe_file: Path | None = None) -> Path:
    """Return the default output folder: in the current folder, or next to the model or result that contains it.

    Args:
        recipe: model and settings.
        recipe_file: the file that it was read from; in a folder with a report it belongs to that result.
    """
    name = default_output_name(recipe.model, recipe.prune)
    own = [Path(recipe.model)]
    if recipe_file is not None and (recipe_file.parent / REPORT_NAME).is_file():
        own.append(recipe_file.parent)
    for folder in own:
        if os.path.isdir(folder) and is_inside(Path.cwd(), folder):
            return Path(os.path.relpath(os.path.dirname(os.path.abspath(folder)))) / name
    return Path(name)


def _check_texts(recipe: Recipe) -> None:
    """Read local texts as far as needed to refuse one without text."""
    for name, config, needed in (
        ("calibration", recipe.calibration, recipe.prune.needs_calibration),
        ("evaluation", recipe.evaluation, True),
    ):
        if config.source is None or config.source == "self":
            continue
        with named_text(name):
            if needed:
                check_text(config.source, column=config.column)
            else:
                check_source(config.source)
    if (selection := recipe.selection) is not None and recipe.prune.needs_selection:
        with named_text("selection"):
            check_text(selection.source, column=selection.column)
        check_selection_source(
            selection,
            calibration=recipe.calibration if recipe.prune.needs_calibration else None,
            evaluation=recipe.evaluation if recipe.evaluation.source is not None else None,
        )


def _check_model(plan: PrunePlan) -> None:
    """Check the model and all texts on the Hub, with one request each."""
    plan.model.check()
    # The list of files shows Meta's own layout, which needs another repository or consent.
    find_replacement(plan.model, allow_pickle=plan.load.allow_pickle)
    _ = plan.model.base_model  # access to a gated model
    for name, source in zip(("calibration", "evaluation", "selection"), plan.recipe.texts(), strict=True):
        with named_text(name):
            check_dataset(source)
    plan.output.check_space(plan.model.weights_size or 0)


def _finished(recipe: Recipe, folder: Path, *, baseline: bool) -> PruneReport | None:
    """Return the report of a complete folder, if the same recipe produced it.

    Raises:
        OutputError: it came from another one.
    """
    if not (folder / REPORT_NAME).is_file() or not (folder / RECIPE_NAME).is_file():
        return None
    places = load_local_paths(folder)
    given = recipe.absolute() if places else recipe
    saved = Recipe.load(folder / RECIPE_NAME).located(places)
    # A default that depends on the model is known only when that is loaded.
    candidates = (given.decided(writes=writes) for writes in (True, False))
    different = min((candidate.differences(saved) for candidate in candidates), key=len)
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
