"""Push a result: check it before a prune, upload it afterwards."""

from __future__ import annotations

from pathlib import Path

from hf_farms import hub
from hf_farms.licences import generated_name
from hf_farms.workflows.card import name_in_card
from hf_farms.workflows.prune_plan import PrunePlan

__all__ = ["plan_result_push", "push_result"]


def plan_result_push(
    prune: PrunePlan,
    repo_id: str | None = None,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    allow_foreign_files: bool = False,
    unreachable_ok: bool = False,
) -> hub.PushPlan:
    """Check that the result of a prune can be pushed, before the prune; nothing is created.

    Args:
        prune: the planned prune; a finished folder is checked too.
        repo_id: as for `push`.
        private: as for `push`.
        create_pr: as for `push`.
        revision: as for `push`.
        allow_foreign_files: also write to a repository that contains files not written by hf-farms.
        unreachable_ok: where the Hub cannot be reached, return a plan that says what was not checked.

    Raises:
        HubError: as `preflight`.
        OutputError: as `plan_push`, of a finished folder.
    """
    folder = prune.output.path
    if prune.finished is not None:
        return hub.plan_push(
            folder,
            repo_id,
            private=private,
            create_pr=create_pr,
            revision=revision,
            allow_foreign_files=allow_foreign_files,
            unreachable_ok=unreachable_ok,
        )
    base = prune.model.base_model
    return hub.preflight(
        generated_name(base, folder.absolute().name),
        repo_id=repo_id,
        private=private,
        base=base,
        folder=folder,
        revision=revision,
        create_pr=create_pr,
        allow_foreign_files=allow_foreign_files,
        create=False,
        unreachable_ok=unreachable_ok,
    )


def push_result(folder: Path, plan: hub.PushPlan, *, commit_message: str | None = None) -> str:
    """Upload a finished folder with its repository in the card, without repeating checks.

    Args:
        folder: of the result.
        plan: of `plan_result_push` or `plan_push`.
        commit_message: as for `push`.

    Returns:
        URL of the repository, the branch or the pull request.

    Raises:
        HubError: the Hub refused or could not be reached; the folder is complete.
    """
    name_in_card(folder, plan.repo_id)
    return hub.push(folder, commit_message=commit_message, plan=plan)
