"""The recipe of `hf-farms prune`, from its options or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from hf_farms.config import CalibrationConfig, EvaluationConfig, PruneConfig, SelectionConfig
from hf_farms.files.paths import with_name
from hf_farms.output.local_paths import load_local_paths
from hf_farms.output.recipe import Recipe
from hf_farms_cli.options import CALIBRATION, EVALUATION, PRUNING, SELECTION, UsageError, given, usage

__all__ = ["recipe_for"]

# Fields of PruneConfig with an option of the same name.
PRUNE_FIELDS = (
    *("sparsity", "method", "pattern", "allocation", "granularity", "spread", "ends"),
    *("refine", "damping", "block_size"),
    *("recover", "recover_passes", "recover_rate", "recover_budget"),
    "minutes",
)


def recipe_for(context: typer.Context, model: str) -> tuple[Recipe, Path | None]:
    """Return the recipe of a prune, and the file that it was read from; None if it was built from the options."""
    if not model.lower().endswith((".yaml", ".yml")):
        with usage():
            return _recipe_of(with_name(model), context.params), None
    if options := given(context, panels=[PRUNING, CALIBRATION, SELECTION, EVALUATION], names=["dtype", "revision"]):
        raise UsageError(
            f"{options[0]} must be left out with a recipe, which sets it, got both. Edit {model}, or name a model."
        )
    return Recipe.load(model).located(load_local_paths(Path(model).parent)), Path(model)


def _recipe_of(model: str, options: dict[str, Any]) -> Recipe:
    prune = PruneConfig(**{name: options[name] for name in PRUNE_FIELDS})
    return Recipe(
        model=model,
        revision=options["revision"],
        dtype=options["dtype"],
        prune=prune,
        calibration=_calibration(options),
        selection=_selection(options, needed=prune.needs_selection),
        evaluation=_evaluation(options),
    )


def _calibration(options: dict[str, Any]) -> CalibrationConfig:
    with usage("calibration"):
        return CalibrationConfig(
            source=options["calibration"],
            column=options["calibration_column"],
            subset=options["calibration_subset"],
            split=options["calibration_split"],
            num_sequences=options["calibration_samples"],
            sequence_length=options["calibration_length"],
            num_continuations=options["calibration_continuations"],
            seed=options["seed"],
        )


def _evaluation(options: dict[str, Any]) -> EvaluationConfig:
    with usage("evaluation"):
        return EvaluationConfig(
            source=None if options["evaluation"] == "none" else options["evaluation"],
            column=options["evaluation_column"],
            subset=options["evaluation_subset"],
            split=options["evaluation_split"],
            context_length=options["context_length"],
            max_windows=options["evaluation_windows"] or None,
        )


def _selection(options: dict[str, Any], *, needed: bool) -> SelectionConfig | None:
    """Return the selection text; None where none is needed and no option differs from its default."""
    with usage("selection"):
        selection = SelectionConfig(
            source=options["select_on"],
            column=options["select_column"],
            subset=options["select_subset"],
            split=options["select_split"],
            sequence_length=options["select_length"],
        )
    return selection if needed or selection != SelectionConfig() else None
