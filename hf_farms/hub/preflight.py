"""Pre-push checks, run before any expensive work and before anything is created."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_farms.errors import HfFarmsWarning, HubError
from hf_farms.hub.client import client, hub_errors, is_unreachable, lacks_token, with_retries
from hf_farms.hub.folders import PublishableFolder
from hf_farms.hub.foreign_files import check_contents
from hf_farms.reports import BaseModelRecord

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["UNKNOWN_USER", "PushPlan", "create_repository", "preflight"]

# In the place of the user's name, which only the Hub knows.
UNKNOWN_USER = "<user>"
# Why a plan was not checked.
UNREACHABLE, NO_TOKEN = "the Hub could not be reached", "there is no token (run `hf auth login`)"


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
        unchecked: what was not checked, as the Hub could not be reached or there is no token; such a plan can only be
            shown.
        reason: why it was not checked.
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
    unchecked: tuple[str, ...] = ()
    reason: str = ""


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
    unreachable_ok: bool = False,
    token: str | None = None,
) -> PushPlan:
    """Check that a push will be possible, before hours of work: token, name, contents, write access.

    Args:
        repo_name: name of the repository under the user's own name, where no `repo_id` is given.
        repo_id: `namespace/name`, or a name under the user's own.
        private: visibility of a new repository; None: private if the dense model is gated, else the namespace's
            default.
        base: the dense model; its own repository is never written to.
        folder: the folder to push, if it exists already; needed to recognize an interrupted push of it.
        revision: branch to write to, created if it does not exist; None: main.
        create_pr: write to a pull request only.
        allow_foreign_files: also write to a repository that contains files not written by hf-farms.
        create: create the repository if it does not exist; False changes nothing on the Hub.
        unreachable_ok: where the Hub cannot be reached, or there is no token, return a plan that says what was not
            checked.
        token: None: the token of `hf auth login`.

    Raises:
        HubError: no valid token, no write access, files of others in the repository, or the Hub cannot be reached.
        ValueError: the name cannot be a repository's, or the options exclude each other.
    """
    if create_pr and revision is not None:
        raise ValueError(f"revision must not be given with create_pr, got {revision!r}. A pull request is its own one.")
    name = repo_id or repo_name
    api = client(token)
    try:
        plan = _checked(
            api,
            name,
            private,
            base,
            folder=folder,
            revision=revision,
            create_pr=create_pr,
            allow_foreign_files=allow_foreign_files,
        )
    except HubError as error:
        reason = NO_TOKEN if lacks_token(error) else UNREACHABLE if is_unreachable(error) else None
        if not unreachable_ok or reason is None:
            raise
        return _unchecked(name, private, base, revision=revision, create_pr=create_pr, reason=reason)
    return create_repository(plan, token=token) if create else plan


def _checked(
    api: HfApi,
    name: str,
    private: bool | None,
    base: BaseModelRecord | None,
    *,
    folder: Path | None,
    revision: str | None,
    create_pr: bool,
    allow_foreign_files: bool,
) -> PushPlan:
    """Ask the Hub about token, name, contents and write access; arguments are those of `preflight`."""
    with hub_errors(name, action="push"):
        account = with_retries(lambda: _account(api), what="Asking whose token it is")
    _check_role(account)
    target = _full_name(name, account["name"])
    _check_name(target, base)
    with hub_errors(target, action="push"):
        plan = _plan(api, target, private, base, revision=revision, create_pr=create_pr, user=account["name"])
        if plan.exists and not create_pr:
            with_retries(lambda: api.auth_check(target, write=True), what="Asking for write access")
        if not allow_foreign_files:
            check_contents(api, plan, folder)
    return plan


def _unchecked(
    name: str,
    private: bool | None,
    base: BaseModelRecord | None,
    *,
    revision: str | None,
    create_pr: bool,
    reason: str,
) -> PushPlan:
    """Return the plan of a push as far as it is known without the Hub."""
    # Any user, to check the rest of the name.
    target = _full_name(name, "user")
    _check_name(target, base)
    gated = base is not None and base.gated
    unchecked = ["the token and its write access", f"whether the {'branch' if revision else 'repository'} exists"]
    unchecked += ["its visibility and the files in it", *([] if base is None else ["whether the dense model is gated"])]
    return PushPlan(
        repo_id=target if "/" in name else f"{UNKNOWN_USER}/{name}",
        user=UNKNOWN_USER,
        exists=False,
        private=private if private is not None else (True if gated else None),
        revision=revision,
        create_pr=create_pr,
        unchecked=tuple(unchecked),
        reason=reason,
    )


def create_repository(plan: PushPlan, *, token: str | None = None) -> PushPlan:
    """Create the repository and the branch of a plan, if they do not exist.

    Returns:
        The plan, with `ready=True`.

    Raises:
        HubError: the repository cannot be created or written to.
    """
    if plan.ready:
        return plan
    if plan.unchecked:
        raise ValueError(f"plan must be checked with the Hub, got one without {plan.unchecked[0]}. Plan it again.")
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
    """Refuse the dense model's own repository; warn if its license requires another name than the given one.

    Raises:
        HubError: it is the repository of the dense model.
    """
    from hf_farms.licences import generated_name

    if base is not None and target.lower() == base.repo_id.lower():
        raise HubError(
            f"repo_id must not be the dense model's own repository, got {target!r}.",
            hint="Choose another `repo_id`.",
        )

    name = target.rpartition("/")[2]
    required = generated_name(base, name)
    if base is not None and required != name:
        warnings.warn(
            f"the license of {base.repo_id!r} requires another name than {name!r}, such as {required!r}. "
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
