"""Compare lm-eval results of a model with those of the dense model, and merge them with earlier results."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_farms.errors import HfFarmsWarning
from hf_farms.reports import TaskRecord

__all__ = ["TaskScore", "answers_of", "compare_tasks", "is_finite", "merge_tasks"]


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task, with the data for a paired comparison.

    Attributes:
        record: the result.
        answers: value of each question, if the result is their mean; else None.
        questions: hash of the prompt of each question.
    """

    record: TaskRecord
    answers: tuple[float, ...] | None
    questions: tuple[str, ...]


def is_finite(value: Any) -> bool:
    """Return whether a value is a finite number; lm-eval writes "N/A" for missing values."""
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def answers_of(samples: Sequence[Mapping[str, Any]], metric: str, value: float) -> tuple[float, ...] | None:
    """Return the value of each question if the result is their mean, else None."""
    answers: list[Any] = [sample.get(metric) for sample in samples]
    if not answers or not all(map(is_finite, answers)):
        return None
    numbers = tuple(float(answer) for answer in answers)
    return numbers if math.isclose(math.fsum(numbers) / len(numbers), value, abs_tol=1e-9) else None


def compare_tasks(scores: Sequence[TaskScore], dense: Sequence[TaskScore]) -> tuple[TaskRecord, ...]:
    """Add the results of the dense model on the same questions to the records of a model."""
    others = {(score.record.task, score.record.metric): score for score in dense}
    records = []
    for score in scores:
        other = others.get((score.record.task, score.record.metric))
        if other is None:
            records.append(score.record)
            continue
        assert score.questions == other.questions, "scores of a task must be of the same questions"
        records.append(
            replace(
                score.record,
                dense=other.record.value,
                dense_stderr=other.record.stderr,
                difference_stderr=_paired_stderr(score.answers, other.answers),
            )
        )
    return tuple(records)


def _paired_stderr(first: tuple[float, ...] | None, second: tuple[float, ...] | None) -> float | None:
    if first is None or second is None or len(first) < 2:
        return None
    deltas = [a - b for a, b in zip(first, second, strict=True)]
    mean = math.fsum(deltas) / len(deltas)
    return math.sqrt(math.fsum((d - mean) ** 2 for d in deltas) / (len(deltas) - 1) / len(deltas))


def merge_tasks(earlier: Sequence[TaskRecord], new: Sequence[TaskRecord]) -> tuple[TaskRecord, ...]:
    """Merge results of several evaluations of one model.

    A result replaces an earlier one of the same task, metric and number of few-shot examples, unless it has fewer
    questions (then warn). Earlier results of the dense model on the same questions are kept.
    """
    merged = {_key(record): record for record in earlier}
    for record in new:
        old = merged.get(_key(record))
        if old is not None and old.version == record.version:
            if old.num_samples > record.num_samples:
                warnings.warn(
                    f"{record.task} keeps its result on {old.num_samples} questions; the new one is on "
                    f"{record.num_samples}.",
                    HfFarmsWarning,
                    stacklevel=2,
                )
                continue
            if record.dense is None and old.num_samples == record.num_samples:
                record = replace(
                    record,
                    dense=old.dense,
                    dense_stderr=old.dense_stderr,
                    difference_stderr=old.difference_stderr,
                )
        merged[_key(record)] = record
    return tuple(merged.values())


def _key(record: TaskRecord) -> tuple[str, str, int]:
    return record.task, record.metric, record.num_fewshot
