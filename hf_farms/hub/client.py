"""The Hub client: create it, retry calls, and raise its errors as one sentence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from hf_farms.demo import DEMO_FOLDERS
from hf_farms.errors import HfFarmsError, HubError, ModelError
from hf_farms.hub.errors import (
    AGAIN,
    LOGIN,
    NOT_REACHED,
    chain,
    endpoint,
    explain,
    first_line,
    is_incomplete,
    known_error,
    status_of,
)
from hf_farms.hub.failure_budget import LONGEST_WAIT, charge_wait, raise_refusals
from hf_farms.hub.mistyped import name_other_places
from hf_farms.hub.request_retries import (
    RETRYABLE_ERRORS,
    RETRYABLE_STATUS,
    UNREACHABLE,
    caller_retries,
    class_names,
    last_status,
    requested_wait,
    retried_requests,
)
from hf_farms.privacy.masking import mask_error, remember_secret

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["client", "hub_errors", "is_unreachable", "lacks_token", "with_retries"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

ATTEMPTS = 5
# Seconds. The client itself has no time limit.
CONNECT_TIMEOUT, UPLOAD_TIMEOUT = 3.0, 300.0


def client(token: str | None = None) -> HfApi:
    """Return the Hub client, with hf-farms as its user agent.

    Args:
        token: None: the saved token or HF_TOKEN.
    """
    from huggingface_hub import HfApi

    remember_secret(token)
    return HfApi(token=token, library_name="hf-farms", library_version=version("hf-farms"))


def with_retries(call: Callable[[], T], *, what: str, attempts: int = ATTEMPTS, reads: bool = False) -> T:
    """Call a function until it succeeds, waiting with exponential back-off between attempts.

    Only transient errors are retried, and each wait is logged. A Hub that cannot be reached is reported at once. The
    client itself retries uploads, and nothing else. All failures of a command share one budget, see `failure_budget`.

    Args:
        call: safe to repeat.
        what: the action, for the log.
        attempts: the largest number of calls.
        reads: whether the call downloads files. Their requests are retried one by one in `request_retries`; the call
            is repeated on top of that.

    Returns:
        The result of `call`.

    Raises:
        HubError: the budget is spent, or the answer is not one of a Hub.
    """
    waited = 0.0
    for attempt in range(1, attempts + 1):
        try:
            with retried_requests(), nullcontext() if reads else caller_retries():
                return call()
        except HfFarmsError:
            raise
        except Exception as error:
            cause = _request_error(error)
            wait = _retry_wait(cause, attempt)
            if wait is None or attempt == attempts or waited + wait > LONGEST_WAIT:
                if (malformed := _malformed_answer(error, what)) is not None:
                    raise malformed from error
                raise
            reason = f"status {status_of(cause)}" if cause and status_of(cause) else type(cause).__name__
            logger.warning("%s: %s, trying again in %.0f s (%d of %d)", what, reason, wait, attempt, attempts - 1)
            if cause is None or status_of(cause) is None or requested_wait(cause.response.headers) is None:  # type: ignore[attr-defined]
                charge_wait(wait)
            time.sleep(wait)
            waited += wait
    raise AssertionError("unreachable")


def is_unreachable(error: HfFarmsError) -> bool:
    """Return whether an error of `hub_errors` says that the Hub is switched off or cannot be reached."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or any(class_names(cause) & UNREACHABLE for cause in chain(error))


def lacks_token(error: HubError) -> bool:
    """Return whether an error of `hub_errors` says that there is no token."""
    return any("LocalTokenNotFoundError" in class_names(cause) for cause in chain(error))


@contextmanager
def hub_errors(
    what: str,
    *,
    action: Literal["ask", "load", "push", "upload"],
    revision: str | None = None,
    packaged: Iterable[str] = DEMO_FOLDERS,
) -> Iterator[None]:
    """Raise errors of the Hub client, and of transformers around it, as one sentence with a remedy.

    Args:
        what: the model, dataset or repository.
        action: "ask" for metadata; "load" with transformers, which takes some errors for the absence of a file; "push"
            for the requests around an upload, with time limits; "upload" for answers that may take minutes.
        revision: of the model, to look for it in the cache.
        packaged: names inside the package that the user may have meant.

    Raises:
        ModelError: the model does not exist, or this token may not read it.
        HubError: any other error.
    """
    writes = action in ("push", "upload")
    if writes:
        _require_online(what)
    try:
        with retried_requests(), _timeouts(action), raise_refusals() if action == "load" else nullcontext():
            yield
    except HfFarmsError:
        raise
    except Exception as error:  # each library has its own: HTTP, JSON, xet, safetensors, tokenizers
        mask_error(error)
        if writes:
            raise _write_error(error, what) from error
        raise name_other_places(_read_error(error, what, action, revision), what, packaged=packaged) from error


