"""How long a command puts up with a Hub that fails: all requests of this process, whichever library makes them.

transformers, datasets and huggingface_hub share one HTTP client. While a command runs, what is read through it is asked
for again where that can help, and all failures together have one limit: 12 requests, or a minute.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from hf_farms.errors import HubError
from hf_farms.hub.errors import AGAIN, host_of

__all__ = [
    "RETRYABLE_ERRORS",
    "RETRYABLE_STATUS",
    "UNREACHABLE",
    "asked_wait",
    "caller_tries_again",
    "kinds_of",
    "last_status",
    "lose",
    "nothing_swallowed",
    "patience",
    "watched",
]

logger = logging.getLogger(__name__)

# Conflicts with another commit (409, 412), limits of the rate, a Hub that is busy. Anything else will be refused again.
RETRYABLE_STATUS = frozenset({408, 409, 412, 425, 429, 500, 502, 503, 504})
# By name, as the client's HTTP library is httpx in some versions and httpx2 in others.
# JSON that is none is the page of a gateway.
RETRYABLE_ERRORS = frozenset({"TimeoutException", "NetworkError", "RemoteProtocolError", "JSONDecodeError"})
UNREACHABLE = frozenset({"ConnectError", "ConnectTimeout"})
# Requests for one thing; failures of a command, and seconds that they took with the waits after them, without those
# that the Hub asked for.
ATTEMPTS, FAILURES, SECONDS = 5, 12, 60.0
# Limits of the rate are counted over five minutes.
LONGEST_WAIT = 300.0
# Bytes: what gives the whole budget back, as a large model on a bad line must get there; and what a minute must bring.
LARGE, TRICKLE = 2**20, 1024
READS = frozenset({"GET", "HEAD"})
# They tell the caller something: no token, no such file, no such part of a file.
TELLING = frozenset({401, 404, 416})


class Budget:
    """What one command may still lose.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._failures, self._seconds, self._last = 0, 0.0, ""
        # By thread, as they wait side by side.
        self._asked: dict[int, float] = {}
        self._lock = threading.Lock()

    def lose(self, reason: str = "", seconds: float = 0.0, *, failures: int = 0) -> None:
        """Count failures and time."""
        with self._lock:
            self._failures, self._seconds = self._failures + failures, self._seconds + seconds
            self._last = reason or self._last

    def asked_to_wait(self, seconds: float | None) -> bool:
        """Count what the Hub asks this thread to wait, since it last gave an answer; whether that is too long.

        Args:
            seconds: None: an answer came.
        """
        thread = threading.get_ident()
        self._asked[thread] = 0.0 if seconds is None else self._asked.get(thread, 0.0) + seconds
        return self._asked[thread] > LONGEST_WAIT

    def restore(self) -> None:
        """Begin again."""
        with self._lock:
            self._failures, self._seconds = 0, 0.0

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self._failures >= FAILURES or self._seconds >= SECONDS

    def check(self, host: str) -> None:
        """Refuse another request when nothing is left.

        Args:
            host: that would be asked.

        Raises:
            HubError: says how the last one failed.
        """
        if self.spent:
            raise _refuse(f"the Hub at {host} failed too often: {self._failures} requests, at last {self._last}.")


_budgets: list[Budget] = []
_thread = threading.local()


@contextmanager
def patience() -> Iterator[None]:
    """One budget for everything inside; one that is there already goes on. Imports nothing."""
    if _budgets:
        yield
        return
    _budgets.append(Budget())
    try:
        yield
    finally:
        _budgets.clear()


@contextmanager
def watched() -> Iterator[None]:
    """The same, for code that asks the Hub: the client of huggingface_hub obeys the budget. Imports it."""
    from huggingface_hub import get_session, set_client_factory
    from huggingface_hub.utils import _http

    factory = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    if not hasattr(factory, "watches"):

        def make() -> Any:
            return _watch(factory())

        make.watches = True  # type: ignore[attr-defined]
        set_client_factory(make)
    _watch(get_session())
    with patience():
        yield


@contextmanager
def caller_tries_again() -> Iterator[None]:
    """Leave it to the caller to ask again, in this thread; failures count all the same."""
    before = getattr(_thread, "asks_again", False)
    _thread.asks_again = True
    try:
        yield
    finally:
        _thread.asks_again = before


def _refuse(said: str, *, repair: str = "Wait some minutes") -> HubError:
    error = HubError(said, hint=f"{repair}, then {AGAIN}")
    _thread.refused = error
    return error


@contextmanager
def nothing_swallowed() -> Iterator[None]:
    """Raise at the end what a library took for a file that is not there, such as the generation config of a model."""
    _thread.refused = None
    yield
    if (error := getattr(_thread, "refused", None)) is not None:
        raise error


def last_status() -> int | None:
    """The status of the last answer in this thread."""
    return getattr(_thread, "status", None)


def lose(seconds: float) -> None:
    """Count a wait that nobody but us asked for."""
    for budget in _budgets:
        budget.lose(seconds=seconds)


def _watch(client: Any) -> Any:
    """Without a budget it is as it was."""
    if not hasattr(client.send, "watches"):
        send = functools.partial(_send, client.send)
        send.watches = True  # type: ignore[attr-defined]
        client.send = send
    return client


