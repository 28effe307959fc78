"""`hf-farms push DIR`, and what `hf-farms prune --push` shares with it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_farms.errors import HubError, ModelError, OutputError
from hf_farms_cli.console import check_format, guarded, if_interrupted, print_done
from hf_farms_cli.dry_run import print_plan, push_lines
from hf_farms_cli.options import (
    DebugOption,
    DryRunOption,
    FormatOption,
    JsonOption,
    PrivateOption,
    QuietOption,
    TokenOption,
    UsageError,
    check_repo_id,
)

if TYPE_CHECKING:
    from hf_farms.hub import PushPlan
    from hf_farms.output.recipe import Recipe
    from hf_farms.reports import BaseModelRecord

__all__ = [
    "ForeignOption",
    "MessageOption",
    "RequestOption",
    "check_hub",
    "finish_prune",
    "push_command",
    "use_token",
]

ForeignOption = Annotated[
    bool, typer.Option("-y", "--yes", help="Push into a repository with files that hf-farms did not write, too.")
]
RequestOption = Annotated[
    bool, typer.Option("--create-pr", help="Open a pull request, or continue the one of an earlier run.")
]
MessageOption = Annotated[str | None, typer.Option(help="Title of the commit and the pull request.")]


@guarded
def push_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `hf-farms prune` or `save_pretrained` wrote.")],
    repo_id: Annotated[
        str | None, typer.Option(help="Repository  [default: <user>/<name of DIR>]", show_default=False)
    ] = None,
    private: PrivateOption = None,
    create_pr: RequestOption = False,
    revision: Annotated[str | None, typer.Option(help="Branch to write to; made if it is not there.")] = None,
    commit_message: MessageOption = None,
    yes: ForeignOption = False,
    dry_run: DryRunOption = False,
    token: TokenOption = None,
    format_: FormatOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Upload a finished folder to the Hub, or the rest of one whose upload stopped.

    Examples:
    hf-farms push demo-farms-wanda-50
    hf-farms push demo-farms-wanda-50 --repo-id my-org/demo-pruned --private
    hf-farms push demo-farms-wanda-50 --create-pr --dry-run
    """
    shown = check_format(format_, quiet, json_)
    check_repo_id(repo_id)
    if create_pr and revision is not None:
        raise UsageError(f"revision must be left out beside --create-pr, got {revision!r}. A pull request is its own.")
    use_token(token)
    from hf_farms import hub
    from hf_farms.files.paths import with_name
    from hf_farms.reports import REPORT_NAME

    folder = Path(with_name(str(folder)))

    hub.check_folder(folder)
    report = hub.folder_report(folder)
    if report is None and repo_id is None:
        raise OutputError(
            f"folder must hold {REPORT_NAME} to be pushed under its own name, got {str(folder)!r} without one.",
            hint=f"Say where to: hf-farms push {shlex.quote(str(folder))} --repo-id NAME",
        )
    plan = hub.plan_push(
        folder, repo_id, private=private, create_pr=create_pr, revision=revision, overwrite=yes, create=False
    )
    if dry_run:
        print_plan(push_lines(folder, plan, report), shown)
        return
    _name_in_card(folder, plan.repo_id)
    with if_interrupted("The same command uploads the rest."):
        url = hub.push(
            folder,
            plan.repo_id,
            private=private,
            create_pr=create_pr,
            revision=revision,
            commit_message=commit_message,
            overwrite=yes,
        )
    print_done(f"Pushed {folder}", shown, url=url)


def _name_in_card(folder: Path, repo_id: str) -> None:
    """Write a card of ours again if its quick start names another repository."""
    from hf_farms_cards import write_card
    from hf_farms_cards.card import is_ours, repo_of

    from hf_farms.reports.folders import load_report

    card = folder / "README.md"
    if is_ours(card) and repo_of(card) != repo_id:
        write_card(load_report(folder), folder, repo_id=repo_id)


def use_token(token: str | None) -> None:
    """Let everything in this process use a token: downloads by transformers and datasets too."""
    if token:
        os.environ["HF_TOKEN"] = token


def check_hub(
    recipe: Recipe,
    folder: Path,
    *,
    push: bool,
    repo_id: str | None,
    private: bool | None,
    create_pr: bool,
    overwrite: bool,
    allow_pickle: bool,
) -> tuple[BaseModelRecord | None, PushPlan | None]:
    """Ask the Hub whether the dense model and all texts are there, and whether the result may be pushed.

    Returns:
        What it says of the dense model, and where the result goes; nothing was made there yet.
    """
    from hf_farms import hub
    from hf_farms.data.datasets import check_dataset
    from hf_farms.hub.base_model import fetch_base_model, read_base_model
    from hf_farms.licences import generated_name
    from hf_farms.loading.meta_layout import find_meta_checkpoint

    if Path(recipe.model).is_file():
        raise ModelError(f"model must be a folder or a hub id, got the file {recipe.model!r}.")
    # Meta's own layout needs another repository or consent: that is found out from the list of files.
    find_meta_checkpoint(recipe.model, revision=recipe.revision, allow_pickle=allow_pickle)
    base = fetch_base_model(recipe.model, revision=recipe.revision)
    for source in recipe.texts():
        check_dataset(source)
    if not push:
        return base, None
    licensed = base
    if licensed is None and recipe.model != "demo" and Path(recipe.model).is_dir():
        licensed = read_base_model(Path(recipe.model))
    plan = hub.preflight(
        generated_name(licensed, folder.absolute().name),
        repo_id=repo_id,
        private=private,
        base=base,
        folder=folder,
        create_pr=create_pr,
        overwrite=overwrite,
        create=False,
    )
    return base, plan


def finish_prune(folder: Path, plan: PushPlan, *, private: bool | None, commit_message: str | None, yes: bool) -> str:
    """Upload the result of a prune; whatever happens, say how the upload is finished.

    Returns:
        The URL.
    """
    from hf_farms import hub

    options = ["--create-pr"] if plan.create_pr else []
    options += [] if private is None else ["--private" if private else "--no-private"]
    options += ["--commit-message", commit_message] if commit_message else []
    options += ["--yes"] if yes else []
    again = shlex.join(["hf-farms", "push", str(folder), "--repo-id", plan.repo_id, *options])
    there = f"The pruned model is complete in {folder}. Run: {again}"
    try:
        with if_interrupted(there):
            _name_in_card(folder, plan.repo_id)
            return hub.push(
                folder,
                plan.repo_id,
                private=private,
                create_pr=plan.create_pr,
                commit_message=commit_message,
                overwrite=yes,
            )
    except HubError as error:
        raise HubError(str(error), hint=f"{error.hint or ''} {there}".strip()) from error
