"""Requests to the Hub: one client, and tries again where that can help."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeVar

from hf_farms.errors import HfFarmsError, HubError
from hf_farms.explain import AGAIN, chain, endpoint, is_incomplete, known_error, status_of
from hf_farms.masking import remember_secret
from hf_farms.patience import (
    BROKEN,
    LONGEST_WAIT,
    PASSING,
    UNREACHABLE,
    asked_wait,
    caller_tries_again,
    kinds_of,
    last_status,
    lose,
    watched,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["client", "retried"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

ATTEMPTS = 5


def client(token: str | None = None) -> HfApi:
    """The client of the Hub, under our name; without a token the one that is logged in."""
    from huggingface_hub import HfApi

    remember_secret(token)
    return HfApi(token=token, library_name="hf-farms", library_version=version("hf-farms"))


def retried(call: Callable[[], T], *, what: str, attempts: int = ATTEMPTS, reads: bool = False) -> T:
    """Call until it succeeds, where another try can help; each wait is logged.

    The client tries uploads again by itself, and no other call. A Hub that cannot be reached at all is not tried
    again: this is said at once. All failures of a command together have a limit, see `patience`.

    Args:
        call: may be repeated without harm.
        what: is done, for the log.
        attempts: at most.
        reads: it downloads files; single requests are tried again below it, and here only what they add up to.

    Returns:
        What `call` returns.

    Raises:
        HubError: the limit is reached, or the answer is not one of a Hub.
    """
    waited = 0.0
    for attempt in range(1, attempts + 1):
        try:
            with watched(), nullcontext() if reads else caller_tries_again():
                return call()
        except HfFarmsError:
            raise
        except Exception as error:
            cause = _cause(error)
            wait = _wait(cause, attempt)
            if wait is None or attempt == attempts or waited + wait > LONGEST_WAIT:
                if (strange := _strange_answer(error, what)) is not None:
                    raise strange from error
                raise
            reason = f"status {status_of(cause)}" if cause and status_of(cause) else type(cause).__name__
            logger.warning("%s: %s, trying again in %.0f s (%d of %d)", what, reason, wait, attempt, attempts - 1)
            if cause is None or status_of(cause) is None or asked_wait(cause.response.headers) is None:  # type: ignore[attr-defined]
                lose(wait)
            time.sleep(wait)
            waited += wait
    raise AssertionError("unreachable")


def _strange_answer(error: Exception, what: str) -> HubError | None:
    """What a client stumbles over that finds something else than it expects: a page, an empty text, other JSON."""
    from huggingface_hub.errors import HFValidationError

    stumbled = isinstance(error, LookupError | TypeError | AttributeError | AssertionError | ValueError)
    own = isinstance(error, HFValidationError) or "README.md" in str(error)
    if not stumbled or own or known_error(error, what) is not None:
        return None
    return HubError(
        f"the Hub at {endpoint()} gave an answer that is not of a Hub: status {last_status()} ({what}).",
        hint=f"Check HF_ENDPOINT and proxies, then {AGAIN}",
    )


def _cause(error: Exception) -> BaseException | None:
    """What went wrong on the way to the Hub; the client wraps it where it uploads."""
    return next(
        (e for e in chain(error) if status_of(e) or kinds_of(e) & (BROKEN | UNREACHABLE) or is_incomplete(e)), None
    )


def _wait(cause: BaseException | None, attempt: int) -> float | None:
    """Seconds before the next try; None: it would fail again."""
    growing = float(2 ** (attempt - 1))
    if cause is None:
        return None
    if (status := status_of(cause)) is not None:
        if status not in PASSING:
            return None
        asked = asked_wait(cause.response.headers)  # type: ignore[attr-defined]
        return growing if asked is None else asked
    return None if kinds_of(cause) & UNREACHABLE else growing
