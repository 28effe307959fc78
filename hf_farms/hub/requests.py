"""Requests to the Hub: one client, tries again where that can help, errors in a sentence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from hf_farms.errors import HfFarmsError, HubError
from hf_farms.explain import LOGIN, chain, first_line, known_error, status_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from huggingface_hub import HfApi

__all__ = ["client", "explained", "retried"]

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
# Seconds. The client itself waits for ever.
CONNECT_TIMEOUT, UPLOAD_TIMEOUT = 3.0, 300.0


def client(token: str | None) -> HfApi:
    """The client of the Hub, under our name."""
    from huggingface_hub import HfApi

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


@contextmanager
def explained(what: str, *, upload: bool = False) -> Iterator[None]:
    """Turn what the Hub client raises about a push into one sentence; no request waits for ever meanwhile.

    Args:
        what: repository, model or dataset.
        upload: whether answers may take minutes; else the client's own HF_HUB_DOWNLOAD_TIMEOUT.

    Raises:
        HubError: whatever went wrong.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubError(f"a push must reach the Hub, got HF_HUB_OFFLINE for {what!r}.", hint="Unset HF_HUB_OFFLINE.")
    try:
        with _bounded(UPLOAD_TIMEOUT if upload else float(constants.HF_HUB_DOWNLOAD_TIMEOUT)):
            yield
    except HfFarmsError:
        raise
    except Exception as error:  # the client lets errors of its HTTP library, of xet, of files and of its own through
        raise (
            _repository_error(error, what)
            or known_error(error, what)
            or HubError(f"{what!r} could not be pushed ({first_line(error)}).", hint="Run the same command again.")
        ) from error


def _repository_error(error: Exception, what: str) -> HubError | None:
    """What a missing repository or branch means where something is written."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return None
    if isinstance(error, hub.RepositoryNotFoundError):
        if status_of(error) == 401:
            return HubError("the Hub did not accept the token.", hint=LOGIN)
        return HubError(
            f"repository must be there and open to this token, got {what!r}, which the Hub does not show.",
            hint="Check the name and the token, and run the same command again.",
        )
    if isinstance(error, ValueError) and "README.md" in str(error):
        found = " ".join(str(error).splitlines()[1:]).removeprefix("- ")
        return HubError(
            f"README.md must be a card that the Hub accepts, got one with: {found}.",
            hint="Correct the lines between --- at its beginning, and run the same command again.",
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return HubError(f"revision must be a branch of {what!r}, got one that is not there.", hint="Check --revision.")
    return None


@contextmanager
def _bounded(answer: float) -> Iterator[None]:
    """Time limits for the client's session, unless somebody has set others."""
    from huggingface_hub import get_session

    session: Any = get_session()
    before = session.timeout
    if before.connect is None and before.read is None:
        session.timeout = type(before)(answer, connect=CONNECT_TIMEOUT, pool=None)
    try:
        yield
    finally:
        session.timeout = before
