"""Requests to the Hub: one client, and tries again where that can help."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeVar

from hf_farms.explain import chain, status_of
from hf_farms.masking import remember_secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from huggingface_hub import HfApi

__all__ = ["client", "retried"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Conflicts with another commit (409, 412), limits of the rate, a Hub that is busy. Anything else will be refused again.
PASSING = frozenset({408, 409, 412, 425, 429, 500, 502, 503, 504})
# By name, as the client's HTTP library is httpx in some versions and httpx2 in others.
# JSON that is none is the page of a gateway.
BROKEN = frozenset({"TimeoutException", "NetworkError", "RemoteProtocolError", "JSONDecodeError"})
UNREACHABLE = frozenset({"ConnectError", "ConnectTimeout"})
ATTEMPTS = 5
# Limits of the rate are counted over five minutes.
LONGEST_WAIT = 300.0


def client(token: str | None = None) -> HfApi:
    """The client of the Hub, under our name; without a token the one that is logged in."""
    from huggingface_hub import HfApi

    remember_secret(token)
    return HfApi(token=token, library_name="hf-farms", library_version=version("hf-farms"))


def retried(call: Callable[[], T], *, what: str, attempts: int = ATTEMPTS) -> T:
    """Call until it succeeds, where another try can help; each wait is logged.

    The client tries uploads again by itself, and no other call. A Hub that cannot be reached at all is not tried
    again: this is said at once.

    Args:
        call: may be repeated without harm.
        what: is done, for the log.
        attempts: at most.

    Returns:
        What `call` returns.
    """
    waited = 0.0
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except Exception as error:
            cause = _cause(error)
            wait = _wait(cause, attempt)
            if wait is None or attempt == attempts or waited + wait > LONGEST_WAIT:
                raise
            reason = f"status {status_of(cause)}" if cause and status_of(cause) else type(cause).__name__
            logger.warning("%s: %s, trying again in %.0f s (%d of %d)", what, reason, wait, attempt, attempts - 1)
            time.sleep(wait)
            waited += wait
    raise AssertionError("unreachable")


def _cause(error: Exception) -> BaseException | None:
    """What went wrong on the way to the Hub; the client wraps it where it uploads."""
    return next((e for e in chain(error) if status_of(e) or _kinds(e) & (BROKEN | UNREACHABLE)), None)


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _wait(cause: BaseException | None, attempt: int) -> float | None:
    """Seconds before the next try; None: it would fail again."""
    growing = float(2 ** (attempt - 1))
    if cause is None:
        return None
    if (status := status_of(cause)) is not None:
        if status not in PASSING:
            return None
        asked = _asked_wait(cause.response.headers)  # type: ignore[attr-defined]
        return growing if asked is None else asked
    return None if _kinds(cause) & UNREACHABLE else growing


def _asked_wait(headers: Mapping[str, str]) -> float | None:
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
