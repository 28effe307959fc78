"""The Hub: checks before the work, the upload after it, and its errors in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.errors import HfFarmsError, HubError, ModelError, OutputError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["explain", "preflight", "push"]

# Unfinished work of `OutputFolder`: files and whole folders.
UNFINISHED = ("*.partial", "*.partial/*")
LOGIN = "Run `hf auth login` with a token that may write, or pass --token."


def preflight(
    repo_name: str, *, repo_id: str | None = None, private: bool | None = None, token: str | None = None
) -> str:
    """Make sure that a push will be possible, before hours of work: token, name, repository, write access.

    The repository is created if it is not there.

    Args:
        repo_name: name of the repository under the user's own name, where no `repo_id` is given.
        repo_id: `namespace/name`, or a name under the user's own.
        private: visibility of a new repository; None: the namespace's default.
        token: None: the one that is logged in.

    Returns:
        The full repository id.

    Raises:
        HubError: no valid token, no right to write there, or the Hub cannot be reached.
        ValueError: the name cannot be a repository's.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    api = _api(token)
    with _explained(repo_id or repo_name):
        user = api.whoami()["name"]
    target = repo_id or repo_name
    target = target if "/" in target else f"{user}/{target}"
    try:
        validate_repo_id(target)
    except HFValidationError as error:
        raise ValueError(
            f"repo_id must be a valid repository name, got {target!r}. Choose one with --repo-id."
        ) from error
    with _explained(target):
        api.create_repo(target, exist_ok=True, private=private)
        api.auth_check(target, write=True)
    return target


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a finished folder.

    Files that are there already are not uploaded again, so a push that failed is finished by the same call. Files are
    read once; memory does not grow with the model.

    Args:
        folder: what `hf-farms prune` or `save_pretrained` wrote.
        repo_id: `namespace/name`, or a name under the user's own; created if it is not there.
        private: visibility of a new repository; None: the namespace's default.
        commit_message: None: "Upload <name of the folder>".
        token: None: the one that is logged in.

    Returns:
        URL of the repository.

    Raises:
        OutputError: the folder is no checkpoint.
        HubError: the Hub refused or could not be reached; the folder is untouched.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise OutputError(
            f"folder must hold config.json and *.safetensors, got {str(folder)!r}.",
            hint="Name the folder that `hf-farms prune` wrote.",
        )
    api = _api(token)
    message = commit_message or f"Upload {folder.name}"
    with _explained(repo_id):
        url = api.create_repo(repo_id, exist_ok=True, private=private)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, commit_message=message, ignore_patterns=list(UNFINISHED)
        )
    return str(url)


def _api(token: str | None) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="hf-farms", library_version=version("hf-farms"))


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what the Hub client raises during a push into one sentence."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except HfFarmsError:
        raise
    except OfflineModeIsEnabled as error:
        raise HubError(
            f"a push must reach the Hub, got HF_HUB_OFFLINE for {what!r}.", hint="Unset HF_HUB_OFFLINE."
        ) from error
    except Exception as error:  # the client lets errors of its HTTP library, of xet, of files and of its own through
        raise _known(error, what) or HubError(
            f"{what!r} could not be pushed ({_first_line(error)}).", hint="Run the same command again."
        ) from error


def explain(error: BaseException, *, what: str) -> HfFarmsError:
    """One sentence and the way out for an error of the Hub client, or of transformers around it.

    Args:
        error: as caught; its causes are searched.
        what: the model or repository that was asked for.

    Returns:
        A `ModelError` where the model cannot be had, else a `HubError`; the caller raises it.
    """
    known = _known(error, what)
    if known is not None:
        return known
    if isinstance(error, OSError) and error.errno is not None:
        return HubError(f"{what!r} could not be read or sent ({_first_line(error)}).")
    return ModelError(
        f"{what!r} could not be loaded: {_first_line(error)}",
        hint="Name a hub id, a folder that save_pretrained wrote, or `demo`.",
    )


def _known(error: BaseException, what: str) -> HfFarmsError | None:
    """The sentence of the outermost error in the chain that has one."""
    for cause in _chain(error):
        found = cause if isinstance(cause, HfFarmsError) else _model_error(cause, what) or _hub_error(cause, what)
        if found is not None:
            return found
    return None


def _model_error(cause: BaseException, what: str) -> ModelError | None:
    """Errors that say that this model cannot be had; the most specific class first, as they inherit."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    # Downloads raise the second, which says "not in the cache" for a dead network too.
    offline = isinstance(cause, hub.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE
    if isinstance(cause, hub.OfflineModeIsEnabled) or offline:
        return ModelError(
            f"{what!r} is not on this machine and the Hub is switched off (HF_HUB_OFFLINE).",
            hint="Unset HF_HUB_OFFLINE, or name a local folder.",
        )
    if isinstance(cause, hub.GatedRepoError):
        return ModelError(
            f"{what!r} is gated, and access was not granted to this token.",
            hint=f"Accept its conditions at {_endpoint()}/{what}, then run `hf auth login`.",
        )
    if isinstance(cause, hub.RevisionNotFoundError):
        return ModelError(f"revision must exist, got one that {what!r} does not have.", hint="Check --revision.")
    if isinstance(cause, hub.RepositoryNotFoundError):
        doubt = " or is private" if _status(cause) == 401 else ""
        return ModelError(
            f"{what!r} is neither a folder nor a repository on the Hub{doubt}.",
            hint="Check the name; for a private repository run `hf auth login`.",
        )
    if isinstance(cause, hub.RemoteEntryNotFoundError):
        name = str(cause.response.url).rpartition("/")[2]
        return ModelError(
            f"{what!r} must hold {name!r}, which is not in the repository.",
            hint="Name a repository that save_pretrained wrote, or another --revision.",
        )
    return None


def _hub_error(cause: BaseException, what: str) -> HubError | None:
    """Errors of the Hub itself, of the token, or of the way there."""
    from huggingface_hub import errors as hub

    if isinstance(cause, hub.LocalTokenNotFoundError):
        return HubError("a push must have a token, got none.", hint=LOGIN)
    if isinstance(cause, hub.HfHubHTTPError):
        return _http_error(cause, what)
    # By module, as the client's HTTP library is httpx in some versions and httpx2 in others.
    if type(cause).__module__.startswith(("httpx", "httpcore")):
        return HubError(
            f"the Hub at {_endpoint()} could not be reached ({type(cause).__name__}).",
            hint="Check the network and HF_ENDPOINT, then run the same command again.",
        )
    return None


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _status(cause: BaseException) -> int | None:
    return getattr(getattr(cause, "response", None), "status_code", None)


def _http_error(cause: BaseException, what: str) -> HubError:
    status = _status(cause)
    said = getattr(cause, "server_message", None) or _first_line(cause)
    if status == 401:
        return HubError("the Hub did not accept the token.", hint=LOGIN)
    if status == 403:
        return HubError(
            f"the token may not write to {what!r} ({said}).",
            hint="Use a token with write access, or another --repo-id.",
        )
    return HubError(
        f"the Hub refused a request for {what!r} with status {status} ({said}).", hint="Run the same command again."
    )
