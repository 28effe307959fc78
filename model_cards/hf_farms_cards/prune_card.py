"""Build header and template values of the card of a pruned model."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from hf_farms.config import PruneConfig, default_output_name
from hf_farms.registries import ALLOCATIONS, FITS, METHODS, RECOVERIES, REFINEMENTS, RecoveryEntry
from hf_farms.registries.allocations import AllocationEntry
from hf_farms.reports import (
    CalibrationRecord,
    PerplexityRecord,
    PruneReport,
    TaskRecord,
    acceptance_text,
)
from hf_farms.reports.standing_out import standing_out_of
from hf_farms_cards.licences import license_of
from hf_farms_cards.markdown import code, link, number, with_error
from hf_farms_cards.metadata import card_data, hub_id, perplexity_results, short_source, task_results
from hf_farms_cards.quick_start import Checkpoint, as_call, quick_start
from hf_farms_cards.search_plans import shown_plans
from hf_farms_cards.tasks import task_of

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

__all__ = ["base_text", "pruned_card"]

# Block sparsities that differ by less count as equal: rounding to whole weights causes such differences.
EQUAL_SPARSITY = 1e-4
# Clauses on the option `ends`, after the sentence of the allocation.
ENDS = {
    "first-capped": "the alpha of the first block counts as at most the lowest of the others",
    "first-lowest": "the first block counts with the lowest alpha of the others",
    "first-median": "the first block counts with the median alpha of the others",
    "first-apart": "the first block takes no part in this and has the total sparsity as its target",
    "lowest": "the first and the last block count with the lowest alpha of the others",
    "median": "the first and the last block count with the median alpha of the others",
    "apart": "the first and the last block take no part in this and have the total sparsity as their target",
}
LOWER_IS_BETTER = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter", "wer"}


def pruned_card(
    report: PruneReport, *, repo_id: str | None, checkpoint: Checkpoint
) -> tuple[ModelCardData, dict[str, Any]]:
    """Return header and values of the template `prune.md.j2`; arguments as for `render_card`."""
    name = repo_id or default_output_name(report.model, report.config)
    base = hub_id(None if Path(report.model).is_dir() else report.model, report.base)
    task = task_of(report.model_type, checkpoint.architecture)
    data = card_data(
        name=name,
        base=report.base,
        base_id=base,
        tags=["farms", "pruned", "sparse", report.config.method],
        pipeline_tag=(report.base.pipeline_tag if report.base else None) or task.pipeline_tag,
        results=[*perplexity_results(report.perplexity), *task_results(report.tasks)],
    )
    method, allocation = METHODS[report.config.method], ALLOCATIONS[report.config.allocation]
    recover = RECOVERIES[report.config.recover]
    recovering = [recover.citation] if recover.first is None else [RECOVERIES[recover.first].citation, recover.citation]
    # Measured, not target sparsities: a pattern may round different targets to the same sparsity.
    zeros = [block.sparsity for block in report.blocks]
    by_layer = any(layer.target is not None for block in report.blocks for layer in block.layers)
    even = not by_layer and (not zeros or max(zeros) - min(zeros) < EQUAL_SPARSITY)
    # A pattern may round the same target to different sparsities.
    even = even or (report.search is not None and report.search.taken == "uniform")
    values = {
        "report": report,
        "method": method,
        "refinement": _refinement(report),
        "allocation": allocation,
        "fit": FITS[report.before.config.fit] if report.before else None,
        "citations": [text for text in (allocation.citation, method.citation, *recovering) if text],
        "recover_sentence": _recover_sentence(report),
        "adjusts": method.adjusts or _recovered(report),
        "title": name.rsplit("/", 1)[-1],
        "base": base_text(report.model, base),
        "base_id": base,
        "license": license_of(report.base, checkpoint.files) if report.base else None,
        "perplexity": report.perplexity if _is_measured(report.perplexity) else None,
        "recovery": _recovery(report.perplexity),
        "source": short_source(str(report.perplexity.config.source)) if report.perplexity else None,
        "calibrated_on": short_source(report.calibration.config.source)
        if report.calibration and report.calibration.config
        else None,
        "continuations": _continuations(report.calibration),
        "search": shown_plans(report.search) if report.search else [],
        "selected_on": short_source(report.search.selection.source)
        if report.search and report.search.selection
        else None,
        "accepted_on": short_source(report.acceptance.config.source)
        if report.acceptance and report.acceptance.config
        else None,
        "even": even,
        "by_layer": by_layer,
        "allocation_sentence": _allocation_sentence(report, even=even),
        "ends": "" if even else _ends(report),
        "rows": _block_rows(report),
        "has_errors": any(b.alpha_stderr is not None for b in report.before.blocks) if report.before else False,
        "standing_out": standing_out_of(report.before) if report.before else None,
        "evaluation": _perplexity_rows(report.perplexity, even=even) if _is_measured(report.perplexity) else [],
        "bold": report.perplexity is not None and _better(report.perplexity) is not None,
        "tasks": [_task_row(record) for record in report.tasks],
        "tasks_have_dense": any(record.dense is not None for record in report.tasks),
        "quick_start": quick_start(name, task, checkpoint, pruned=True),
        "made_by": ("bash", report.command) if report.command else ("python", _call(report)),
        "recipe": checkpoint.recipe,
    }
    return data, values


def base_text(model: str | None, base_id: str | None) -> Markup:
    """Format the base model for running text: a link, or the name of its folder."""
    if base_id:
        return link(base_id, f"https://huggingface.co/{base_id}")
    name = (model or "").replace("\\", "/").rstrip("/")
    # Absolute paths are private: show only the folder name.
    folder = name.rsplit("/", 1)[-1] if Path(name).is_absolute() else name.removeprefix("./")
    return code(folder) if name else Markup("a model")


def _call(report: PruneReport) -> str:
    batches = ", calibration=batches" if report.config.needs_calibration else ""
    batches += ", selection=other_batches" if report.config.needs_selection else ""
    # Reports hold the numbers of defaults, which a call leaves out.
    sequences = report.calibration.num_sequences if report.calibration else 1
    allocation = PruneConfig(recover=report.config.recover).allocation
    call = as_call(report.config.unsettled(sequences), allocation=allocation)
    return f"from hf_farms import PruneConfig, prune\n\nprune(model, {call}{batches})"


def _allocation_sentence(report: PruneReport, *, even: bool) -> str:
    """Return Markdown on the allocation; the entry's own reason for equal sparsities only where it applies."""
    config, entry = report.config, ALLOCATIONS[report.config.allocation]
    if not even:
        stopped = report.search is not None and not report.search.complete
        return entry.sentence_if_stopped if stopped and entry.sentence_if_stopped else entry.describe(config)
    ends = 0 if config.ends == "measured" else 1 if config.ends.startswith("first-") else 2
    others = len(report.blocks) - ends
    could_differ = config.sparsity > 0 and config.spread != 0 and config.group is None and others > 1
    return entry.sentence_if_even if could_differ or not entry.needs_spectra else AllocationEntry.sentence_if_even


