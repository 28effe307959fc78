"""Progress with the time left: bars for people at a terminal, a few lines for files and programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from hf_farms.progress import Progress, no_progress
from hf_farms_cli.interrupts import interrupts

if TYPE_CHECKING:
    import rich.progress
    from rich.console import Console

__all__ = ["Bars", "Lines", "bars", "reported"]

# A short stage prints two lines, and a long one prints at least every ten minutes.
STEP, SECONDS_AT_LEAST, SECONDS_AT_MOST = 0.1, 10.0, 600.0

# Stages that the library names after its functions.
LABELS = {
    "analyze": "Measuring spectra",
    "capture": "Inputs of the first block",
    "score": "Scoring blocks",
    "levels": "Ranking weights",
    "sensitivity": "Pruning single blocks",
    "search:": "Searching:",
    "finalists:": "Finalists:",
    "check:": "Pruned finalists:",
    "prune": "Pruning blocks",
    "recover": "Recovering blocks",
    "distill": "Distilling",
}


def reported(show: Progress = no_progress) -> Progress:
    """Return the progress to hand to a workflow: it stops the work after an interrupt and translates names of stages.

    Args:
        show: shows a step of a stage.
    """

    def progress(stage: str, done: int, total: int) -> None:
        interrupts.check()
        first, _, rest = stage.partition(" ")
        show(f"{LABELS.get(first, first)} {rest}".rstrip(), done, total)

    return progress


class Bars:
    """Show a bar per stage, from its first step on."""

    def __init__(self, progress: rich.progress.Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show the number of finished steps of a stage."""
        name = _fixed_part(stage)
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total, description=stage)


@contextmanager
def bars(console: Console) -> Iterator[Bars]:
    """Show bars while open; they disappear at the end."""
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
        # The average over all steps: a block of a large model takes longer than the 30 seconds that rich averages over.
        speed_estimate_period=float("inf"),
    ) as progress:
        yield Bars(progress)


@dataclass
class _Begun:
    at: float
    total: int
    done: int
    shown_at: float
    shown_done: int


class Lines:
    """Print a line when a stage begins and ends, and one for each tenth, but at most one every few seconds.

    Args:
        show: prints a line.
        clock: seconds.
    """

    def __init__(self, show: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._print, self._clock = show, clock
        self._stages: dict[str, _Begun] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Print the number of finished steps of a stage, if a line is due."""
        name = _fixed_part(stage)
        now, begun = self._clock(), self._stages.get(name)
        # A stage may run again, with other steps.
        if begun is None or done < begun.shown_done or total != begun.total:
            self._stages[name] = _Begun(now, total, done, now, done)
            self._print(f"{stage}: {done} of {total}")
            return
        waited, steps = now - begun.shown_at, done - begun.shown_done
        due = waited >= SECONDS_AT_LEAST and (steps >= STEP * total or waited >= SECONDS_AT_MOST)
        if steps and (due or done == total):
            begun.shown_at, begun.shown_done = now, done
            # Steps of an earlier run took no time in this one.
            left = (now - begun.at) / (done - begun.done) * (total - done)
            self._print(f"{stage}: {done} of {total}, {_duration(now - begun.at)} so far, {_duration(left)} left")


def _fixed_part(stage: str) -> str:
    """Return the name of a stage without the intermediate result behind a colon."""
    return stage.partition(": ")[0]


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
