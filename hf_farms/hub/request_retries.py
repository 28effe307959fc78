"""Retry HTTP requests to the Hub: back-off, `Retry-After` (429), server errors, broken and slow answers.

transformers, datasets and huggingface_hub share one HTTP client. While a command runs, GET and HEAD requests of that
client are retried where this can help, and all failures together are limited by the failure budget.
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

from hf_farms.hub.errors import host_of
from hf_farms.hub.failure_budget import LONGEST_WAIT, Budget, active_budget, failure_budget, refusal

__all__ = [
    "RETRYABLE_ERRORS",
    "RETRYABLE_STATUS",
    "UNREACHABLE",
    "caller_retries",
    "class_names",
    "last_status",
    "requested_wait",
    "retried_requests",
]

logger = logging.getLogger(__name__)

# Conflicts with another commit (409, 412), rate limits, and a busy Hub. Any other error would occur again.
RETRYABLE_STATUS = frozenset({408, 409, 412, 425, 429, 500, 502, 503, 504})
# By name, as the client's HTTP library is httpx in some versions and httpx2 in others.
# A JSONDecodeError means the web page of a gateway.
RETRYABLE_ERRORS = frozenset({"TimeoutException", "NetworkError", "RemoteProtocolError", "JSONDecodeError"})
UNREACHABLE = frozenset({"ConnectError", "ConnectTimeout"})
# Per request.
ATTEMPTS = 5
# Bytes. A body of RESTORING_BYTES restores the whole budget, so that a large model can be downloaded over a bad line. A
# body that brings less than MIN_BYTES per MIN_BYTES_SECONDS is broken off.
RESTORING_BYTES, MIN_BYTES, MIN_BYTES_SECONDS = 2**20, 1024, 60.0
READS = frozenset({"GET", "HEAD"})
# Answers that mean something to the caller: no token, no such file, no such part of a file.
MEANINGFUL_STATUS = frozenset({401, 404, 416})

_thread = threading.local()


@contextmanager
def retried_requests() -> Iterator[None]:
    """Retry requests of the client of huggingface_hub, within a failure budget. Imports huggingface_hub."""
    from huggingface_hub import get_session, set_client_factory
    from huggingface_hub.utils import _http

    factory = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    if not hasattr(factory, "retries"):

        def make_client() -> Any:
            return _wrap_send(factory())

        make_client.retries = True  # type: ignore[attr-defined]
        set_client_factory(make_client)
    _wrap_send(get_session())
    with failure_budget():
        yield


@contextmanager
def caller_retries() -> Iterator[None]:
    """Leave retries of this thread's requests to the caller; failures are still counted."""
    before = getattr(_thread, "caller_retries", False)
    _thread.caller_retries = True
    try:
        yield
    finally:
        _thread.caller_retries = before


def last_status() -> int | None:
    """Return the HTTP status of the last answer in this thread."""
    return getattr(_thread, "status", None)


def class_names(error: BaseException) -> set[str]:
    """Return the names of an error's class and its base classes."""
    return {kind.__name__ for kind in type(error).__mro__}


def requested_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the Hub asks to wait, from `Retry-After` or its rate-limit headers; None: no request."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    value = (headers.get("Retry-After") or "").strip()
    if value.isdigit():
        return float(value)
    if value:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        return max(0.0, (date - datetime.now(date.tzinfo or UTC)).total_seconds())
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


def _wrap_send(client: Any) -> Any:
    """Make a client send through `_send`, which changes nothing while no budget is active."""
    if not hasattr(client.send, "retries"):
        send = functools.partial(_send, client.send)
        send.retries = True  # type: ignore[attr-defined]
        client.send = send
    return client


def _send(send: Callable[..., Any], request: Any, *, stream: bool = False, **options: Any) -> Any:
    """Send a request, with retries; raise answers that the caller would misunderstand."""
    budget = active_budget()
    if budget is None:
        return send(request, stream=stream, **options)
    retries = request.method in READS and not getattr(_thread, "caller_retries", False)
    host, path = host_of(request.url), request.url.path
    waited = 0.0
    for attempt in range(1, ATTEMPTS + 1):
        budget.check(host)
        response, reason, wait = _try(send, request, budget, retries=retries, stream=stream, **options)
        if not reason:
            return response
        backoff = float(2 ** (attempt - 1))
        last = wait is None or attempt == ATTEMPTS or waited + (wait or backoff) > LONGEST_WAIT
        if not wait and not last:
            budget.lose(seconds=backoff)
        if last or budget.spent:
            times = f", {attempt} times" if attempt > 1 else ""
            message = f"the Hub at {host} gave {reason} for {path}{times}."
            raise refusal(message) if wait is not None else refusal(message, repair="Check HF_ENDPOINT and the token")
        seconds = wait or backoff
        logger.warning("%s: %s, trying again in %.0f s (%d of %d)", path, reason, seconds, attempt, ATTEMPTS - 1)
        time.sleep(seconds)
        waited += seconds
    raise AssertionError("unreachable")