def _refinement(report: PruneReport) -> str:
    """Return the sentence of the refinement, and how much it reduced the error of the layers; empty without one."""
    sentence = REFINEMENTS[report.config.refine].describe(report.config)
    layers = [layer.error_reduction for block in report.blocks for layer in block.layers]
    reductions = [reduction for reduction in layers if reduction is not None]
    if not sentence or not reductions:
        return sentence
    lowest, middle, highest = (f"{100 * f(reductions):.3g}%" for f in (min, statistics.median, max))
    return f"{sentence} The error fell by {lowest} to {highest}, in the median layer by {middle}."


def _recover_sentence(report: PruneReport) -> str:
    """Return Markdown on the recovery and its errors; "" without one."""
    errors, entry = report.recovery_errors(), RECOVERIES[report.config.recover]
    if errors is None:
        return ""
    before, after = (f"{error:.3g}" for error in errors)
    fits = [part.accepted for block in report.blocks for part in block.recovery]
    text, kept = acceptance_text(report.acceptance), sum(fits)
    if kept == 0:
        result = f"None of the {len(fits)} fits lowered the squared error of the outputs on {text}: none was kept."
    else:
        change = f"stayed at {after}" if before == after else f"fell from {before} to {after}"
        result = (
            f"The squared error of their outputs, relative to the variance of the ideal ones, {change} (median) on "
            f"{text}."
        )
        if kept < len(fits):
            result += f" Only fits that lowered it were kept, {kept} of {len(fits)}."
    blocks = entry if entry.first is None else RECOVERIES[entry.first]
    sentence = f"{blocks.describe(report.config)} {result}"
    return sentence if report.distillation is None else f"{sentence} {_distillation_sentence(report, entry)}"