def _send(send: Callable[..., Any], request: Any, *, stream: bool = False, **options: Any) -> Any:
    """Make a request, again where that can help; what its caller would misunderstand is an error here."""
    if not _budgets:
        return send(request, stream=stream, **options)
    budget = _budgets[0]
    again = request.method in READS and not getattr(_thread, "asks_again", False)
    waited = 0.0
    for attempt in range(1, ATTEMPTS + 1):
        budget.check(host_of(request.url))
        response, reason, wait = _try(send, request, budget, again=again, stream=stream, **options)
        if not reason:
            return response
        growing = float(2 ** (attempt - 1))
        last = wait is None or attempt == ATTEMPTS or waited + (wait or growing) > LONGEST_WAIT
        if not wait and not last:
            budget.lose(seconds=growing)
        if last or budget.spent:
            times = f", {attempt} times" if attempt > 1 else ""
            said = f"the Hub at {host_of(request.url)} gave {reason} for {request.url.path}{times}."
            raise _refuse(said) if wait is not None else _refuse(said, repair="Check HF_ENDPOINT and the token")
        logger.warning(
            "%s: %s, trying again in %.0f s (%d of %d)",
            request.url.path,
            reason,
            wait or growing,
            attempt,
            ATTEMPTS - 1,
        )
        time.sleep(wait or growing)
        waited += wait or growing
    raise AssertionError("unreachable")


def _try(
    send: Callable[..., Any], request: Any, budget: Budget, *, again: bool, stream: bool, **options: Any
) -> tuple[Any, str, float | None]:
    """One request: the answer; or what was wrong with it, and the wait that was asked for (0: none, None: no use)."""
    begun = budget.clock()
    try:
        response = send(request, stream=True, **options)
        response.stream = _counted(response.stream, budget)
        _thread.status = response.status_code
        if not stream:
            response.read()
    except Exception as error:
        kinds = kinds_of(error)
        if not kinds & (RETRYABLE_ERRORS | UNREACHABLE):
            raise
        # That nobody is there is known at once, and a copy on this machine may do.
        away = bool(kinds & UNREACHABLE)
        reason = f"no whole answer ({type(error).__name__})"
        budget.lose(reason, budget.clock() - begun, failures=0 if away else 1)
        if away or not again:
            raise
        return None, reason, 0.0
    reason, passes = _trouble(request, response)
    if reason and passes:
        budget.lose(reason, budget.clock() - begun, failures=1)
    asked = asked_wait(response.headers) if reason and passes else None
    # Where the caller waits, it does so for as long as it is asked to, and as often.
    if budget.asked_to_wait((asked or 0.0) if reason else None) and not again:
        response.close()
        raise _refuse(
            f"the Hub at {host_of(request.url)} gave {reason} for {request.url.path}, and asks to wait {asked:.0f} s.",
            repair=f"Wait {asked:.0f} seconds",
        )
    if not reason or not again:
        return response, "", None
    response.close()
    return None, reason, (asked or 0.0) if passes else None


def _trouble(request: Any, response: Any) -> tuple[str, bool]:
    """What is wrong with an answer to a read ("": nothing), and whether that may pass."""
    status, headers = response.status_code, response.headers
    if status >= 500 or (status >= 400 and "X-Error-Code" not in headers and status not in TELLING):
        said = f" ({message})" if (message := headers.get("X-Error-Message", "")[:200]) else ""
        return f"status {status}{said}", status in RETRYABLE_STATUS
    if status != 200 or request.method not in READS or response.history:
        return "", False
    page = headers.get("Content-Type", "").startswith("text/html")
    path = request.url.path
    # Files and what is asked of them have their commit; gateways, and other servers, do not know it.
    foreign = "/resolve/" in path and "X-Repo-Commit" not in headers and (page or request.method == "HEAD")
    if foreign or (page and path.startswith("/api/")):
        return f"{'a web page' if page else 'an answer that is not of a Hub'} (status 200)", True
    return "", False


def _counted(stream: Any, budget: Budget) -> Any:
    """The body of an answer, watched: one that breaks off is continued by the client, one that trickles breaks off."""
    library = sys.modules[type(stream).__module__.partition(".")[0]]

    class Counted(library.SyncByteStream):  # type: ignore[name-defined, misc]
        def __iter__(self) -> Iterator[bytes]:
            total = received = 0
            since = budget.clock()
            try:
                for chunk in stream:
                    total, received, now = total + len(chunk), received + len(chunk), budget.clock()
                    if now - since > SECONDS:
                        if received < TRICKLE:
                            raise library.ReadTimeout(f"{received} bytes in a minute")
                        received, since = 0, now
                    yield chunk
            except library.NetworkError as error:
                budget.lose("a body that broke off", failures=1)
                # The one kind that downloads go on after.
                raise library.RemoteProtocolError(str(error) or "connection reset") from error
            except (library.RemoteProtocolError, library.TimeoutException):
                budget.lose("a body that broke off", failures=1)
                raise
            if total >= LARGE:
                budget.restore()

        def close(self) -> None:
            stream.close()

    return Counted()


def kinds_of(error: BaseException) -> set[str]:
    """Names of an error's classes."""
    return {kind.__name__ for kind in type(error).__mro__}


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that the Hub asks to wait, by `Retry-After` or the headers of its rate limit."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    asked = (headers.get("Retry-After") or "").strip()
    if asked.isdigit():
        return float(asked)
    if asked:
        try:
            when = parsedate_to_datetime(asked)
        except ValueError:
            return None
        return max(0.0, (when - datetime.now(when.tzinfo or UTC)).total_seconds())
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None