def _try(
    send: Callable[..., Any], request: Any, budget: Budget, *, retries: bool, stream: bool, **options: Any
) -> tuple[Any, str, float | None]:
    """Send a request once.

    Returns:
        The answer and "" if it is good or the caller handles it; else the fault of the answer, and the seconds that
        the Hub asks to wait (0: none; None: a retry is useless).
    """
    begun = budget.clock()
    try:
        response = send(request, stream=True, **options)
        response.stream = _counted(response.stream, budget)
        _thread.status = response.status_code
        if not stream:
            response.read()
    except Exception as error:
        names = class_names(error)
        if not names & (RETRYABLE_ERRORS | UNREACHABLE):
            raise
        # A Hub that cannot be reached is reported at once: a copy on this machine may do.
        unreachable = bool(names & UNREACHABLE)
        reason = f"no whole answer ({type(error).__name__})"
        budget.lose(reason, budget.clock() - begun, failures=0 if unreachable else 1)
        if unreachable and request.method == "HEAD":
            raise _unreachable()(str(error)) from error
        if unreachable or not retries:
            raise
        return None, reason, 0.0
    reason, transient = _fault(request, response)
    if reason and transient:
        budget.lose(reason, budget.clock() - begun, failures=1)
    wait = requested_wait(response.headers) if reason and transient else None
    # A caller that retries waits as long and as often as the Hub asks.
    if budget.waits_too_long((wait or 0.0) if reason else None) and not retries:
        response.close()
        raise refusal(
            f"the Hub at {host_of(request.url)} gave {reason} for {request.url.path}, and asks to wait {wait:.0f} s.",
            repair=f"Wait {wait:.0f} seconds",
        )
    if not reason or not retries:
        return response, "", None
    response.close()
    return None, reason, (wait or 0.0) if transient else None


@functools.cache
def _unreachable() -> type[Exception]:
    """Return the class of error that makes downloads look into the cache, and give up if it has no copy.

    After a ConnectError of a HEAD request, the client would try for half a minute, with a log line for each attempt.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled

    return type("HubIsUnreachable", (OfflineModeIsEnabled,), {})


def _fault(request: Any, response: Any) -> tuple[str, bool]:
    """Return the fault of an answer to a read ("": none), and whether it may be transient."""
    status, headers = response.status_code, response.headers
    if status >= 500 or (status >= 400 and "X-Error-Code" not in headers and status not in MEANINGFUL_STATUS):
        detail = f" ({message})" if (message := headers.get("X-Error-Message", "")[:200]) else ""
        return f"status {status}{detail}", status in RETRYABLE_STATUS
    if status != 200 or request.method not in READS or response.history:
        return "", False
    page = headers.get("Content-Type", "").startswith("text/html")
    path = request.url.path
    # The Hub sends the commit with files and their metadata; gateways and other servers do not.
    foreign = "/resolve/" in path and "X-Repo-Commit" not in headers and (page or request.method == "HEAD")
    if foreign or (page and path.startswith("/api/")):
        return f"{'a web page' if page else 'an answer that is not of a Hub'} (status 200)", True
    return "", False


def _counted(stream: Any, budget: Budget) -> Any:
    """Wrap the body of an answer: count broken bodies as failures, and break off those that are too slow.

    The client continues a download after a broken body.
    """
    library = sys.modules[type(stream).__module__.partition(".")[0]]

    class Counted(library.SyncByteStream):  # type: ignore[name-defined, misc]
        def __iter__(self) -> Iterator[bytes]:
            total = received = 0
            since = budget.clock()
            try:
                for chunk in stream:
                    total, received, now = total + len(chunk), received + len(chunk), budget.clock()
                    if now - since > MIN_BYTES_SECONDS:
                        if received < MIN_BYTES:
                            raise library.ReadTimeout(f"{received} bytes in a minute")
                        received, since = 0, now
                    yield chunk
            except library.NetworkError as error:
                budget.lose("a broken body", failures=1)
                # The only class after which the client continues a download.
                raise library.RemoteProtocolError(str(error) or "connection reset") from error
            except (library.RemoteProtocolError, library.TimeoutException):
                budget.lose("a broken body", failures=1)
                raise
            if total >= RESTORING_BYTES:
                budget.restore()

        def close(self) -> None:
            stream.close()

    return Counted()
