"""The expected time of a planned prune, before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.errors import ModelError
from hf_farms.pruning.removal_plan import prunable_layers
from hf_farms.spectra.analysis import analysis_cost, model_rows
from hf_farms.workflows.estimate import Work, estimate_prune
from hf_farms.workflows.speed import measure_speed
from hf_farms.workflows.texts import WRITTEN_NAME

if TYPE_CHECKING:
    from hf_farms.blocks import ModelBlockSource
    from hf_farms.workflows.prune_plan import PrunePlan
    from hf_farms.workflows.texts import Calibration, EvaluationText

__all__ = ["estimated_time"]

# Files in the state folder of stages that are not repeated -> name in `Work.finished`.
FINISHED = {
    "spectra.json": "spectra",
    "dense_perplexity.json": "dense",
    "uniform_perplexity.json": "uniform",
    "search.json": "search",
    "scores.json": "scores",
    WRITTEN_NAME: "text",
}


def estimated_time(
    plan: PrunePlan,
    source: ModelBlockSource,
    *,
    calibration: Calibration,
    evaluation: EvaluationText | None,
) -> str | None:
    """Return one line with the expected time of a prune and its parts; None for less than about a minute.

    Counted are parameters, tokens and multiply-adds; their speed is measured on one block, the head, one comparison of
    weights and one spectrum, in at most a few seconds. BENCHMARKS.md has estimates beside the times that prunes took.
    `ria`, searches, distillation, text that the model writes and GPUs were not checked. Files that are read and written
    are left out, and text that a streamed model writes.

    Args:
        plan: of the prune.
        source: the loaded blocks.
        calibration: the calibration sequences, of which a model may write some later.
        evaluation: the evaluation text; None without one.
    """
    prune, measurement, output = plan.recipe.prune, plan.recipe.prune.measurement(), plan.output
    tokens = [ids.flatten() for ids in calibration.known] or ([evaluation.ids] if evaluation is not None else [])
    layers = [layer for i in range(len(source)) for layer in prunable_layers(source.metadata(i).layers)]
    try:
        ids = tokens[0][: evaluation.context_length if evaluation is not None else None] if tokens else None
        speed = measure_speed(source, ids, measurement, model_rows(source, measurement))
        cost = analysis_cost(source, measurement)
    except ModelError:
        # Raised again, with what to do, by the stage that needs the blocks one after another; others need no estimate.
        return None
    finished = frozenset(name for file, name in FINISHED.items() if (output.state / file).exists())
    if not source.in_memory:
        # There is no estimate of text that a streamed model writes.
        finished |= {"text"}
    work = Work(
        blocks=len(source),
        weights=sum(layer.shape[0] * layer.shape[1] for layer in layers),
        calibration=calibration.num_tokens,
        evaluation=evaluation.num_tokens if evaluation is not None else 0,
        multiply_adds=cost,
        baseline=plan.baseline and evaluation is not None and prune.allocation != "uniform",
        processes=output.ranks.count,
        sequences=max(1, calibration.num_sequences),
        written=calibration.num_written_tokens,
        left=1 - _finished_blocks(output.state / "blocks") / max(1, len(source)),
        finished=finished,
    )
    return estimate_prune(prune, work, speed).sentence


def _finished_blocks(records: Path) -> int:
    return len(list(records.glob("[0-9]*.json")))
