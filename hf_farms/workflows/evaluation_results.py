"""Scores -> an evaluation report, which is merged into the report of a pruned model."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms_cards import write_card
from hf_farms_cards.card import is_ours

from hf_farms.errors import HfFarmsWarning
from hf_farms.files.atomic_writes import writing
from hf_farms.metrics.quiet import require_lm_eval
from hf_farms.metrics.task_scores import TaskScore, compare_tasks, merge_tasks
from hf_farms.output.local_paths import save_report_paths, with_local_paths
from hf_farms.privacy.publishing import same_place
from hf_farms.reports import (
    REPORT_NAME,
    EvaluationReport,
    PerplexityRecord,
    PerplexityScore,
    PruneReport,
    SparsityScore,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_farms.config import EvaluationConfig
    from hf_farms.metrics.nll import TextNll
    from hf_farms.metrics.sparsity_count import Zeros

__all__ = [
    "EvaluationScores",
    "known_perplexity",
    "make_result",
    "store",
    "warn_of_another_text",
    "warn_of_other_weights",
]

# Perplexities of one model on two kinds of device differ by less than this share.
TOLERANCE = 0.01


@dataclass(frozen=True)
class EvaluationScores:
    """Scores of one model.

    Attributes:
        dtype: of the weights.
        nll: of the text; None where it was not measured.
        zeros: of the weights; None where they were not counted.
        tasks: of lm-eval.
    """

    dtype: str
    nll: TextNll | None = None
    zeros: Zeros | None = None
    tasks: tuple[TaskScore, ...] = ()


def known_perplexity(
    scores: EvaluationScores, text: EvaluationConfig | None, report: PruneReport | None
) -> PerplexityRecord | None:
    """Return the perplexity in the report if it is of the same text and windows."""
    record = report.perplexity if report is not None else None
    if record is None or scores.nll is None or text is None:
        return None
    return None if _differences(text, scores.nll.context_length, record) else record


def warn_of_another_text(result: EvaluationReport, report: PruneReport) -> None:
    """Warn when a perplexity cannot go into the report, which has one of another text or other windows."""
    if (score := result.perplexity) is None or (record := report.perplexity) is None:
        return
    if differences := _differences(score.config, score.context_length, record):
        warnings.warn(
            f"the report keeps its perplexity of {record.config.source}: this one was measured differently "
            f"({'; '.join(differences)}) and is not stored.",
            HfFarmsWarning,
            stacklevel=2,
        )


def _differences(text: EvaluationConfig, context_length: int, record: PerplexityRecord) -> list[str]:
    """Return the differences between two measurements; the context lengths compared are those that were used."""
    new, recorded = (
        {
            "text": config.source,
            "column": config.column,
            "subset": config.subset,
            "split": config.split,
            "context length": length,
            "windows": config.max_windows or "all",
        }
        for config, length in ((text, context_length), (record.config, record.context_length))
    )
    return [
        f"{name} {value or 'none'}, in the report {recorded[name] or 'none'}"
        for name, value in new.items()
        if not _is_same(name, value, recorded[name])
    ]


def _is_same(name: str, one: object, other: object) -> bool:
    if name == "text" and isinstance(one, str) and isinstance(other, str):
        return same_place(one, other)
    return one == other


def warn_of_other_weights(
    scores: EvaluationScores, known: PerplexityRecord | None, report: PruneReport
) -> PerplexityRecord | None:
    """Warn when a report is of other weights than those that were measured.

    Returns:
        The perplexity in the report, if it is of these weights.
    """
    differences = []
    if scores.zeros is not None and not math.isclose(scores.zeros.sparsity, report.sparsity):
        differences.append(f"sparsity {scores.zeros.sparsity:.4f}, in the report {report.sparsity:.4f}")
    if known is not None and scores.nll is not None and not _agrees(scores.nll.perplexity, known):
        differences.append(f"perplexity {scores.nll.perplexity:.4g}, in the report {known.pruned:.4g}")
        known = None
    if differences:
        warnings.warn(
            f"the weights are not those that {REPORT_NAME} describes ({'; '.join(differences)}). Its own numbers stay "
            "as they are.",
            HfFarmsWarning,
            stacklevel=2,
        )
    return known


def _agrees(perplexity: float, record: PerplexityRecord) -> bool:
    return record.pruned is None or math.isclose(perplexity, record.pruned, rel_tol=TOLERANCE)


def make_result(
    name: str,
    scores: EvaluationScores,
    *,
    text: EvaluationConfig | None,
    notes: Sequence[str],
    known: PerplexityRecord | None,
    base: str | None,
    dense: EvaluationScores | None = None,
) -> EvaluationReport:
    """Build the report of an evaluation.

    Args:
        name: of the model.
        scores: of the model.
        text: of the perplexity.
        notes: for the reader.
        known: the perplexity in the report of the model, of the same text.
        base: name of the dense model.
        dense: scores of the dense model; None where it was not measured.
    """
    tasks = compare_tasks(scores.tasks, dense.tasks if dense is not None else ())
    limited = {task.task: task for task in tasks if task.num_samples < (task.total_samples or 0)}
    perplexity = _perplexity(text, scores.nll, known, dense.nll if dense is not None else None)
    compared = dense is not None or (perplexity is not None and perplexity.dense is not None)
    return EvaluationReport(
        model=name,
        dtype=scores.dtype,
        base=base if compared else None,
        perplexity=perplexity,
        sparsity=_sparsity(scores.zeros),
        tasks=tasks,
        notes=(*notes, *(f"{t.task}: {t.num_samples} of {t.total_samples} questions." for t in limited.values())),
    )


def _sparsity(zeros: Zeros | None) -> SparsityScore | None:
    if zeros is None:
        return None
    return SparsityScore(
        value=zeros.sparsity, of_parameters=zeros.parameter_sparsity, num_parameters=zeros.num_parameters
    )


def _perplexity(
    text: EvaluationConfig | None, nll: TextNll | None, known: PerplexityRecord | None, dense: TextNll | None
) -> PerplexityScore | None:
    if nll is None or text is None:
        return None
    score = PerplexityScore(
        config=text, context_length=nll.context_length, num_tokens=nll.num_tokens, value=nll.perplexity
    )
    if dense is not None:
        difference, stderr = nll.difference(dense)
        return replace(score, dense=dense.perplexity, nll_difference=difference, nll_difference_stderr=stderr)
    if known is not None:
        return replace(
            score,
            dense=known.dense,
            nll_difference=known.nll_difference,
            nll_difference_stderr=known.nll_difference_stderr,
        )
    return score


def store(folder: Path, result: EvaluationReport) -> bool:
    """Merge results into the report of a pruned model, and render its card again.

    Args:
        folder: with the report.
        result: of the model in the folder.

    Returns:
        Whether the report has changed.

    Raises:
        OutputError: a file could not be written.
    """
    # Read again: another evaluation may have written meanwhile.
    report = with_local_paths(PruneReport.load(folder / REPORT_NAME), folder)
    merged = replace(
        report,
        tasks=merge_tasks(report.tasks, result.tasks),
        perplexity=_merged_perplexity(report.perplexity, result),
        versions=report.versions | ({"lm-eval": require_lm_eval()} if result.tasks else {}),
    )
    if merged == report:
        return False
    card = folder / "README.md"
    with writing(folder):
        merged.save(folder / REPORT_NAME)
        save_report_paths(merged, folder)
        if is_ours(card) or not card.exists():
            write_card(merged, folder)
        else:
            warnings.warn(
                f"{card} stays as it is, as hf-farms did not write it. `write_card(report, '{folder}')` replaces it.",
                HfFarmsWarning,
                stacklevel=2,
            )
    return True


def _merged_perplexity(record: PerplexityRecord | None, result: EvaluationReport) -> PerplexityRecord | None:
    score = result.perplexity
    if score is None:
        return record
    if record is None:
        return PerplexityRecord(
            config=score.config,
            context_length=score.context_length,
            num_tokens=score.num_tokens,
            dtype=result.dtype,
            dense=score.dense,
            pruned=score.value,
            nll_difference=score.nll_difference,
            nll_difference_stderr=score.nll_difference_stderr,
        )
    is_same = not _differences(score.config, score.context_length, record)
    if is_same and record.dense is None and score.dense is not None and _agrees(score.value, record):
        return replace(
            record,
            dense=score.dense,
            nll_difference=score.nll_difference,
            nll_difference_stderr=score.nll_difference_stderr,
        )
    return record
