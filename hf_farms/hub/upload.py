"""The upload of a finished folder, into a branch or a pull request."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.config.checks import check_arguments
from hf_farms.errors import HfFarmsWarning, HubError, NoEffectWarning
from hf_farms.hub.client import client, hub_errors, is_unreachable, with_retries
from hf_farms.hub.contents import read_contents
from hf_farms.hub.folders import PublishableFolder, check_publishable, is_published, replaced_weights
from hf_farms.hub.preflight import PushPlan, create_repository, preflight
from hf_farms.hub.staging import staged_files
from hf_farms.privacy.masking import mask_secrets

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["plan_push", "push"]

# The client tries each request of an upload again by itself; this is for what it lets through.
ATTEMPTS = 3


def push(
    folder: str | Path,
    repo_id: str | None = None,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    overwrite: bool = False,
    token: str | None = None,
    plan: PushPlan | None = None,
) -> str:
    """Upload a finished folder.

    Files that are on the Hub already are not uploaded again, so call it again to resume a failed push; an open pull
    request of an earlier call is updated. Only regular files that belong to a model are uploaded, no links, keys or
    training state; a warning lists skipped files. Private paths are removed from text files. Files are read once;
    memory does not grow with the model. Weights of an earlier model that would be loaded instead of these are removed
    in the same commit.

    Args:
        folder: written by `hf-farms prune` or `save_pretrained`.
        repo_id: `namespace/name`, or a name in the user's namespace; created if it does not exist. None: the name of
            the folder, with the prefix that the license of the dense model requires.
        private: visibility of a new repository; None: private if the dense model is gated, else the namespace's
            default.
        create_pr: open a pull request, or update the one that an earlier call opened.
        revision: branch to write to, created if it does not exist; None: main.
        commit_message: title of the commit and of the pull request; None: "Upload <name of the folder>".
        overwrite: also write to a repository that contains files not written by hf-farms.
        token: None: the token of `hf auth login`.
        plan: the checked destination, from `plan_push` or `preflight`. It replaces all other arguments but the message
            and the token.

    Returns:
        URL of the repository, the branch or the pull request.

    Raises:
        OutputError: the folder is not a complete checkpoint.
        DataError: its report is damaged or of a newer version.
        HubError: the Hub refused the push or cannot be reached; the folder is unchanged.
        ValueError: as in `preflight`.
    """
    check_arguments(
        push,
        folder=folder,
        repo_id=repo_id,
        private=private,
        create_pr=create_pr,
        revision=revision,
        commit_message=commit_message,
        overwrite=overwrite,
        token=token,
        plan=plan,
    )
    folder = Path(folder)
    if plan is None:
        plan = plan_push(
            folder,
            repo_id,
            private=private,
            create_pr=create_pr,
            revision=revision,
            allow_foreign_files=overwrite,
            token=token,
        )
    else:
        _check_alone(
            plan, repo_id=repo_id, private=private, create_pr=create_pr, revision=revision, overwrite=overwrite
        )
    if plan.folder is None or plan.folder.path != folder:
        check_publishable(folder)
    plan = create_repository(plan, token=token)
    message = commit_message or f"Upload {folder.absolute().name}"
    contents = read_contents(folder)
    if left := contents.left_out():
        warnings.warn(
            f"Only files of the model are pushed. Left out of {str(folder)!r}: {left}.", HfFarmsWarning, stacklevel=2
        )
    with staged_files(contents) as (copy, changed), hub_errors(plan.repo_id, action="upload"):
        if changed:
            warnings.warn(
                f"Private paths or secrets were removed from the uploaded copy of {', '.join(changed)}; the files on "
                "this disk are unchanged.",
                HfFarmsWarning,
                stacklevel=2,
            )
        return _upload(client(token), plan, copy, message, name=str(folder))


def plan_push(
    folder: str | Path | PublishableFolder,
    repo_id: str | None = None,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    allow_foreign_files: bool = False,
    create: bool = False,
    unreachable_ok: bool = False,
    token: str | None = None,
) -> PushPlan:
    """Check everything that `push` needs before the upload: a complete folder and a writable repository.

    Args:
        folder: as for `push`; one that was checked already is not checked again.
        repo_id: as for `push`.
        private: as for `push`.
        create_pr: as for `push`.
        revision: as for `push`.
        allow_foreign_files: also write to a repository that contains files not written by hf-farms.
        create: create the repository if it does not exist; False changes nothing on the Hub.
        unreachable_ok: where the Hub cannot be reached, check the folder alone, and return a plan that says what was
            not checked.
        token: as for `push`.

    Raises:
        OutputError: as `push`, and the others too.
    """
    from hf_farms.licences import generated_name

    if not isinstance(folder, PublishableFolder):
        folder = check_publishable(folder)
    base = getattr(folder.report, "base", None)
    if base is not None and not base.gated and not base.local:
        base = replace(base, gated=_is_gated(base.repo_id, token, unreachable_ok=unreachable_ok))
    plan = preflight(
        generated_name(base, folder.path.absolute().name),
        repo_id=repo_id,
        private=private,
        base=base,
        folder=folder.path,
        revision=revision,
        create_pr=create_pr,
        allow_foreign_files=allow_foreign_files,
        create=create,
        unreachable_ok=unreachable_ok,
        token=token,
    )
    return replace(plan, folder=folder)


def _check_alone(plan: PushPlan, **options: object) -> None:
    """Refuse options that the plan fixes already."""
    for name, value in options.items():
        if value not in (None, False):
            raise ValueError(f"{name} must be left out with a plan, got {value!r}. The plan is for {plan.repo_id!r}.")


def _is_gated(repo_id: str, token: str | None, *, unreachable_ok: bool) -> bool:
    """Whether the dense model is gated now: a prune with HF_HUB_OFFLINE could not know."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    api = client(token)
    try:
        with hub_errors(repo_id, action="push"):
            try:
                return bool(with_retries(lambda: api.model_info(repo_id), what=f"Asking for {repo_id}").gated)
            except GatedRepoError:
                return True
            except RepositoryNotFoundError:
                return False
    except HubError as error:
        if not unreachable_ok or not is_unreachable(error):
            raise
        return False


