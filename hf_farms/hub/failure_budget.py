"""The failure budget of a command: limit failed Hub requests to 12, or one minute, over the whole process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hf_farms.errors import HubError
from hf_farms.hub.errors import AGAIN

__all__ = ["LONGEST_WAIT", "Budget", "active_budget", "charge_wait", "failure_budget", "raise_refusals", "refusal"]

# Failed requests of a command; and seconds that they and the waits after them took, without waits that the Hub asked
# for.
MAX_FAILURES, MAX_SECONDS = 12, 60.0
# Seconds. The Hub counts its rate limits over five minutes.
LONGEST_WAIT = 300.0

_budgets: list[Budget] = []
_thread = threading.local()


class Budget:
    """Failures and seconds that one command may still lose.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._failures, self._seconds, self._last_reason = 0, 0.0, ""
        # By thread, because threads wait at the same time.
        self._requested_waits: dict[int, float] = {}
        self._lock = threading.Lock()

    def lose(self, reason: str = "", seconds: float = 0.0, *, failures: int = 0) -> None:
        """Count failures and lost time."""
        with self._lock:
            self._failures, self._seconds = self._failures + failures, self._seconds + seconds
            self._last_reason = reason or self._last_reason

    def waits_too_long(self, seconds: float | None) -> bool:
        """Add a wait that the Hub asks of this thread; return whether the waits since its last answer are too long.

        Args:
            seconds: None: an answer came, which resets the sum.
        """
        thread = threading.get_ident()
        self._requested_waits[thread] = 0.0 if seconds is None else self._requested_waits.get(thread, 0.0) + seconds
        return self._requested_waits[thread] > LONGEST_WAIT

    def restore(self) -> None:
        """Reset the counts of failures and seconds."""
        with self._lock:
            self._failures, self._seconds = 0, 0.0

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self._failures >= MAX_FAILURES or self._seconds >= MAX_SECONDS

    def check(self, host: str) -> None:
        """Refuse another request if the budget is spent.

        Args:
            host: of the request.

        Raises:
            HubError: with the reason of the last failure.
        """
        if self.spent:
            raise refusal(
                f"the Hub at {host} failed too often: {self._failures} requests, the last with {self._last_reason}."
            )


@contextmanager
def failure_budget() -> Iterator[None]:
    """Give everything inside one budget; inside another budget, do nothing. Imports no library."""
    if _budgets:
        yield
        return
    _budgets.append(Budget())
    try:
        yield
    finally:
        _budgets.clear()


def active_budget() -> Budget | None:
    """Return the budget of the running command, if one runs."""
    return _budgets[0] if _budgets else None


def charge_wait(seconds: float) -> None:
    """Charge the budget for a wait that the Hub did not ask for."""
    for budget in _budgets:
        budget.lose(seconds=seconds)


def refusal(message: str, *, repair: str = "Wait some minutes") -> HubError:
    """Return the error of a request that is given up, and record it for `raise_refusals`."""
    error = HubError(message, hint=f"{repair}, then {AGAIN}")
    _thread.refused = error
    return error


@contextmanager
def raise_refusals() -> Iterator[None]:
    """Raise the last `refusal` of this thread at the end, if a library has swallowed it.

    transformers takes some errors for the absence of an optional file, such as generation_config.json.
    """
    _thread.refused = None
    yield
    if (error := getattr(_thread, "refused", None)) is not None:
        raise error
