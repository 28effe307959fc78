"""Requests to the Hub: one client, retries, and errors in one sentence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from hf_farms.errors import HfFarmsError, HubError, ModelError
from hf_farms.hub.errors import (
    AGAIN,
    LOGIN,
    chain,
    endpoint,
    explain,
    first_line,
    is_incomplete,
    known_error,
    status_of,
)
from hf_farms.hub.patience import (
    LONGEST_WAIT,
    RETRYABLE_ERRORS,
    RETRYABLE_STATUS,
    UNREACHABLE,
    asked_wait,
    caller_tries_again,
    kinds_of,
    last_status,
    lose,
    nothing_swallowed,
    watched,
)
from hf_farms.privacy.masking import mask_error, remember_secret

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["client", "hub_errors", "with_retries"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

ATTEMPTS = 5
# Seconds. The client itself waits for ever.
CONNECT_TIMEOUT, UPLOAD_TIMEOUT = 3.0, 300.0


def client(token: str | None = None) -> HfApi:
    """The client of the Hub, under our name; without a token the one that is logged in."""
    from huggingface_hub import HfApi

    remember_secret(token)
    return HfApi(token=token, library_name="hf-farms", library_version=version("hf-farms"))


def with_retries(call: Callable[[], T], *, what: str, attempts: int = ATTEMPTS, reads: bool = False) -> T:
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


@contextmanager
def hub_errors(
    what: str,
    *,
    action: Literal["ask", "load", "push", "upload"],
    revision: str | None = None,
) -> Iterator[None]:
    """Raise errors of the Hub client, and of transformers around it, as one sentence with a remedy.

    Args:
        what: model, dataset or repository.
        action: "ask" for metadata; "load" with transformers, which takes some errors for the absence of a file; "push"
            for the requests around an upload, with time limits; "upload" for answers that may take minutes.
        revision: of the model, to look for it in the cache.

    Raises:
        ModelError: the model does not exist, or this token may not read it.
        HubError: anything else.
    """
    pushes = action in ("push", "upload")
    if pushes:
        _require_online(what)
    try:
        with watched(), _limits(action), nothing_swallowed() if action == "load" else nullcontext():
            yield
    except HfFarmsError:
        raise
    except Exception as error:  # each library has its own: HTTP, JSON, xet, safetensors, tokenizers
        mask_error(error)
        raise (_push_error(error, what) if pushes else _read_error(error, what, action, revision)) from error


def _require_online(what: str) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubError(f"a push must reach the Hub, got HF_HUB_OFFLINE for {what!r}.", hint="Unset HF_HUB_OFFLINE.")


@contextmanager
def _limits(action: str) -> Iterator[None]:
    """Time limits for the requests of a push; none for others."""
    from huggingface_hub import constants

    if action not in ("push", "upload"):
        yield
        return
    with _bounded(UPLOAD_TIMEOUT if action == "upload" else float(constants.HF_HUB_DOWNLOAD_TIMEOUT)):
        yield


def _read_error(error: Exception, what: str, action: str, revision: str | None) -> HfFarmsError:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if action == "load":
        return explain(error, what=what)
    if isinstance(error, HFValidationError):
        return ModelError(f"model must be a hub id or an existing folder, got {what!r}. Check the path.")
    said = explain(error, what=what)
    cached = isinstance(try_to_load_from_cache(what, "config.json", revision=revision), str)
    if isinstance(said, HubError) and "could not be reached" in str(said) and cached:
        return HubError(str(said), hint="To use the copy on this machine, set HF_HUB_OFFLINE=1.")
    return said


def _push_error(error: Exception, what: str) -> HfFarmsError:
    return (
        _repository_error(error, what)
        or known_error(error, what)
        or HubError(f"{what!r} could not be pushed ({first_line(error)}).", hint="Run the same command again.")
    )


def _repository_error(error: Exception, what: str) -> HubError | None:
    """What a missing repository or branch means where something is written."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return None
    if isinstance(error, hub.RepositoryNotFoundError):
        if status_of(error) == 401:
            return HubError(f"the Hub at {endpoint()} did not accept the token.", hint=LOGIN)
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
        (e for e in chain(error) if status_of(e) or kinds_of(e) & (RETRYABLE_ERRORS | UNREACHABLE) or is_incomplete(e)),
        None,
    )


def _wait(cause: BaseException | None, attempt: int) -> float | None:
    """Seconds before the next try; None: it would fail again."""
    growing = float(2 ** (attempt - 1))
    if cause is None:
        return None
    if (status := status_of(cause)) is not None:
        if status not in RETRYABLE_STATUS:
            return None
        asked = asked_wait(cause.response.headers)  # type: ignore[attr-defined]
        return growing if asked is None else asked
    return None if kinds_of(cause) & UNREACHABLE else growing
