"""Progress of long work, with the time left: bars for people at a terminal, a few lines for files and programs."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from hf_farms_cli.interrupts import interrupts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = ["Bars", "Lines", "Stages", "bars"]

# Short stages are two lines, and hours are not silent.
STEP, SECONDS_AT_LEAST, SECONDS_AT_MOST = 0.1, 10.0, 600.0

# Stages that the library names after its functions.
LABELS = {
    "analyze": "Measuring spectra",
    "capture": "Inputs of the first block",
    "score": "Scoring blocks",
    "prune": "Pruning blocks",
}


class Stages:
    """The `progress` of library functions, which is called with a stage, steps done and steps in all; shows nothing."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """So many steps of a stage are done."""
        interrupts.check()
        self._show(stage, done, total)

    def _show(self, stage: str, done: int, total: int) -> None:
        """Nothing."""

    def of(self, stage: str) -> Callable[[int, int], None]:
        """The same for a function that knows only one stage."""
        return functools.partial(self, stage)


class Bars(Stages):
    """A bar per stage, which appears with its first step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def _show(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(_label(stage), total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)


@contextmanager
def bars(console: Console) -> Iterator[Bars]:
    """Bars while open; they vanish at the end."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("so far,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        # The speed is that of all steps: a block of a large model takes longer than the 30 seconds that rich looks at.
        speed_estimate_period=float("inf"),
    ) as progress:
        yield Bars(progress)


@dataclass
class _Begun:
    at: float
    done: int
    shown_at: float
    shown_done: int


class Lines(Stages):
    """A line when a stage begins and ends, between them one for each tenth, but not more often than every few seconds.

    Args:
        show: prints a line.
        clock: seconds.
    """

    def __init__(self, show: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._print, self._clock = show, clock
        self._stages: dict[str, _Begun] = {}

    def _show(self, stage: str, done: int, total: int) -> None:
        now, begun = self._clock(), self._stages.get(stage)
        if begun is None or done < begun.shown_done:
            self._stages[stage] = _Begun(now, done, now, done)
            self._print(f"{_label(stage)}: {done} of {total}")
            return
        waited, steps = now - begun.shown_at, done - begun.shown_done
        due = waited >= SECONDS_AT_LEAST and (steps >= STEP * total or waited >= SECONDS_AT_MOST)
        if steps and (due or done == total):
            begun.shown_at, begun.shown_done = now, done
            # What an earlier run has done took no time in this one.
            left = (now - begun.at) / (done - begun.done) * (total - done)
            self._print(
                f"{_label(stage)}: {done} of {total}, {_duration(now - begun.at)} so far, {_duration(left)} left"
            )


def _label(stage: str) -> str:
    first, _, rest = stage.partition(" ")
    return f"{LABELS.get(first, first)} {rest}".rstrip()


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
