"""Prune a model into a finished folder: the public function, and the run of a checked plan."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hf_farms.config import CalibrationConfig, EvaluationConfig, LoadOptions, PruneConfig, SelectionConfig
from hf_farms.config.checks import check, check_arguments
from hf_farms.config.effects import given_fields
from hf_farms.errors import NoEffectWarning
from hf_farms.files.paths import with_home, with_name
from hf_farms.output.recipe import RECIPE_NAME, Recipe
from hf_farms.processes import check_same, working_ranks
from hf_farms.progress import Progress, no_progress
from hf_farms.reports import PruneReport
from hf_farms.workflows.prune_plan import PrunePlan, plan_prune
from hf_farms.workflows.prune_stages import PruneStages

__all__ = ["prune_checkpoint", "run_prune"]

IN_MEMORY = "To prune a model in memory, call prune."


def prune_checkpoint(
    model: str | Path,
    output: str | Path,
    *,
    config: PruneConfig | None = None,
    calibration: CalibrationConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    selection: SelectionConfig | None = None,
    load: LoadOptions | None = None,
    baseline: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PruneReport:
    """Prune a model into a folder that transformers loads, as `hf-farms prune` does.

    The folder holds the pruned checkpoint, tokenizer, license files, report, recipe, figures and card. Unfinished work
    lies in `OUTPUT.partial`; the same call continues it. A folder that the same settings finished is not written again:
    its report is returned, with a warning. To prune a model in memory, call `prune`.

    Processes that `accelerate launch` started share calibration data, spectra and windows of the evaluation; the first
    one writes, and an error of one stops all.

    Args:
        model: hub id, folder, or `demo`.
        output: folder for the result; it appears when it is complete.
        config: method, sparsity, pattern and allocation.
        calibration: the text that activations are measured on.
        evaluation: the text that perplexity is measured on; `EvaluationConfig(source=None)` for none.
        selection: the text that a search chooses, and a recovery accepts, on.
        load: dtype, device, streaming and revision.
        baseline: measure the perplexity of uniform sparsity too; takes a second pruning. After a search with a
            recovery by submodule, the better of both is the result.
        overwrite: replace an earlier result, and unfinished work of other settings; never the files of others.
        progress: called with the name of a stage, finished steps and total steps.

    Returns:
        The report: sparsity, spectra and perplexity before and after; on every process.

    Raises:
        ValueError: an argument of another type, or out of range.
        OutputError: the folder must not be replaced, the disk is too small, or `OUTPUT.partial` belongs to a
            run with other settings.
        ModelError: the model is not found, cannot be loaded or cannot be pruned.
        DataError: a text is not found or too short.
        HubError: the Hub cannot be reached.

    Example:
        >>> from hf_farms import PruneConfig, prune_checkpoint
        >>> report = prune_checkpoint("demo", "demo-pruned", config=PruneConfig(sparsity=0.6))  # doctest: +SKIP
    """
    # A model in memory may print as hundreds of lines.
    given = type(model).__name__ if hasattr(model, "modules") else model
    check(isinstance(model, str | Path), "model", "a hub id, a folder or 'demo'", given, IN_MEMORY)
    check(isinstance(output, str | Path), "output", "the path of a folder", output)
    constraint = "a function of the stage, the steps done and the steps in all, or None"
    check(progress is None or callable(progress), "progress", constraint, progress)
    check_arguments(prune_checkpoint, baseline=baseline, overwrite=overwrite)
    load = _given("load", load, LoadOptions)
    recipe = Recipe(
        model=with_name(str(model)),
        revision=load.revision,
        dtype=load.dtype,
        prune=_given("config", config, PruneConfig),
        calibration=_given("calibration", calibration, CalibrationConfig),
        evaluation=_given("evaluation", evaluation, EvaluationConfig),
        selection=_given("selection", selection, SelectionConfig) if selection is not None else None,
    )
    plan = plan_prune(recipe, with_home(Path(output)), load=load, baseline=baseline, overwrite=overwrite)
    if plan.finished is not None:
        warnings.warn(f"{plan.output.path} is finished already: nothing was pruned.", NoEffectWarning, stacklevel=2)
        return plan.finished
    # The equivalent command line, for the card.
    command = f"hf-farms prune {RECIPE_NAME}{'' if baseline else ' --no-baseline'}"
    return run_prune(plan, command=command, progress=progress or no_progress)


def run_prune(
    plan: PrunePlan,
    *,
    repo_id: str | None = None,
    command: str | None = None,
    progress: Progress = no_progress,
    on_estimate: Callable[[str], None] | None = None,
) -> PruneReport:
    """Carry out a plan; the folder appears when everything in it is complete.

    Stages that an earlier run of the same plan finished in `DIR.partial` are not repeated. Processes that `accelerate
    launch` started share the work, and the first one writes.

    Args:
        plan: of `plan_prune`.
        repo_id: repository of the result, for the card.
        command: the command line of this run, for the report and the card.
        progress: called with every step.
        on_estimate: called with one line about the time of what is left, before it starts, if that is above a minute;
            arguments are in backticks. Without it nothing is estimated.

    Raises:
        OutputError: the disk is too small, or `DIR.partial` belongs to a run with other settings.
    """
    ranks = plan.output.ranks = working_ranks()
    # The plan has warned of options without an effect.
    with given_fields(()), ranks.failing_together(), plan.output.locked():
        check_same(ranks, plan.arguments())
        return PruneStages(plan, progress).finish(repo_id=repo_id, command=command, on_estimate=on_estimate)


Config = TypeVar("Config", PruneConfig, CalibrationConfig, EvaluationConfig, SelectionConfig, LoadOptions)


def _given(name: str, config: Config | None, kind: type[Config]) -> Config:
    """Return the given config, or the defaults; refuse another type."""
    article = "an" if kind is EvaluationConfig else "a"
    check(config is None or isinstance(config, kind), name, f"{article} {kind.__name__}", config)
    return kind() if config is None else config
