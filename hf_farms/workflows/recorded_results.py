"""Comparison of new scores with the report of a pruned model, and their merge into it."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms_cards import write_card
from hf_farms_cards.card import is_ours

from hf_farms.errors import HfFarmsWarning
from hf_farms.files.atomic_writes import writing
from hf_farms.metrics.quiet import require_lm_eval
from hf_farms.metrics.task_scores import merge_tasks
from hf_farms.output.local_paths import save_report_paths, with_local_paths
from hf_farms.privacy.publishing import same_place
from hf_farms.reports import REPORT_NAME, EvaluationReport, PerplexityRecord, PruneReport

if TYPE_CHECKING:
    from hf_farms.config import EvaluationConfig
    from hf_farms.workflows.evaluation_results import EvaluationScores

__all__ = ["known_perplexity", "store", "warn_of_another_text", "warn_of_other_weights"]

# Perplexities of one model on two kinds of device differ by less than this share.
TOLERANCE = 0.01


def known_perplexity(
    scores: EvaluationScores, text: EvaluationConfig | None, report: PruneReport | None
) -> PerplexityRecord | None:
    """Return the perplexity in the report if it is of the same text and windows."""
    record = report.perplexity if report is not None else None
    if record is None or scores.nll is None or text is None:
        return None
    return None if _differences(text, scores.nll.context_length, record) else record


def warn_of_another_text(result: EvaluationReport, report: PruneReport) -> None:
    """Warn if a perplexity is not stored, because the report has one of another text or other windows."""
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
    """Warn if the report belongs to other weights than those that were measured.

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


def store(folder: Path, result: EvaluationReport) -> tuple[Path, ...]:
    """Merge results into the report of a pruned model, and render its card again.

    Args:
        folder: with the report.
        result: of the model in the folder.

    Returns:
        The files that were written again: the report, and the card if hf-farms wrote it; none if nothing has changed.

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
        return ()
    written, card = [folder / REPORT_NAME], folder / "README.md"
    with writing(folder):
        merged.save(folder / REPORT_NAME)
        save_report_paths(merged, folder)
        if is_ours(card) or not card.exists():
            write_card(merged, folder)
            written.append(card)
        else:
            warnings.warn(
                f"{card} stays as it is, as hf-farms did not write it. `write_card(report, '{folder}')` replaces it.",
                HfFarmsWarning,
                stacklevel=2,
            )
    return tuple(written)


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
