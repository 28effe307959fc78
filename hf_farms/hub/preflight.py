"""Pre-push checks, run before any expensive work and before anything is created."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_farms.errors import HfFarmsWarning, HubError
from hf_farms.files.names import SELECTED_CHANNELS
from hf_farms.hub.client import client, hub_errors, with_retries
from hf_farms.hub.folders import INITIAL, PublishableFolder, is_unfinished_push
from hf_farms.reports import REPORT_NAME, BaseModelRecord

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["PushPlan", "create_repository", "preflight"]


@dataclass(frozen=True, kw_only=True)
class PushPlan:
    """Destination of a push.

    Attributes:
        repo_id: `namespace/name`.
        user: owner of the token.
        exists: whether the repository exists already.
        private: visibility that it has or will have; None: the default of the namespace.
        revision: branch; None: main.
        create_pr: whether to open a pull request.
        files: names of the files at that revision.
        ready: whether the repository and the branch exist and are writable.
        folder: the folder to push, checked; None: it does not exist yet.
    """

    repo_id: str
    user: str
    exists: bool
    private: bool | None
    revision: str | None = None
    create_pr: bool = False
    files: tuple[str, ...] = ()
    ready: bool = False
    folder: PublishableFolder | None = None


def preflight(
    repo_name: str,
    *,
    repo_id: str | None = None,
    private: bool | None = None,
    base: BaseModelRecord | None = None,
    folder: Path | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    allow_foreign_files: bool = False,
    create: bool = True,
    token: str | None = None,
) -> PushPlan:
    """Check that a push will be possible, before hours of work: token, name, contents, write access.

    Args:
        repo_name: name of the repository under the user's own name, where no `repo_id` is given.
        repo_id: `namespace/name`, or a name under the user's own.
        private: visibility of a new repository; None: private if the dense model is gated, else the namespace's
            default.
        base: the dense model; its own repository is never written to.
        folder: the folder to push, if it exists already; needed to recognise an interrupted push of it.
        revision: branch to write to, created if it does not exist; None: main.
        create_pr: write to a pull request only.
        allow_foreign_files: also write to a repository that contains files not written by hf-farms.
        create: create the repository if it does not exist; False changes nothing on the Hub.
        token: None: the token of `hf auth login`.

    Raises:
        HubError: no valid token, no write access, files of others in the repository, or the Hub cannot be reached.
        ValueError: the name cannot be a repository's, or the options exclude each other.
    """
    if create_pr and revision is not None:
        raise ValueError(f"revision must not be given with create_pr, got {revision!r}. A pull request is its own one.")
    api = client(token)
    name = repo_id or repo_name
    with hub_errors(name, action="push"):
        account = with_retries(lambda: _account(api), what="Asking whose token it is")
    _check_role(account)
    target = _full_name(name, account["name"])
    if base is not None and target.lower() == base.repo_id.lower():
        raise HubError(
            f"repo_id must not be the dense model's own repository, got {target!r}.",
            hint="Choose another `repo_id`.",
        )
    _check_name(target, base)
    with hub_errors(target, action="push"):
        plan = _plan(api, target, private, base, revision=revision, create_pr=create_pr, user=account["name"])
        if plan.exists and not create_pr:
            with_retries(lambda: api.auth_check(target, write=True), what="Asking for write access")
        if not allow_foreign_files:
            _check_contents(api, plan, folder)
    return create_repository(plan, token=token) if create else plan


def create_repository(plan: PushPlan, *, token: str | None = None) -> PushPlan:
    """Create the repository and the branch of a plan, if they do not exist.

    Returns:
        The plan, with `ready=True`.

    Raises:
        HubError: the repository cannot be created or written to.
    """
    if plan.ready:
        return plan
    api = client(token)
    with hub_errors(plan.repo_id, action="push"):
        if not plan.exists:
            with_retries(
                lambda: api.create_repo(plan.repo_id, exist_ok=True, private=plan.private),
                what=f"Creating {plan.repo_id}",
            )
            with_retries(lambda: api.auth_check(plan.repo_id, write=True), what="Asking for write access")
        if plan.revision is not None:
            branch = plan.revision
            with_retries(
                lambda: api.create_branch(plan.repo_id, branch=branch, exist_ok=True), what=f"Creating branch {branch}"
            )
    return replace(plan, ready=True)


def _account(api: HfApi) -> dict[str, Any]:
    """Return the owner of the token. An unexpected answer fails here, inside `hub_errors`."""
    account = api.whoami()
    return {**account, "name": str(account["name"]), "auth": dict(account.get("auth") or {})}


def _check_role(account: dict[str, Any]) -> None:
    """Refuse read-only tokens. Access of a `fineGrained` token is checked per repository later."""
    access = (account.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise HubError(
            f"a push must have a token that may write, got the read-only token {access.get('displayName')!r} of "
            f"{account['name']}.",
            hint="Create one at https://huggingface.co/settings/tokens, and run `hf auth login` with it.",
        )


def _full_name(name: str, user: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    target = name if "/" in name else f"{user}/{name}"
    try:
        validate_repo_id(target)
    except HFValidationError as error:
        raise ValueError(
            f"repo_id must be a valid repository name, got {target!r}. Choose one with `repo_id`."
        ) from error
    return target


def _check_name(target: str, base: BaseModelRecord | None) -> None:
    """Warn if the licence of the dense model requires another name than the given one."""
    from hf_farms.licences import generated_name

    name = target.rpartition("/")[2]
    required = generated_name(base, name)
    if base is not None and required != name:
        warnings.warn(
            f"the licence of {base.repo_id!r} requires another name than {name!r}, such as {required!r}. "
            "Choose it with `repo_id`.",
            HfFarmsWarning,
            stacklevel=3,
        )


def _plan(
    api: HfApi,
    target: str,
    private: bool | None,
    base: BaseModelRecord | None,
    *,
    revision: str | None,
    create_pr: bool,
    user: str,
) -> PushPlan:
    """Look the repository up, and check that its visibility is as requested."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    gated = base is not None and base.gated
    visibility = private if private is not None else (True if gated else None)
    try:
        info = with_retries(lambda: api.model_info(target), what=f"Looking for {target}")
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:  # the token is refused, although it was accepted a moment ago
            raise
        return PushPlan(
            repo_id=target, user=user, exists=False, private=visibility, revision=revision, create_pr=create_pr
        )
    try:
        files = with_retries(lambda: api.list_repo_files(target, revision=revision), what=f"Listing {target}")
    except RevisionNotFoundError:  # a new branch begins as a copy of main
        files = with_retries(lambda: api.list_repo_files(target), what=f"Listing {target}")
    if visibility and not info.private:
        why = "the dense model is gated" if private is None else "`private=True` was given"
        raise HubError(
            f"repository must be private, as {why}, got {target!r}, which is public.",
            hint="Make it private on its settings page, choose another `repo_id`, or pass `private=False`.",
        )
    if visibility is False and info.private:
        warnings.warn(f"{target!r} is private and stays so; change that on its settings page.", HfFarmsWarning, 2)
    return PushPlan(
        repo_id=target,
        user=user,
        exists=True,
        private=bool(info.private),
        revision=revision,
        create_pr=create_pr,
        files=tuple(files),
    )


def _check_contents(api: HfApi, plan: PushPlan, folder: Path | None) -> None:
    """Refuse a repository with files not written by hf-farms. A pull request is reviewed by its owner."""
    foreign = sorted(set(plan.files) - INITIAL)
    if not foreign or {REPORT_NAME, SELECTED_CHANNELS} & set(foreign) or plan.create_pr:
        return
    if folder is not None and folder.is_dir() and _is_ours(api, plan, folder):
        return
    examples = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
    raise HubError(
        f"repository must be new or one that hf-farms wrote, got {plan.repo_id!r} with other files ({examples}).",
        hint="Choose another `repo_id`, or replace what has the same name with `push(overwrite=True)`.",
    )


def _is_ours(api: HfApi, plan: PushPlan, folder: Path) -> bool:
    from huggingface_hub.errors import RevisionNotFoundError

    def compared(revision: str | None) -> bool:
        return with_retries(
            lambda: is_unfinished_push(api, plan.repo_id, revision, folder), what=f"Comparing {plan.repo_id}"
        )

    try:
        return compared(plan.revision)
    except RevisionNotFoundError:
        return compared(None)
