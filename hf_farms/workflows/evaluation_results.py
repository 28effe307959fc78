"""Results of `eval`: made of what was measured, put into the report of a pruned model, and shown."""

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
SAME = 0.01


@dataclass(frozen=True)
class EvaluationScores:
    """What one model came to."""

    dtype: str
    nll: TextNll | None = None
    zeros: Zeros | None = None
    tasks: tuple[TaskScore, ...] = ()


def known_perplexity(
    mine: EvaluationScores, text: EvaluationConfig | None, report: PruneReport | None
) -> PerplexityRecord | None:
    """What the report says of the same text."""
    there = report.perplexity if report is not None else None
    if there is None or mine.nll is None or text is None:
        return None
    return None if _differences(text, mine.nll.context_length, there) else there


def warn_of_another_text(result: EvaluationReport, report: PruneReport) -> None:
    """Say it when a perplexity cannot go into the report, which has one of another text or other windows."""
    if (score := result.perplexity) is None or (there := report.perplexity) is None:
        return
    if different := _differences(score.config, score.context_length, there):
        warnings.warn(
            f"the report keeps its perplexity of {there.config.source}: this one was measured otherwise "
            f"({'; '.join(different)}) and is only printed.",
            HfFarmsWarning,
            stacklevel=2,
        )


def _differences(text: EvaluationConfig, context_length: int, there: PerplexityRecord) -> list[str]:
    """What tells two measurements apart; of the context lengths those count that the models allowed."""
    mine, theirs = (
        {
            "text": config.source,
            "column": config.column,
            "subset": config.subset,
            "split": config.split,
            "context length": length,
            "windows": config.max_windows or "all",
        }
        for config, length in ((text, context_length), (there.config, there.context_length))
    )
    return [
        f"{name} {value or 'none'}, there {theirs[name] or 'none'}"
        for name, value in mine.items()
        if not _is_same(name, value, theirs[name])
    ]


def _is_same(name: str, mine: object, theirs: object) -> bool:
    if name == "text" and isinstance(mine, str) and isinstance(theirs, str):
        return same_place(mine, theirs)
    return mine == theirs


def warn_of_other_weights(
    mine: EvaluationScores, known: PerplexityRecord | None, report: PruneReport
) -> PerplexityRecord | None:
    """Say it when a report is of other weights than those that were measured.

    Returns:
        What the report says of the same text, if it is of these weights.
    """
    different = []
    if mine.zeros is not None and not math.isclose(mine.zeros.sparsity, report.sparsity):
        different.append(f"sparsity {mine.zeros.sparsity:.4f}, there {report.sparsity:.4f}")
    if known is not None and mine.nll is not None and not _agrees(mine.nll.perplexity, known):
        different.append(f"perplexity {mine.nll.perplexity:.4g}, there {known.pruned:.4g}")
        known = None
    if different:
        warnings.warn(
            f"the weights are not those that {REPORT_NAME} describes ({'; '.join(different)}). Its own numbers stay "
            "as they are.",
            HfFarmsWarning,
            stacklevel=2,
        )
    return known


def _agrees(perplexity: float, there: PerplexityRecord) -> bool:
    return there.pruned is None or math.isclose(perplexity, there.pruned, rel_tol=SAME)


def make_result(
    name: str,
    mine: EvaluationScores,
    *,
    text: EvaluationConfig | None,
    notes: Sequence[str],
    known: PerplexityRecord | None,
    base: str | None,
    dense: EvaluationScores | None = None,
) -> EvaluationReport:
    """What is written and shown.

    Args:
        name: of the model.
        mine: what it came to.
        text: of the perplexity.
        notes: what a reader must know.
        known: what its report says of the same text.
        base: name of the dense model.
        dense: what the dense model came to.
    """
    tasks = compare_tasks(mine.tasks, dense.tasks if dense is not None else ())
    few = {task.task: task for task in tasks if task.num_samples < (task.total_samples or 0)}
    perplexity = _perplexity(text, mine.nll, known, dense.nll if dense is not None else None)
    compared = dense is not None or (perplexity is not None and perplexity.dense is not None)
    return EvaluationReport(
        model=name,
        dtype=mine.dtype,
        base=base if compared else None,
        perplexity=perplexity,
        sparsity=_sparsity(mine.zeros),
        tasks=tasks,
        notes=(*notes, *(f"{t.task}: {t.num_samples} of {t.total_samples} questions." for t in few.values())),
    )


def _sparsity(zeros: Zeros | None) -> SparsityScore | None:
    if zeros is None:
        return None
    return SparsityScore(
        value=zeros.sparsity, of_parameters=zeros.parameter_sparsity, num_parameters=zeros.num_parameters
    )


def _perplexity(
    text: EvaluationConfig | None, mine: TextNll | None, known: PerplexityRecord | None, dense: TextNll | None
) -> PerplexityScore | None:
    if mine is None or text is None:
        return None
    score = PerplexityScore(
        config=text, context_length=mine.context_length, num_tokens=mine.num_tokens, value=mine.perplexity
    )
    if dense is not None:
        difference, stderr = mine.difference(dense)
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
    """Put results into the report of a pruned model, beside those of earlier evaluations, and render its card again.

    Args:
        folder: with a report.
        result: of the model in it.

    Returns:
        Whether there was anything new.

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


def _merged_perplexity(there: PerplexityRecord | None, result: EvaluationReport) -> PerplexityRecord | None:
    score = result.perplexity
    if score is None:
        return there
    if there is None:
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
    same = not _differences(score.config, score.context_length, there)
    if same and there.dense is None and score.dense is not None and _agrees(score.value, there):
        return replace(
            there,
            dense=score.dense,
            nll_difference=score.nll_difference,
            nll_difference_stderr=score.nll_difference_stderr,
        )
    return there
