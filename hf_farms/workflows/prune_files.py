"""Files of a pruned model beside its weights: licenses, report, recipe and card."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from hf_farms_cards import write_card

from hf_farms.errors import HfFarmsWarning
from hf_farms.files.atomic_writes import writing
from hf_farms.files.own_files import foreign_texts
from hf_farms.hub.license_files import copy_license_files
from hf_farms.loading.names import ModelRef
from hf_farms.output.recipe import RECIPE_NAME, Recipe
from hf_farms.reports import REPORT_NAME, BaseModelRecord, PruneReport

__all__ = ["GENERATION", "describe", "left_out", "with_license"]

GENERATION = "generation_config.json"


def with_license(model: ModelRef, folder: Path) -> BaseModelRecord | None:
    """Copy the license files of the dense model, and add their names to its record."""
    base, origin = model.base_model, model.folder or model.base_model
    files = copy_license_files(origin, folder) if origin is not None else ()
    return replace(base, files=files) if base is not None else None


def left_out(model: ModelRef) -> tuple[str, ...]:
    """List text files of a local model that are links out of its folder: they are read, but not copied."""
    left = foreign_texts(model.folder) if model.folder is not None else ()
    if left:
        do = "leads to another place: it is" if len(left) == 1 else "lead to other places: they are"
        warnings.warn(
            f"{', '.join(left)} of {model.name!r} {do} read and not copied, and the result has no "
            f"{'generation config' if set(left) == {GENERATION} else 'tokenizer'} of its own. Put the files themselves "
            "there to have them copied.",
            HfFarmsWarning,
            stacklevel=2,
        )
    return left


def describe(folder: Path, recipe: Recipe, report: PruneReport, repo_id: str | None) -> None:
    """Write report, recipe, figures and card."""
    with writing(folder):
        report.save(folder / REPORT_NAME)
        recipe.save(folder / RECIPE_NAME)
        write_card(report, folder, repo_id=repo_id)
