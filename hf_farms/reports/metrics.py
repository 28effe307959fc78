"""The log of a Trainer -> the metrics of the model that it saved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["best_step", "is_bookkeeping", "last_logged", "number", "trained_metrics"]

# What an evaluation took, and what trainers count while they train; no result of the model.
TIMING = ("_runtime", "_per_second", "_preparation_time", "_compilation_time", "_flos")
COUNTED = ("num_tokens", "num_input_tokens_seen", "entropy", "mean_token_accuracy", "aux_loss")
LOSSES = ("loss", "train_loss")


def trained_metrics(log: Iterable[Mapping[str, Any]], *, up_to: int | None = None) -> dict[str, float]:
    """Return the last value of each loss and of each evaluation metric.

    Args:
        log: entries of the Trainer's log history.
        up_to: the step of the saved model, if it is not the last; later entries are ignored.
    """
    metrics: dict[str, float] = {}
    for entry in log:
        names = [name for name in LOSSES if name in entry] + _of_evaluation(entry)
        # The mean over the whole training is of no step.
        late = up_to is not None and entry.get("step", 0) > up_to and "train_loss" not in entry
        for name in names if not late else ():
            if (value := number(entry[name])) is not None:
                metrics[name] = value
    return metrics


def _of_evaluation(entry: Mapping[str, Any]) -> list[str]:
    """Return the metric names of an evaluation entry: the loss and those that `compute_metrics` returned.

    The Trainer writes these, then its own timing; what other trainers add when they log comes after that.
    """
    names = [name for name in entry if name.startswith("eval_")]
    timing = next((i for i, name in enumerate(names) if name.endswith("_runtime")), len(names))
    return [name for name in names[:timing] if not is_bookkeeping(name)]


def best_step(state: Any) -> int | None:
    """Return the step of the best model that a Trainer saved a checkpoint of."""
    if not getattr(state, "best_model_checkpoint", None):
        return None
    # The checkpoint and not the step: the best of all evaluations may lie between two checkpoints.
    number_in_name = Path(state.best_model_checkpoint).name.rpartition("-")[2]
    if number_in_name.isdigit():
        return int(number_in_name)
    return getattr(state, "best_global_step", None) or None


def is_bookkeeping(name: str) -> bool:
    """Whether a metric says how an evaluation went, and nothing about the model."""
    return name.endswith(TIMING) or name.removeprefix("eval_").endswith(COUNTED)


def last_logged(log: Iterable[Mapping[str, Any]], name: str) -> float | None:
    """Return the last logged value of a metric."""
    return next((entry[name] for entry in reversed(list(log)) if name in entry), None)


def number(value: object) -> float | None:
    """Return a finite number as a float; None for any other value."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if ok else None  # type: ignore[arg-type]