def _distillation_sentence(report: PruneReport, entry: RecoveryEntry) -> str:
    """Return Markdown on the training of the whole model."""
    record = report.distillation
    assert record is not None
    if not record.accepted:
        return (
            "A training on the predictions of the dense model did not lower the KL divergence "
            "on these sequences, and was not used."
        )
    return (
        f"{entry.describe(report.config)} Their KL divergence to those of the dense model fell from "
        f"{record.divergence_before:.3g} to {record.final_divergence:.3g} nats per token on these sequences, in "
        f"{record.steps} steps."
    )


def _recovered(report: PruneReport) -> bool:
    """Return whether a recovery changed weights."""
    trained = report.distillation is not None and report.distillation.accepted
    return trained or any(part.accepted for block in report.blocks for part in block.recovery)


def _ends(report: PruneReport) -> str:
    """Return a sentence on the ends, if the allocation reads the option and they are not as measured."""
    config, entry = report.config, ALLOCATIONS[report.config.allocation]
    # A search reads the option for some of its starts only.
    if "ends" not in entry.options or entry.search or config.ends not in ENDS:
        return ""
    words = f"As alphas of different positions compare badly, {ENDS[config.ends]}."
    return words if entry.needs_spectra else words.replace("alpha", "score")


def _is_measured(perplexity: PerplexityRecord | None) -> bool:
    return perplexity is not None and perplexity.dense is not None and perplexity.pruned is not None


def _recovery(perplexity: PerplexityRecord | None) -> float | None:
    if perplexity is None or not perplexity.dense or not perplexity.pruned:
        return None
    is_finite = math.isfinite(perplexity.dense) and math.isfinite(perplexity.pruned)
    return perplexity.dense / perplexity.pruned if is_finite else None


def _block_rows(report: PruneReport) -> list[dict[str, Any]]:
    """Return the rows of the block table."""
    return [{"block": block, "before": before, "after": after} for block, before, after in report.blocks_with_spectra()]


def _perplexity_rows(perplexity: PerplexityRecord | None, *, even: bool) -> list[dict[str, Markup]]:
    """Return the rows dense, uniform, this model; bold if better by more than two standard errors."""
    assert perplexity is not None
    p = perplexity
    better = _better(p)
    this = _bold(number(p.pruned)) if better == "this" else number(p.pruned)
    uniform = _bold(number(p.uniform)) if better == "uniform" else number(p.uniform)
    difference, error = p.uniform_nll_difference, p.uniform_nll_difference_stderr
    rows = [
        {
            "model": Markup("dense"),
            "perplexity": number(p.dense),
            "difference": with_error(p.nll_difference, p.nll_difference_stderr, sign=True),
        }
    ]
    if p.uniform is not None:
        rows.append(
            {
                "model": Markup("uniform: the same sparsity in every block"),
                "perplexity": uniform,
                "difference": Markup("the same model") if even else with_error(difference, error, sign=True),
            }
        )
    return [*rows, {"model": Markup("this model"), "perplexity": this, "difference": Markup("")}]


def _better(perplexity: PerplexityRecord) -> Literal["this", "uniform"] | None:
    """Return the sparse model that is better by more than two standard errors, if any."""
    difference, error = perplexity.uniform_nll_difference, perplexity.uniform_nll_difference_stderr
    if difference is None or error is None or abs(difference) <= 2 * error:
        return None
    return "this" if difference < 0 else "uniform"


def _task_row(record: TaskRecord) -> dict[str, Any]:
    this, dense = with_error(record.value, record.stderr, 4), with_error(record.dense, record.dense_stderr, 4)
    error = record.difference_stderr
    if error is None and record.stderr is not None and record.dense_stderr is not None:
        # Not paired over questions, so an upper estimate.
        error = math.hypot(record.stderr, record.dense_stderr)
    if record.dense is not None and error is not None and abs(record.value - record.dense) > 2 * error:
        lower = record.metric.partition(",")[0] in LOWER_IS_BETTER
        better = (record.value < record.dense) == lower
        this, dense = (_bold(this), dense) if better else (this, _bold(dense))
    return {"record": record, "this": this, "dense": dense}


def _bold(text: Markup) -> Markup:
    return Markup(f"**{text}**")


def _continuations(calibration: CalibrationRecord | None) -> int:
    """Return the number of calibration sequences that continue a passage."""
    config = calibration.config if calibration is not None else None
    return config.total_sequences - config.num_sequences if config is not None else 0
