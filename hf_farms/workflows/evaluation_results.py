"""Scores of one model, and the report of an evaluation that is built from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hf_farms.metrics.task_scores import TaskScore, compare_tasks
from hf_farms.reports import EvaluationReport, PerplexityRecord, PerplexityScore, SparsityScore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_farms.config import EvaluationConfig
    from hf_farms.metrics.nll import TextNll
    from hf_farms.metrics.sparsity_count import Zeros

__all__ = ["EvaluationScores", "make_result"]


@dataclass(frozen=True)
class EvaluationScores:
    """Scores of one model.

    Attributes:
        dtype: of the weights.
        nll: of the text; None if not measured.
        zeros: of the weights; None if not counted.
        tasks: of lm-eval.
    """

    dtype: str
    nll: TextNll | None = None
    zeros: Zeros | None = None
    tasks: tuple[TaskScore, ...] = ()


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
        dense: scores of the dense model; None if not measured.
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
