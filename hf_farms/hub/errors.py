"""Translate errors of the Hub client, and of transformers around it, into one sentence with a remedy."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_farms.errors import HfFarmsError, HubError, ModelError, OutputError
from hf_farms.privacy.masking import mask_error, mask_secrets

__all__ = [
    "AGAIN",
    "LOGIN",
    "NOT_FOUND",
    "NOT_HERE",
    "NOT_REACHED",
    "cache_error",
    "chain",
    "endpoint",
    "explain",
    "first_line",
    "host_of",
    "is_incomplete",
    "known_error",
    "status_of",
]

AGAIN = "run the same command again."
# In messages.
NOT_REACHED, NOT_FOUND = "could not be reached", "is neither a folder nor a repository on the Hub"
NOT_HERE = "is not on this machine and the Hub is switched off"
# The folder cannot be written.
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT}
LOGIN = "Run `hf auth login` with a token that may write, or pass `token`."


def explain(error: BaseException, *, what: str) -> HfFarmsError:
    """Translate an error of the Hub client, or of transformers around it, into one sentence with a remedy.

    Args:
        error: as caught; its causes are searched.
        what: the requested model or repository.

    Returns:
        A `ModelError` if the model is not available, else a `HubError`; the caller raises it.
    """
    known = known_error(error, what)
    if known is not None:
        return known
    if isinstance(error, OSError) and error.errno is not None:
        return HubError(f"{what!r} could not be read or sent ({first_line(error)}).")
    return ModelError(
        f"{what!r} could not be loaded: {first_line(error)}",
        hint="Name a hub id, a folder that save_pretrained wrote, or `demo`.",
    )


def known_error(error: BaseException, what: str) -> HfFarmsError | None:
    """Translate the outermost known error in the chain; None if none is known. Masks secrets in the whole chain."""
    mask_error(error)
    if (cache := cache_error(error)) is not None:
        return cache
    for cause in chain(error):
        known = cause if isinstance(cause, HfFarmsError) else _model_error(cause, what) or _hub_error(cause, what)
        if known is not None:
            return known
    return None


def cache_error(error: BaseException) -> OutputError | None:
    """Return the error for a Hub cache that is not writable; None: the error has another cause.

    Other messages would blame the model or text that could not be stored.
    """
    from huggingface_hub import constants

    from hf_farms.files.paths import is_inside

    home = Path(constants.HF_HOME)
    caches = {home, *(Path(getattr(constants, name, home)) for name in ("HF_HUB_CACHE", "HF_ASSETS_CACHE"))}
    caches.add(Path(os.environ.get("HF_DATASETS_CACHE", home)))
    for cause in chain(error):
        if not isinstance(cause, OSError) or not isinstance(cause.filename, str):
            continue
        path = Path(cause.filename)
        # A missing file is no fault of the cache; a cache folder that cannot be created is.
        not_writable = cause.errno in NOT_WRITABLE or (cause.errno == errno.ENOENT and path in caches)
        if not_writable and any(is_inside(path, cache) for cache in caches):
            return OutputError(
                f"the Hub's cache must be in a writable folder, got {cause.filename!r} ({cause.strerror}).",
                hint="Set HF_HOME to another folder, or repair this one.",
            )
    return None


def _model_error(cause: BaseException, what: str) -> ModelError | None:
    """Translate errors of a missing model. The most specific class comes first, because they inherit."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    # Downloads raise LocalEntryNotFoundError, "not in the cache", also for a dead network.
    offline = isinstance(cause, hub.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE
    # A subclass, of `request_retries`, means a dead network.
    if type(cause) is hub.OfflineModeIsEnabled or offline:
        return ModelError(
            f"{what!r} {NOT_HERE} (HF_HUB_OFFLINE).",
            hint="Unset HF_HUB_OFFLINE, or name a local folder.",
        )
    if isinstance(cause, hub.GatedRepoError):
        return ModelError(
            f"{what!r} is gated, and access was not granted to this token.",
            hint=f"Accept its conditions at {endpoint()}/{what}, then run `hf auth login`.",
        )
    if isinstance(cause, hub.RevisionNotFoundError):
        return ModelError(f"revision must exist, got one that {what!r} does not have.", hint="Check `revision`.")
    if isinstance(cause, hub.RepositoryNotFoundError):
        doubt = " or is private" if status_of(cause) == 401 else ""
        return ModelError(
            f"{what!r} {NOT_FOUND}{doubt}.",
            hint="Check the name; for a private repository run `hf auth login`.",
        )
    if isinstance(cause, hub.RemoteEntryNotFoundError):
        name = str(cause.response.url).rpartition("/")[2]
        return ModelError(
            f"{what!r} must hold {name!r}, which is not in the repository.",
            hint="Name a repository that save_pretrained wrote, or another `revision`.",
        )
    return None


def _hub_error(cause: BaseException, what: str) -> HubError | None:
    """Translate errors of the Hub itself, of the token, or of the network."""
    from huggingface_hub import errors as hub

    if isinstance(cause, hub.LocalTokenNotFoundError):
        return HubError("a push must have a token, got none.", hint=LOGIN)
    if isinstance(cause, hub.HfHubHTTPError) and status_of(cause) is not None:
        return _http_error(cause, what)
    if isinstance(cause, hub.FileMetadataError):
        return HubError(
            f"the Hub at {endpoint()} gave an answer that is not of a Hub for {what!r}.",
            hint=f"Check HF_ENDPOINT and proxies, then {AGAIN}",
        )
    if is_incomplete(cause):
        return HubError(
            f"the Hub at {endpoint()} sent a file of {what!r} with the wrong length.",
            hint=f"Check HF_ENDPOINT and proxies, then {AGAIN}",
        )
    # By module, as the client's HTTP library is httpx in some versions and httpx2 in others.
    if type(cause).__module__.startswith(("httpx", "httpcore")):
        url = getattr(getattr(cause, "_request", None), "url", None)
        host = endpoint() if url is None else host_of(url)
        server = f"the Hub at {endpoint()}"
        if host != endpoint():
            server = f"{host}, to which {server} redirects,"
        broken = type(cause).__name__ in ("ReadError", "RemoteProtocolError")
        return HubError(
            f"{server} {'broke off its answer' if broken else NOT_REACHED} ({type(cause).__name__}).",
            hint=f"Check the network and HF_ENDPOINT{_or_path(what)}, then {AGAIN}",
        )
    return None


def _or_path(what: str) -> str:
    """Name another cause for `OUT/nope` where there is a folder OUT: a mistyped folder is taken for a Hub id."""
    parent, slash, _ = what.partition("/")
    return f", and the path if {what!r} should be a folder" if slash and os.path.isdir(parent) else ""


def endpoint() -> str:
    """Return the URL of the Hub, without a password in it."""
    from huggingface_hub import constants

    return mask_secrets(str(constants.ENDPOINT))


def host_of(url: Any) -> str:
    """Return scheme, host and port of a URL, without its password or a token in its query.

    Args:
        url: parsed, with the attributes `scheme`, `port`, and `hostname` or `host`.
    """
    host = getattr(url, "hostname", None) or getattr(url, "host", "")
    return f"{url.scheme}://{host}{f':{url.port}' if url.port else ''}"


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not empty, else the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def is_incomplete(error: BaseException) -> bool:
    """Return whether a downloaded file has another length than the Hub announced."""
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


def status_of(cause: BaseException) -> int | None:
    """Return the HTTP status of an error; None without a response."""
    return getattr(getattr(cause, "response", None), "status_code", None)


def _http_error(cause: BaseException, what: str) -> HubError:
    response = cause.response  # type: ignore[attr-defined]
    status, path = response.status_code, response.request.url.path
    # Not the client's own message, which contains the whole URL with its secrets.
    message = getattr(cause, "server_message", None) or response.reason_phrase or "no reason given"
    message = " ".join(message.split())[:200]
    if status == 401:
        return HubError(f"the Hub at {endpoint()} did not accept the token.", hint=LOGIN)
    if status == 403 and (response.request.method not in ("GET", "HEAD") or path.endswith(("/write", "/whoami-v2"))):
        return HubError(
            f"the token may not write to {what!r} at {endpoint()} ({message}).",
            hint="Use a token with write access, or another `repo_id`.",
        )
    if status == 403:
        return HubError(
            f"the Hub at {endpoint()} does not let this token read {what!r} (status 403: {message}).",
            hint="Log in with a token that may read it: `hf auth login`.",
        )
    if status == 429:
        return HubError(
            f"the Hub at {endpoint()} was asked too often for {what!r} ({message}).", hint=f"{_wait(cause)}, {AGAIN}"
        )
    repair = "Check HF_ENDPOINT, then" if status == 404 else "Now or later,"
    return HubError(
        f"the Hub refused a request for {what!r} with status {status} ({message}) at {endpoint()}.",
        hint=f"{repair} {AGAIN}",
    )


def _wait(cause: BaseException) -> str:
    seconds = cause.response.headers.get("Retry-After", "")  # type: ignore[attr-defined]
    return f"Wait {seconds} seconds" if seconds.isdigit() else "Wait some minutes"