def _upload(api: HfApi, plan: PushPlan, folder: Path, message: str, *, name: str) -> str:
    # Keep a password in the endpoint out of the printed URL.
    url = f"{mask_secrets(api.endpoint)}/{plan.repo_id}"
    revision = plan.revision
    if revision is not None:
        url = f"{url}/tree/{revision}"
    if plan.create_pr:
        existing = _open_request(api, plan, message)
        if existing is None and is_published(api, plan.repo_id, plan.files, folder):
            warnings.warn(
                f"{plan.repo_id!r} holds all of {name!r} already: no pull request was opened.",
                NoEffectWarning,
                stacklevel=3,
            )
            return url
        # Look for it before each attempt: after a lost response, do not open a second one.
        revision, url = existing or with_retries(
            lambda: _open_request(api, plan, message) or _new_request(api, plan, message),
            what="Opening a pull request",
        )
    # A pull request that is continued has other files than main.
    remote_files = list(plan.files) if not plan.create_pr else _files_at(api, plan.repo_id, revision)
    stale = replaced_weights(remote_files, folder)
    with_retries(
        lambda: api.upload_folder(
            repo_id=plan.repo_id,
            folder_path=folder,
            commit_message=message,
            revision=revision,
            delete_patterns=stale or None,
        ),
        what=f"Uploading to {plan.repo_id}",
        attempts=ATTEMPTS,
    )
    return url


def _files_at(api: HfApi, repo_id: str, revision: str | None) -> list[str]:
    return with_retries(lambda: api.list_repo_files(repo_id, revision=revision), what=f"Listing {repo_id}")


def _open_request(api: HfApi, plan: PushPlan, title: str) -> tuple[str, str] | None:
    """Return reference and URL of the user's open pull request with this title, or None."""
    requests = with_retries(
        lambda: list(api.get_repo_discussions(plan.repo_id, author=plan.user, discussion_type="pull_request")),
        what="Listing pull requests",
    )
    for request in requests:
        if request.is_pull_request and request.title == title and request.status in ("draft", "open"):
            return f"refs/pr/{request.num}", mask_secrets(request.url)
    return None


def _new_request(api: HfApi, plan: PushPlan, title: str) -> tuple[str, str]:
    request = api.create_pull_request(plan.repo_id, title=title)
    return f"refs/pr/{request.num}", mask_secrets(request.url)
