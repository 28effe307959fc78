"""Check that a repository is new or written by hf-farms, before anything is pushed to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.errors import HubError
from hf_farms.files.names import SELECTED_CHANNELS
from hf_farms.hub.client import with_retries
from hf_farms.hub.folders import INITIAL, is_unfinished_push
from hf_farms.reports import REPORT_NAME

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from hf_farms.hub.preflight import PushPlan

__all__ = ["check_contents"]


def check_contents(api: HfApi, plan: PushPlan, folder: Path | None) -> None:
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
