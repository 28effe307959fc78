"""The run of a planned prune on the command line: progress, interrupts, upload and output."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hf_farms.errors import HubError
from hf_farms_cli.console import IS_MAIN, if_interrupted, print_estimate, quiet_transformers, stages
from hf_farms_cli.shown_command import shown_command

if TYPE_CHECKING:
    from hf_farms.hub import PushPlan
    from hf_farms.reports import PruneReport
    from hf_farms.workflows.prune_plan import PrunePlan
    from hf_farms_cli.options import Format

__all__ = ["run_and_print"]


def run_and_print(
    plan: PrunePlan,
    target: PushPlan | None,
    output_format: Format,
    *,
    private: bool | None,
    commit_message: str | None,
    yes: bool,
) -> None:
    """Prune, push if planned, and print the result."""
    from hf_farms.hub import create_repository
    from hf_farms_cli.tables import print_result

    report, url = plan.finished, None
    # Of several launched processes, the first one talks to the Hub.
    if target is not None and IS_MAIN:
        target = create_repository(target)
    if report is None:
        report = _prune(plan, target.repo_id if target is not None else None, output_format)
    if target is not None and IS_MAIN:
        options = [] if private is None else ["--private" if private else "--no-private"]
        options += ["--commit-message", commit_message] if commit_message else []
        options += ["--yes"] if yes else []
        url = _push(plan.output.path, target, options, commit_message=commit_message)
    print_result(report, plan.output.path, url, output_format)


def _prune(plan: PrunePlan, repo_id: str | None, output_format: Format) -> PruneReport:
    from hf_farms.workflows.prune import run_prune

    quiet_transformers()
    partial_folder = plan.output.partial
    note = f"Unfinished work is in {partial_folder}. Run the same command again to resume."
    with if_interrupted(note, unfinished=partial_folder), stages(output_format) as progress:
        return run_prune(
            plan,
            repo_id=repo_id,
            command=shown_command(sys.argv),
            progress=progress,
            # Before any progress: on a terminal above the bars.
            on_estimate=print_estimate if IS_MAIN and output_format != "quiet" else None,
        )


def _push(folder: Path, target: PushPlan, options: list[str], *, commit_message: str | None) -> str:
    """Upload the result; after an error or Ctrl-C, print the command that finishes the upload."""
    from hf_farms.workflows.push import push_result

    where = ["--create-pr"] if target.create_pr else []
    where += ["--push-revision", target.revision] if target.revision is not None else []
    again = shlex.join(["hf-farms", "push", str(folder), "--repo-id", target.repo_id, *where, *options])
    note = f"The pruned model is complete in {folder}. Run: {again}"
    try:
        with if_interrupted(note):
            return push_result(folder, target, commit_message=commit_message)
    except HubError as error:
        raise HubError(str(error), hint=f"{error.hint or ''} {note}".strip()) from error
