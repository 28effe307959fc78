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
class _Stage:
    """A stage that runs: its first step that was told, the last one that was printed, and the last one."""

    at: float
    total: int
    done: int
    shown_at: float
    shown_done: int
    text: str
    last_at: float
    last_done: int


class Lines:
    """Print a line when a stage begins and ends, and one for each tenth, but at most one every few seconds.

    The line of the last step has the time that the stage took. A stage that does not come to its last step, as of a
    search with a time limit or after an error, ends with the last step that it came to.

    Args:
        show: prints a line.
        clock: seconds.
    """

    def __init__(self, show: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._print, self._clock = show, clock
        self._stages: dict[str, _Stage] = {}
        # The end of the last step of any stage.
        self._before = clock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Print the number of finished steps of a stage, if a line is due."""
        name = _fixed_part(stage)
        if name not in self._stages:
            self.close()
        now, known = self._clock(), self._stages.get(name)
        # A stage may run again, with other steps.
        if known is None or done < known.shown_done or total != known.total:
            self._begin(name, stage, done, total, now)
        else:
            known.text, known.last_at, known.last_done = stage, now, done
            self._continue(known, now)
        self._before = now

    def close(self) -> None:
        """Print the last step of each stage that did not come to its end, if that was not printed."""
        for stage in self._stages.values():
            if stage.last_done > stage.shown_done:
                stage.shown_at, stage.shown_done = stage.last_at, stage.last_done
                self._print(
                    f"{stage.text}: {stage.last_done} of {stage.total} in {_duration(stage.last_at - stage.at)}"
                )

    def _begin(self, name: str, stage: str, done: int, total: int, now: float) -> None:
        self._stages[name] = _Stage(now, total, done, now, done, stage, now, done)
        # A stage that is told at its end only began when the one before ended.
        took = f" in {_duration(now - self._before)}" if done == total else ""
        self._print(f"{stage}: {done} of {total}{took}")

    def _continue(self, stage: _Stage, now: float) -> None:
        done, total = stage.last_done, stage.total
        waited, steps = now - stage.shown_at, done - stage.shown_done
        due = waited >= SECONDS_AT_LEAST and (steps >= STEP * total or waited >= SECONDS_AT_MOST)
        if not steps or not (due or done == total):
            return
        stage.shown_at, stage.shown_done = now, done
        took = now - stage.at
        if done == total:
            self._print(f"{stage.text}: {done} of {total} in {_duration(took)}")
            return
        # Steps of an earlier run took no time in this one.
        left = took / (done - stage.done) * (total - done)
        self._print(f"{stage.text}: {done} of {total}, {_duration(took)} so far, {_duration(left)} left")


def _fixed_part(stage: str) -> str:
    """Return the name of a stage without the intermediate result behind a colon."""
    return stage.partition(": ")[0]


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
