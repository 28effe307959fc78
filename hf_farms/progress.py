"""The progress callback that all long-running functions take."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

__all__ = ["Progress", "no_progress", "one_stage"]

# Called with the name of a stage, the number of finished steps, and the total number of steps.
Progress = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """Report nothing; the default of `progress` arguments."""


def one_stage(progress: Progress, name: str) -> Callable[[int, int], None]:
    """Return a callback for functions with a single stage: it takes the finished and the total steps."""
    return partial(progress, name)