def _require_online(what: str) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubError(f"a push must reach the Hub, got HF_HUB_OFFLINE for {what!r}.", hint="Unset HF_HUB_OFFLINE.")


@contextmanager
def _timeouts(action: str) -> Iterator[None]:
    """Set time limits for the requests of a push; leave others as they are."""
    from huggingface_hub import constants

    if action not in ("push", "upload"):
        yield
        return
    with _session_timeout(UPLOAD_TIMEOUT if action == "upload" else float(constants.HF_HUB_DOWNLOAD_TIMEOUT)):
        yield


@contextmanager
def _session_timeout(seconds: float) -> Iterator[None]:
    """Set the time limit of the client's session, unless the user has set one."""
    from huggingface_hub import get_session

    session: Any = get_session()
    before = session.timeout
    if before.connect is None and before.read is None:
        session.timeout = type(before)(seconds, connect=CONNECT_TIMEOUT, pool=None)
    try:
        yield
    finally:
        session.timeout = before


def _read_error(error: Exception, what: str, action: str, revision: str | None) -> HfFarmsError:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if action == "load":
        return explain(error, what=what)
    if isinstance(error, HFValidationError):
        return ModelError(f"model must be a hub id or an existing folder, got {what!r}. Check the path.")
    explained = explain(error, what=what)
    cached = isinstance(try_to_load_from_cache(what, "config.json", revision=revision), str)
    if isinstance(explained, HubError) and NOT_REACHED in str(explained) and cached:
        return HubError(str(explained), hint="To use the copy on this machine, set HF_HUB_OFFLINE=1.")
    return explained


def _write_error(error: Exception, what: str) -> HfFarmsError:
    return (
        _repository_error(error, what)
        or known_error(error, what)
        or HubError(f"{what!r} could not be pushed ({first_line(error)}).", hint="Run the same command again.")
    )


def _repository_error(error: Exception, what: str) -> HubError | None:
    """Return the error for a missing repository or branch, or a refused card, when something is written."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return None
    if isinstance(error, hub.RepositoryNotFoundError):
        if status_of(error) == 401:
            return HubError(f"the Hub at {endpoint()} did not accept the token.", hint=LOGIN)
        return HubError(
            f"repository must exist and be open to this token, got {what!r}, which the Hub does not show.",
            hint="Check the name and the token, and run the same command again.",
        )
    if isinstance(error, ValueError) and "README.md" in str(error):
        problems = " ".join(str(error).splitlines()[1:]).removeprefix("- ")
        return HubError(
            f"README.md must be a card that the Hub accepts, got one with: {problems}.",
            hint="Correct the lines between --- at its beginning, and run the same command again.",
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return HubError(
            f"revision must be a branch of {what!r}, got one that does not exist.", hint="Check `push(revision=...)`."
        )
    return None


def _malformed_answer(error: Exception, what: str) -> HubError | None:
    """Return the error for an answer that the client cannot parse: a web page, an empty text, other JSON."""
    from huggingface_hub.errors import HFValidationError

    parsing = isinstance(error, LookupError | TypeError | AttributeError | AssertionError | ValueError)
    local = isinstance(error, HFValidationError) or "README.md" in str(error)
    if not parsing or local or known_error(error, what) is not None:
        return None
    return HubError(
        f"the Hub at {endpoint()} gave an answer that is not of a Hub: status {last_status()} ({what}).",
        hint=f"Check HF_ENDPOINT and proxies, then {AGAIN}",
    )


def _request_error(error: Exception) -> BaseException | None:
    """Return the HTTP error in a chain of errors, which the client wraps during uploads."""
    retryable = RETRYABLE_ERRORS | UNREACHABLE
    return next(
        (cause for cause in chain(error) if status_of(cause) or class_names(cause) & retryable or is_incomplete(cause)),
        None,
    )


def _retry_wait(cause: BaseException | None, attempt: int) -> float | None:
    """Return the seconds to wait before the next attempt; None: it would fail again."""
    backoff = float(2 ** (attempt - 1))
    if cause is None:
        return None
    if (status := status_of(cause)) is not None:
        if status not in RETRYABLE_STATUS:
            return None
        requested = requested_wait(cause.response.headers)  # type: ignore[attr-defined]
        return backoff if requested is None else requested
    return None if class_names(cause) & UNREACHABLE else backoff
