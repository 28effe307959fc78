"""How long work reports its progress: one shape for all functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

__all__ = ["Progress", "no_progress", "one_stage"]

# Called with the name of a stage, the steps that are done, and the steps in all.
Progress = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """Ignore the progress."""


def one_stage(progress: Progress, name: str) -> Callable[[int, int], None]:
    """Return a progress for functions that have one stage only."""
    return partial(progress, name)
