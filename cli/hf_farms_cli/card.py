"""`hf-farms card DIR`: README.md and figures again, from the report of a pruned or trained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_farms_cli.console import check_format, err, guarded, print_done, say
from hf_farms_cli.options import (
    DebugOption,
    FormatOption,
    JsonOption,
    QuietOption,
    TokenOption,
    YesOption,
    check_repo_id,
)

if TYPE_CHECKING:
    from hf_farms.reports import BaseModelRecord, PruneReport
    from hf_farms.reports.training import TrainReport

__all__ = ["card_command"]


@guarded
def card_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `hf-farms prune` or a training with a callback wrote.")
    ],
    repo_id: Annotated[
        str | None,
        typer.Option(help="Repository that the card names  [default: that of the card in DIR, else the folder's name]"),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the card here instead; `-` prints it."),
    ] = None,
    yes: YesOption = False,
    token: TokenOption = None,
    format_: FormatOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Write the model card of a folder again: README.md and its figures, from hf_farms_report.json.

    Of a training without a report, the files that the callbacks left behind are read. A README.md that hf-farms did not
    write is kept, unless --yes is given.

    Examples:
        hf-farms card ./demo-farms-wanda-50
        hf-farms card ./demo-farms-wanda-50 --repo-id me/demo-sparse
        hf-farms card ./trained -o -
    """
    shown = check_format(format_, quiet, json_)
    check_repo_id(repo_id)
    from hf_farms_cards import render_card, write_card
    from hf_farms_cards.card import check_card, repo_of
    from hf_farms_cards.quick_start import Checkpoint

    from hf_farms.files.atomic_writes import writing
    from hf_farms.files.paths import is_inside, with_name
    from hf_farms.output.allowed_paths import check_apart
    from hf_farms.reports.folders import load_report

    folder = Path(with_name(str(folder)))
    found = load_report(folder)
    report = _with_base(found, token)
    if output == "-":
        name = repo_id or repo_of(folder / "README.md") or folder.absolute().name
        say(render_card(report, repo_id=name, checkpoint=Checkpoint.of(folder)), newline=False)
        return
    target = folder / "README.md" if output is None else Path(output).expanduser()
    _check_target(target, yes=yes)
    check_card(report, target)
    if not is_inside(target, folder / "README.md"):
        for place in (target, target.parent / "figures"):
            check_apart(place, {"the model": folder})
    with writing(target.parent):
        if report.base is not found.base and report.base is not None and output is None:
            _copy_licence(report.base, folder, token)
        written = write_card(report, folder, repo_id=repo_id, target=target)
    print_done("Card written", shown, card=written)


def _check_target(target: Path, *, yes: bool) -> None:
    """Refuse to replace what somebody wrote.

    Raises:
        OutputError: no such folder, a folder, or a file of others.
    """
    from hf_farms_cards.card import is_ours

    from hf_farms.errors import OutputError
    from hf_farms.files.path_checks import check_file

    if not target.parent.is_dir() or target.is_dir():
        raise OutputError(f"output must be a file in an existing folder, got {str(target)!r}.")
    check_file(target)
    if target.exists() and not yes and not is_ours(target):
        raise OutputError(
            f"card must not replace what others wrote, got {str(target)!r}, which is not a card of hf-farms.",
            hint="Write it elsewhere with --output FILE, or replace that file with --yes.",
        )


def _copy_licence(base: BaseModelRecord, folder: Path, token: str | None) -> None:
    from hf_farms.errors import HfFarmsError
    from hf_farms.hub.licence_files import copy_licence_files

    try:
        copy_licence_files(base, folder, token=token)
    except HfFarmsError as error:
        err.print(f"[yellow]Warning:[/yellow] The licence files of the base model were not copied: {_plain(error)}")


def _with_base(report: PruneReport | TrainReport, token: str | None) -> PruneReport | TrainReport:
    """A training does not ask the Hub about its base model; its card needs the licence."""
    from hf_farms.errors import HfFarmsError
    from hf_farms.hub.base_model import fetch_base_model, is_on_the_hub
    from hf_farms.privacy.publishing import is_local
    from hf_farms.reports.training import TrainReport

    if not isinstance(report, TrainReport) or report.base is not None or not report.model:
        return report
    if "/" not in report.model or is_local(report.model) or not is_on_the_hub(report.model):
        return report
    try:
        return replace(report, base=fetch_base_model(report.model, token=token))
    except HfFarmsError as error:
        err.print(f"[yellow]Warning:[/yellow] The card cannot name the licence of the base model: {_plain(error)}")
        return report


def _plain(error: Exception) -> str:
    from rich.markup import escape

    return escape(str(error))
