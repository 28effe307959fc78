"""The Hub: checks before the work, the upload after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.errors import HfFarmsError, HubError, OutputError
from hf_farms.explain import first_line, known_error

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["preflight", "push"]

# Unfinished work of `OutputFolder`: files and whole folders.
UNFINISHED = ("*.partial", "*.partial/*")


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
        raise known_error(error, what) or HubError(
            f"{what!r} could not be pushed ({first_line(error)}).", hint="Run the same command again."
        ) from error
