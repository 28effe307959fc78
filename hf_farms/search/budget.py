"""Budget: the time of a search, and the time that a plan takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Budget"]

T = TypeVar("T")


class Budget:
    """The time of a search.

    Args:
        minutes: time from now on; None: no limit.
        clock: seconds.
        before: seconds that earlier runs of this search took.
        seconds_per_plan: of earlier runs; 0 if unknown.
    """

    def __init__(
        self,
        minutes: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        before: float = 0,
        seconds_per_plan: float = 0,
    ) -> None:
        self._clock, self._start, self._before = clock, clock(), before
        self._seconds = math.inf if minutes is None else 60 * minutes
        self._measured = [seconds_per_plan, 1.0 if seconds_per_plan else 0.0]

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return math.isfinite(self._seconds)

    @property
    def seconds_per_plan(self) -> float:
        """Mean seconds to screen a plan so far; 0 before the first."""
        seconds, plans = self._measured
        return seconds / plans if plans else 0.0

    def used(self) -> float:
        """Return the seconds since the search began, those of earlier runs included."""
        return self._before + self._clock() - self._start

    def left(self) -> float:
        """Return the seconds left."""
        return self._seconds - (self._clock() - self._start)

    def has(self, seconds: float) -> bool:
        """Return whether time is left, and at least so much."""
        return self.left() >= seconds and not self.over()

    def over(self) -> bool:
        """Return whether no time is left."""
        return self.left() <= 0

    def timed(self, work: Callable[[], T], *, plans: float) -> T:
        """Call a function, and count its time.

        Args:
            work: measures plans.
            plans: number of screened plans that take as long.
        """
        start = self._clock()
        result = work()
        self._measured[0] += self._clock() - start
        self._measured[1] += plans
        return result
