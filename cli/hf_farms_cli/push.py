"""`hf-farms push DIR`: upload a finished folder."""

from __future__ import annotations

import shlex
import warnings
from pathlib import Path
from typing import Annotated

import typer

from hf_farms.errors import HfFarmsWarning, OutputError
from hf_farms_cli.console import check_format, guarded, if_interrupted, print_done
from hf_farms_cli.dry_run import print_plan, push_plan
from hf_farms_cli.options import (
    HUB,
    BranchOption,
    DebugOption,
    DryRunOption,
    ForeignOption,
    FormatOption,
    JsonOption,
    MessageOption,
    PrivateOption,
    QuietOption,
    RequestOption,
    TokenOption,
    UsageError,
    check_branch,
    check_repo_id,
    use_token,
)

__all__ = ["push_command"]


@guarded
def push_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder written by `hf-farms prune` or `save_pretrained`.")
    ],
    repo_id: Annotated[
        str | None,
        typer.Option(help="Repository  [default: <user>/<name of DIR>]", show_default=False, rich_help_panel=HUB),
    ] = None,
    private: PrivateOption = None,
    create_pr: RequestOption = False,
    push_revision: BranchOption = None,
    revision: Annotated[str | None, typer.Option("--revision", hidden=True)] = None,
    commit_message: MessageOption = None,
    yes: ForeignOption = False,
    token: TokenOption = None,
    dry_run: DryRunOption = False,
    format_: FormatOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Upload a finished folder to the Hub, or resume an interrupted upload.

    Examples:
    hf-farms push demo-farms-wanda-50
    hf-farms push demo-farms-wanda-50 --repo-id my-org/demo-pruned --private
    hf-farms push demo-farms-wanda-50 --create-pr --dry-run
    """
    output_format = check_format(format_, quiet, json_)
    check_repo_id(repo_id)
    push_revision = _branch(push_revision, revision)
    check_branch(push_revision, create_pr)
    use_token(token)
    from hf_farms import hub
    from hf_farms.files.paths import with_name
    from hf_farms.reports import REPORT_NAME

    result = hub.check_publishable(with_name(str(folder)))
    if result.report is None and repo_id is None:
        raise OutputError(
            f"folder must hold {REPORT_NAME} to be pushed under its own name, got {str(result.path)!r} without one.",
            hint=f"Name a repository: hf-farms push {shlex.quote(str(result.path))} --repo-id NAME",
        )
    plan = hub.plan_push(
        result,
        repo_id,
        private=private,
        create_pr=create_pr,
        revision=push_revision,
        allow_foreign_files=yes,
        unreachable_ok=dry_run,
    )
    if dry_run:
        print_plan(push_plan(plan), output_format)
        return
    from hf_farms.workflows.push import push_result

    with if_interrupted("Run the same command again to upload the rest."):
        url = push_result(result.path, plan, commit_message=commit_message)
    print_done(f"Pushed {result.path}", output_format, url=url)


def _branch(push_revision: str | None, revision: str | None) -> str | None:
    """Return the branch given by --push-revision, or by the deprecated --revision."""
    if revision is None:
        return push_revision
    if push_revision is not None:
        raise UsageError(f"push_revision must be given once, got --revision {revision!r} too. Leave --revision out.")
    warnings.warn(
        "--revision of push is deprecated, use --push-revision: elsewhere --revision is the revision of the model.",
        HfFarmsWarning,
        stacklevel=2,
    )
    return revision
